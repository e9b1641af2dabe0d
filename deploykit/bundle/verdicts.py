"""The verdicts that a bundle keeps, and on which images they were found: frozen, without I/O."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from deploykit.parity.budget import Budget
from deploykit.parity.measurement import Measurement
from deploykit.parity.tolerance import Tolerance
from deploykit.specs.model import Precision
from deploykit.specs.value import Value
from deploykit.system.deps import runtime_version

ProofKind: TypeAlias = Literal["rehearsed", "executed"]
ImageKind: TypeAlias = Literal["photos", "golden", "generated"]
ReferenceKind: TypeAlias = Literal["module", "graph", "golden"]


class CandidateKey(NamedTuple):
    """What a verdict is about: a file, and how it was run.

    Attributes:
        sha256: Of the graph or the engine, in lowercase hex.
        runtime: What executes it.
        precision: Of the arithmetic.
        device: The device's name: kernels differ from one to the next.
    """

    sha256: str
    runtime: str
    precision: Precision
    device: str


class ImageSet(Value, frozen=True):
    """The images that something was measured on.

    Attributes:
        kind: The user's ``photos``, the bundle's ``golden`` ones, or ``generated``.
        source: The folder, as it was given; empty for golden and generated images.
        count: How many different ones were compared.
        sha256: Of the preprocessed pixels, in order, in lowercase hex.
        duplicates: How many more were skipped: they have the pixels of another.
        calibration: How many more were skipped: they had a part in making a compared graph.
    """

    kind: ImageKind
    source: str
    count: int
    sha256: str
    duplicates: int = 0
    calibration: int = 0


class KeptVerdict(Value, frozen=True):
    """A verdict that the manifest keeps: a proof where it passed.

    Attributes:
        graph: The candidate's graph or engine, ``deploy/fp32.onnx``.
        graph_sha256: Of that file when it was measured.
        runtime: What executed it.
        device: On which device.
        precision: The candidate's precision.
        kind: ``executed`` on the runtime or ``rehearsed`` on a model of the hardware.
        reference: What it was compared with, in words.
        reference_kind: The recorded checkpoint's ``module``, the ``graph``, or ``golden`` answers.
        images: The images.
        measurement: The numbers.
        tolerance: What was allowed.
        created: When, UTC, ISO 8601.
        versions: Of the packages that took part.
        reasons: Why it failed, a sentence each; empty where it passed.
        among: The number of images that it speaks for: those that were compared, or all those that
            they were chosen from by their margins.
        budget: What the user allowed instead of what the precision allows; None for the latter.
    """

    graph: str
    graph_sha256: str
    runtime: str
    device: str
    precision: Precision
    kind: ProofKind
    reference: str
    reference_kind: ReferenceKind
    images: ImageSet
    measurement: Measurement
    tolerance: Tolerance
    created: str
    versions: dict[str, str]
    among: int
    reasons: tuple[str, ...] = ()
    budget: Budget | None = None

    @property
    def passed(self) -> bool:
        """Whether it is a proof."""
        return not self.reasons

    @property
    def key(self) -> CandidateKey:
        """What it is about."""
        return CandidateKey(self.graph_sha256, self.runtime, self.precision, self.device)

    @property
    def runtime_version(self) -> str:
        """Version of the runtime, or "" if unknown."""
        return runtime_version(self.runtime, self.versions)

    @property
    def is_recorded(self) -> bool:
        """Whether it was compared with the few recorded golden answers: a self-test."""
        return self.reference_kind == "golden"

    def replaces(self, old: KeptVerdict) -> bool:
        """Whether only this one is kept: the last on at least as many images, or one that failed.

        Another version of the runtime is another thing to judge, and so is a self-test, which
        shows that files and runtime are whole, not how often decisions differ.
        """
        if (self.key, self.runtime_version, self.is_recorded) != (
            *(old.key, old.runtime_version),
            old.is_recorded,
        ):
            return False
        ours = self.images.kind == "photos", self.among
        theirs = old.images.kind == "photos", old.among
        return ours >= theirs or (old.passed and not self.passed)
