"""What is kept of a measurement that passed, and what it was measured on: frozen, without I/O."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from deploykit.parity.measurement import Measurement
from deploykit.parity.statistics import CONFIDENCE, upper_bound
from deploykit.parity.tolerance import Tolerance
from deploykit.specs.precision import Precision
from deploykit.specs.value import Value
from deploykit.system.versions import runtime_version

ProofKind: TypeAlias = Literal["rehearsed", "executed"]
PhotoKind: TypeAlias = Literal["photos", "golden", "generated"]
ReferenceKind: TypeAlias = Literal["module", "graph", "golden"]


#: Below FP32 a proof whose 95 % bound on the flip rate is above this decides nothing.
MOST_UNSEEN_FLIPS = 0.1
#: How many photos without a flip give that bound.
ENOUGH_PHOTOS = math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - MOST_UNSEEN_FLIPS))


def unseen_bound(found: Measurement, searched: int) -> float | None:
    """The 95 % bound of the flip rate over the photos that had no part in making a graph.

    To the others it was fitted. Which they are is not kept: every flip is taken to be of a photo
    that had none, and every photo that had one to be decidable.

    Args:
        found: On all photos.
        searched: How many of the different ones had a part.

    Returns:
        None without such a photo, and where the images are no blind sample of photos.
    """
    if searched == 0 or found.flip_rate_bound is None:
        return found.flip_rate_bound
    unseen = max(found.decidable - searched, 0)
    return upper_bound(min(found.flips, unseen), unseen)


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

        One by another version of the runtime, which is what runs now, may be on fewer images, on
        some that had a part in making the graph, or by the graph that was proven by the module.
        """
        if self.runtime_version != other.runtime_version:
            return self.strength[1:3] > other.strength[1:3]  # on photos, and not vague
        return self.strength > other.strength

    @property
    def flip_rate_bound(self) -> float | None:
        """See :func:`unseen_bound`; None where its images are no sample of photos."""
        if self.photos.kind != "photos":
            return None
        return unseen_bound(self.measurement, self.searched)

    @property
    def is_vague(self) -> bool:
        """Whether it is on too few photos to decide anything.

        FP32 gives the checkpoint's numbers but for rounding, which any image shows. What a lower
        precision does to decisions only photos show.
        """
        bound = self.flip_rate_bound
        return self.precision != "fp32" and (bound is None or bound > MOST_UNSEEN_FLIPS)

    @property
    def decides(self) -> bool:
        """Whether it is of a kind to go by unasked: no flip, on photos enough.

        The recorded golden answers are too few to decide by.
        """
        return self.reference_kind != "golden" and not (self.measurement.flips or self.is_vague)

    @property
    def strength(self) -> tuple[bool, bool, bool, bool, int]:
        """Proofs in order of what they show.

        By the module, on photos, on enough of them that had no part in making the graph, on none
        that had, on many different ones that had not.
        """
        return (
            self.reference_kind == "module",
            self.photos.kind == "photos",
            not self.is_vague,
            self.searched == 0,
            self.measurement.distinct - self.searched,
        )


class Refutation(Value, frozen=True):
    """A comparison on photos whose numbers broke the tolerance.

    What passes on other photos later is no proof: it would fail on these again.

    Attributes:
        graph: The candidate's graph or engine.
        graph_sha256: Of it when it was measured.
        runtime: What executed it.
        runtime_version: Of that; another one may do better.
        device: On which device.
        precision: The candidate's precision.
        photos: The images.
        failed: Those that broke it, the worst of them, each the start of its pixels' SHA-256.
        objections: What broke it, a sentence each.
        created: When, UTC, ISO 8601.
    """

    graph: str
    graph_sha256: str
    runtime: str
    runtime_version: str
    device: str
    precision: Precision
    photos: PhotoSet
    failed: tuple[str, ...]
    objections: tuple[str, ...]
    created: str

    def refutes(self, proof: Proof) -> bool:
        """Whether it is of the very thing that a proof, which did not see these photos, is of."""
        return (
            *(self.graph, self.graph_sha256, self.runtime, self.runtime_version, self.device),
            self.precision,
        ) == (
            *(proof.graph, proof.graph_sha256, proof.runtime, proof.runtime_version, proof.device),
            proof.precision,
        )
