"""What both diagnoses are asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deploykit.errors import UsageError
from deploykit.proof.reference import ReferenceRequest
from deploykit.specs.model import Precision


@dataclass(frozen=True)
class DiagnosisRequest:
    """The arguments of :func:`deploykit.diagnose`.

    Attributes:
        transform: For the stages alone, as ``trained_accuracy`` and ``reference``.
        expected: A table of the images' classes; None for what their folders tell.
        first: Names of images to take before any other, such as those that flipped; unknown names
            are ignored.
        right: How many images the reference decides rightly, and of how many, where more have been
            compared than are diagnosed; None where nobody knows.
    """

    images: Path | None = None
    max_images: int | None = None
    transform: str | None = None
    trained_accuracy: float | None = None
    reference: ReferenceRequest = field(default_factory=ReferenceRequest)
    runtime: str | None = None
    precision: Precision | None = None
    expected: Path | None = None
    first: tuple[str, ...] = ()
    right: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.max_images is not None and self.max_images < 1:
            raise UsageError(f"At least 1 image is needed, not {self.max_images}.")
