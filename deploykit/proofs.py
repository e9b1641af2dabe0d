"""What is kept of a measurement that passed, and what it was measured on: frozen, without I/O."""

from __future__ import annotations

from typing import Literal, TypeAlias

from deploykit.measurements import Measurement
from deploykit.specs import Precision, Value
from deploykit.tolerances import Tolerance

ProofKind: TypeAlias = Literal["rehearsed", "executed"]
PhotoKind: TypeAlias = Literal["photos", "golden", "generated"]
ReferenceKind: TypeAlias = Literal["module", "graph", "golden"]


class PhotoSet(Value, frozen=True):
    """The images that something was measured on.

    Attributes:
        kind: The user's ``photos``, the bundle's ``golden`` ones, or ``generated``.
        source: The folder, as it was given; empty for golden and generated images.
        images: How many.
        copies: How many of them have the same pixels as an earlier one: of decisions they tell
            nothing new.
        sha256: Of the preprocessed pixels, in order, in lowercase hex.
    """

    kind: PhotoKind
    source: str
    images: int
    sha256: str
    copies: int = 0


class Proof(Value, frozen=True):
    """A measurement that passed, with what it was measured on.

    Attributes:
        graph: The candidate's graph, ``deploy/fp32.onnx``.
        graph_sha256: Of that graph when it was measured.
        runtime: What executed it.
        device: On which device.
        precision: The candidate's precision.
        kind: ``executed`` on the runtime or ``rehearsed`` on a model of the hardware.
        reference: What it was compared with, in words.
        reference_kind: The recorded checkpoint's ``module``, the ``graph``, or ``golden`` answers.
        photos: The images.
        measurement: The numbers.
        tolerance: What was allowed.
        created: When, UTC, ISO 8601.
        versions: Of the packages that took part.
    """

    graph: str
    graph_sha256: str
    runtime: str
    device: str
    precision: Precision
    kind: ProofKind
    reference: str
    reference_kind: ReferenceKind
    photos: PhotoSet
    measurement: Measurement
    tolerance: Tolerance
    created: str
    versions: dict[str, str]

    @property
    def strength(self) -> tuple[bool, bool, int]:
        """Proofs in order of what they show: by the module, on photos, on many different ones."""
        return (
            self.reference_kind == "module",
            self.photos.kind == "photos",
            self.measurement.distinct,
        )
