"""What to verify, and which options make no sense together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deploykit.bundle.folder import Bundle
from deploykit.bundle.golden import read_golden
from deploykit.errors import UsageError
from deploykit.parity.budget import Budget
from deploykit.proof.images import ImageSample, bundle_sample, golden_sample
from deploykit.proof.reference import ReferenceRequest
from deploykit.runtime.opener import CUDA
from deploykit.specs.model import Precision
from deploykit.specs.session import ServerProtocol
from deploykit.system.progress import Progress


@dataclass(frozen=True)
class VerifyRequest:
    """The arguments of :func:`deploykit.verify` and :func:`deploykit.diagnose`.

    Attributes:
        sample: Images that are open already; instead of ``images``.
        lowest_margins: How many images to compare, those with the lowest margins; None for all.
        precision: None for every one that graphs are made for, and so not for BF16.
        budget: What the user allows below FP32; None for what a graph was made within, else for
            what its precision allows.
        keep: Whether the bundle keeps the verdicts.
        expected: A table of the images' classes; None for what their folders tell.
        server: The address of a server to compare instead of what runs here; None for none.
        protocol: What it speaks; None for HTTP.
        against: Another tool's table to compare instead of what runs here; None for none.
    """

    sample: ImageSample | None = None
    images: Path | None = None
    max_images: int | None = None
    lowest_margins: int | None = None
    budget: Budget | None = None
    runtime: str | None = None
    precision: Precision | None = None
    engine: str | None = None
    tf32: bool = False
    reference: ReferenceRequest = field(default_factory=ReferenceRequest)
    self_test: bool = False
    keep: bool = True
    stages: bool = False
    transform: str | None = None
    trained_accuracy: float | None = None
    layers: bool = False
    expected: Path | None = None
    server: str | None = None
    protocol: ServerProtocol | None = None
    against: Path | None = None

    @property
    def is_elsewhere(self) -> bool:
        """Whether what is compared did not run here."""
        return self.server is not None or self.against is not None

    @property
    def elsewhere_options(self) -> tuple[str, ...]:
        """The options that name it."""
        return (
            *(() if self.server is None else ("--server", self.server)),
            *(() if self.protocol is None else ("--protocol", self.protocol)),
            *(() if self.against is None else ("--against", str(self.against))),
        )

    @property
    def diagnoses(self) -> bool:
        """Whether a diagnosis is asked for."""
        return self.stages or self.layers

    def sample_of(self, bundle: Bundle, progress: Progress) -> ImageSample:
        """The images to compare on: golden ones, those that are open already, or photos.

        Raises:
            DeploykitError: See :func:`deploykit.proof.images.bundle_sample`.
        """
        if self.self_test:
            return golden_sample(read_golden(bundle).images)
        return self.sample or bundle_sample(
            bundle,
            self.images,
            limit=self.max_images,
            progress=progress,
            expected=self.expected,
        )

    def check(self) -> None:
        """Refuse what makes no sense together, before anything is opened.

        Raises:
            UsageError: Options that contradict each other, or compare nothing.
        """
        self._check_elsewhere()
        for wrong, message, hint in (
            (
                not self.stages and (self.transform, self.trained_accuracy) != (None, None),
                "--transform and --trained-accuracy are for the diagnosis by stage.",
                "Add --stages.",
            ),
            (
                self.diagnoses and (self.self_test or self.tf32 or self.engine is not None),
                "--stages and --layers diagnose graphs in plain FP32 by the reference: "
                "they take no --self-test, --engine or --tf32.",
                "Leave out one or the other.",
            ),
            (
                self.expected is not None and (self.self_test or self.sample is not None),
                "--expected tells the classes of a folder's photos: it takes no --self-test and no "
                "images that are given already.",
                "Name the folder: --images DIR --expected FILE",
            ),
            (
                self.tf32 and self.runtime != CUDA,
                f"Only {CUDA} has TF32.",
                f"Name it: --runtime {CUDA} --tf32",
            ),
            (
                self.engine is not None and (self.runtime, self.precision) != (None, None),
                "--engine says by itself what runs, on what and in which precision.",
                "Leave out --runtime and --precision.",
            ),
            (
                self.self_test
                and (
                    self.images is not None or self.max_images is not None or self.reference.named
                ),
                "--self-test compares the bundle with all its own recorded answers: "
                "it takes no --images, --max-images, --arch or --ckpt.",
                "Leave out one or the other.",
            ),
            (
                self.budget is not None and (self.precision == "fp32" or self.self_test),
                "--max-flips and --max-accuracy-drop are for what is below FP32, on images: in "
                "FP32 no decision may change, and a self-test compares with recorded answers.",
                "Leave out one or the other.",
            ),
            (
                self.lowest_margins is not None
                and self.budget is not None
                and self.budget.max_accuracy_drop is not None,
                f"The photos of --lowest-margins {self.lowest_margins} are those closest to "
                "another decision; they tell nothing about the accuracy on all.",
                "Leave out --lowest-margins or --max-accuracy-drop.",
            ),
            (
                self.lowest_margins is not None and self.lowest_margins < 1,
                f"--lowest-margins {self.lowest_margins} compares nothing.",
                "Give at least 1.",
            ),
            (
                self.lowest_margins is not None
                and (self.max_images is not None or self.self_test or self.sample is not None),
                "--lowest-margins chooses among all photos of a folder: it takes no --max-images, "
                "no --self-test and no images that are given already.",
                "Name a folder alone: --lowest-margins N --images DIR",
            ),
        ):
            if wrong:
                raise UsageError(message, hint=hint)

    def _check_elsewhere(self) -> None:
        """Refuse what makes no sense beside a server or a table.

        Raises:
            UsageError: It makes none.
        """
        here = self.runtime is not None or self.engine is not None or self.tf32
        chosen = self.lowest_margins is not None or self.layers
        told = self.transform is not None or self.trained_accuracy is not None
        for wrong, message, hint in (
            (
                self.server is not None and self.against is not None,
                "--server and --against are two comparisons.",
                "Make them one after the other.",
            ),
            (
                self.protocol is not None and self.server is None,
                "--protocol is that of a server.",
                "Name the server: --server URL",
            ),
            (
                self.is_elsewhere and (here or chosen or told),
                "--server and --against compare what runs elsewhere on all images: they take no "
                "--runtime, --engine, --tf32, --lowest-margins, --layers, --transform or "
                "--trained-accuracy.",
                "Leave out one or the other; --precision says what runs there.",
            ),
            (
                self.against is not None and (self.self_test or self.sample is not None),
                "--against compares what a table tells of photos: it takes no --self-test and no "
                "images that are given already.",
                "Name the photos' folder: --against FILE --images DIR",
            ),
        ):
            if wrong:
                raise UsageError(message, hint=hint)
