"""What is kept of a measurement that passed, and what it was measured on: frozen, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from deploykit.measurements import Measurement
from deploykit.specs import Precision, Value
from deploykit.tolerances import Tolerance

ProofKind: TypeAlias = Literal["rehearsed", "executed"]
PhotoKind: TypeAlias = Literal["photos", "golden", "generated"]
ReferenceKind: TypeAlias = Literal["module", "graph", "golden"]


#: ONNX Runtime has a package with the GPU's provider and one without; the CPU's is in both.
_PACKAGES = {
    "onnxruntime-cpu": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-cuda": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx",),
}
RUNTIME_PACKAGES = frozenset(package for packages in _PACKAGES.values() for package in packages)


def runtime_version(runtime: str, versions: Mapping[str, str]) -> str:
    """The version of a runtime among those of packages; empty where it is not among them."""
    found = {versions[package] for package in _PACKAGES.get(runtime, ()) if package in versions}
    return " and ".join(sorted(found))


#: Below FP32 a proof whose 95 % bound on the flip rate is above this decides nothing: that takes 29
#: photos without a flip.
MOST_UNSEEN_FLIPS = 0.1


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
        searched: How many of the images had a part in making the graph: in its calibration or in
            the search for its FP32 nodes.
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
    searched: int = 0

    @property
    def runtime_version(self) -> str:
        """Of what executed it; empty where that is not known."""
        return runtime_version(self.runtime, self.versions)

    def shows_more_than(self, other: Proof) -> bool:
        """Whether it stays when there is another of the same graph, runtime and device.

        One by another version of the runtime, which is what runs now, may be on fewer images, or
        by the graph that was proven by the module.
        """
        if self.runtime_version != other.runtime_version:
            return self.strength[1:3] > other.strength[1:3]  # neither the module nor numbers
        return self.strength > other.strength

    @property
    def is_vague(self) -> bool:
        """Whether it is on too few photos to decide anything.

        FP32 gives the checkpoint's numbers but for rounding, which any image shows. What a lower
        precision does to decisions only photos show.
        """
        bound = self.measurement.flip_rate_bound
        return self.precision != "fp32" and (bound is None or bound > MOST_UNSEEN_FLIPS)

    @property
    def strength(self) -> tuple[bool, bool, bool, int, bool]:
        """Proofs in order of what they show.

        By the module, on photos, on enough of them of which none had a part in making the graph, on
        many different ones that had not.
        """
        return (
            self.reference_kind == "module",
            self.photos.kind == "photos",
            self.searched == 0 and not self.is_vague,
            self.measurement.distinct - self.searched,
            self.searched == 0,
        )
