"""What a comparison found, what is allowed, and what is kept of it: frozen values, without any I/O.

A :class:`Measurement` is numbers and no opinion. A :class:`Tolerance` is chosen by precision. A
:class:`Proof` is a measurement that passed, with what it was measured on; the manifest keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self, TypeAlias

from deploykit.errors import UsageError
from deploykit.specs import Precision, Value

ProofKind: TypeAlias = Literal["rehearsed", "executed"]
PhotoKind: TypeAlias = Literal["photos", "golden", "generated"]
ReferenceKind: TypeAlias = Literal["module", "graph", "golden"]
#: Below this part of the scale a margin is too small for the top-1 class to mean anything.
UNDECIDABLE_MARGIN: dict[Precision, float] = {
    "fp32": 1e-4,
    "fp16": 5e-3,
    "bf16": 5e-3,
    "int8": 5e-3,
}

#: At or below this part of the scale even the reference does not decide.
NEAR_TIE_MARGIN = UNDECIDABLE_MARGIN["fp32"]
#: A comparison with more near ties, or with more undecidable images that changed their class, than
#: this shows nothing about decisions.
MAX_UNDECIDABLE_RATE = 0.05
#: Nor does a comparison of which fewer images than this part decide anything.
MIN_DECIDABLE_RATE = 0.5


class Flip(Value, frozen=True):
    """An image whose top-1 class differs between reference and candidate.

    Attributes:
        path: The image's name.
        reference: The reference's top-1 label.
        candidate: The candidate's top-1 label.
        margin: The reference's top-1 logit minus its top-2 logit.
        decidable: Whether the margin is large enough for the flip to count.
    """

    path: str
    reference: str
    candidate: str
    margin: float
    decidable: bool


class Measurement(Value, frozen=True):
    """A candidate's logits compared with the reference's, image by image.

    Attributes:
        images: n, the number of images compared.
        batch_sizes: The sizes of the batches that the images were run in, ascending.
        scale: The largest absolute reference logit; relative errors are relative to it.
        max_abs_error: The largest absolute difference of a logit.
        mean_abs_error: The mean absolute difference of the logits.
        min_cosine: The smallest cosine similarity of an image's two logit vectors.
        flips: Images whose top-1 class differs although their margin decides.
        undecidable: Images whose margin is too small to decide, flipped or not.
        near_ties: Images whose margin is so small that the reference itself does not decide.
        flipped: Every image whose top-1 class differs, smallest margin last.
        max_probability_change: The largest absolute difference of a softmax probability.
        mean_probability_change: The mean absolute difference of the softmax probabilities.
        non_finite: The number of NaN or infinite logits, on both sides together.
        flip_rate_bound: The one-sided 95 % upper bound of the flip rate (Clopper-Pearson) over the
            decidable images; None without any, and where the images are no blind sample of photos.
    """

    images: int
    batch_sizes: tuple[int, ...]
    scale: float
    max_abs_error: float
    mean_abs_error: float
    min_cosine: float
    flips: int
    undecidable: int
    near_ties: int
    flipped: tuple[Flip, ...]
    max_probability_change: float
    mean_probability_change: float
    non_finite: int
    flip_rate_bound: float | None

    @property
    def max_relative_error(self) -> float:
        """The largest absolute difference of a logit, relative to the scale."""
        return self.max_abs_error / self.scale if self.scale > 0 else float("inf")

    @property
    def decidable(self) -> int:
        """The number of images whose margin decides."""
        return self.images - self.undecidable

    @property
    def undecidable_flips(self) -> int:
        """Images whose top-1 class differs and whose margin does not decide."""
        return sum(not flip.decidable for flip in self.flipped)

    @property
    def flip_rate(self) -> float:
        """Flips for each decidable image; 1 when there is none."""
        return self.flips / self.decidable if self.decidable else 1.0


class Population(Value, frozen=True):
    """The images over which rates are judged.

    Attributes:
        images: How many there are.
        undecidable: Those whose margin is too small to decide in the candidate's precision.
        near_ties: Those whose margin is so small that the reference itself does not decide.
        others_hold: Whether those that were not measured are shown to keep their class: only then
            are flips judged over all.
    """

    images: int
    undecidable: int
    near_ties: int
    others_hold: bool = True

    @classmethod
    def of(cls, measurement: Measurement) -> Self:
        """The measured images themselves."""
        return cls(measurement.images, measurement.undecidable, measurement.near_ties)

    @property
    def decidable(self) -> int:
        """The number of images whose margin decides."""
        return self.images - self.undecidable


class Tolerance(Value, frozen=True):
    """What a measurement may show and still pass.

    Attributes:
        max_flip_rate: Flips for each decidable image.
        max_relative_error: The largest logit error relative to the scale; None for any.
        max_probability_change: The largest change of a probability; None for any.
    """

    max_flip_rate: float
    max_relative_error: float | None = None
    max_probability_change: float | None = None

    def objections(
        self, measurement: Measurement, chosen_from: Population | None = None
    ) -> tuple[str, ...]:
        """Say what speaks against a measurement, a sentence each; nothing when it passes.

        Args:
            measurement: What was found.
            chosen_from: What the images were chosen from by their margins, if they were.
        """
        among = chosen_from or Population.of(measurement)
        return (*_doubts(measurement, among), *self.breaches(measurement, among))

    def breaches(
        self, measurement: Measurement, chosen_from: Population | None = None
    ) -> tuple[str, ...]:
        """Those of the objections that the numbers themselves give; the others are doubts."""
        if measurement.non_finite:
            return (f"{measurement.non_finite} logits are NaN or infinite",)
        among = chosen_from or Population.of(measurement)
        return (
            *self._objections_to_flips(measurement, among),
            *self._objections_to_errors(measurement),
        )

    def _objections_to_flips(self, found: Measurement, among: Population) -> Iterator[str]:
        judged = max(among.decidable if among.others_hold else 0, found.decidable)
        if found.flips and found.flips / judged > self.max_flip_rate:
            yield (
                f"{found.flips} of {judged} images changed their class; "
                f"at most {self.max_flip_rate:.1%} may"
            )

    def _objections_to_errors(self, found: Measurement) -> Iterator[str]:
        if found.max_abs_error == 0:
            return  # of logits that are all zero the relative error is infinite all the same
        # Written so that an error which is not a number is refused as well.
        if self.max_relative_error is not None and not (
            found.max_relative_error <= self.max_relative_error
        ):
            yield (
                f"the largest logit error is {found.max_relative_error:.1e} of the scale; "
                f"at most {self.max_relative_error:.0e} is allowed"
            )
        if self.max_probability_change is not None and not (
            found.max_probability_change <= self.max_probability_change
        ):
            yield (
                f"a probability changed by {found.max_probability_change:.4f}; "
                f"at most {self.max_probability_change:g} is allowed"
            )


def _doubts(found: Measurement, among: Population) -> Iterator[str]:
    """Why images show too little about decisions, whatever the candidate answers."""
    if found.images == 0:
        yield "no image was compared"
    if found.images == 0 or found.non_finite:
        return
    if among.near_ties > MAX_UNDECIDABLE_RATE * among.images:
        yield (
            f"{among.near_ties} of {among.images} images have a margin of at most "
            f"{NEAR_TIE_MARGIN:.0e} of the scale, so that the reference does not decide them; "
            f"at most {MAX_UNDECIDABLE_RATE:.0%} may"
        )
    if among.decidable < MIN_DECIDABLE_RATE * among.images:
        yield (
            f"only {among.decidable} of {among.images} images have a margin that decides; "
            f"at least {MIN_DECIDABLE_RATE:.0%} must"
        )
    if found.undecidable_flips > MAX_UNDECIDABLE_RATE * among.images:
        yield (
            f"{found.undecidable_flips} of {among.images} images changed their class with a "
            f"margin too small to decide; at most {MAX_UNDECIDABLE_RATE:.0%} may"
        )


_TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(max_flip_rate=0.0, max_relative_error=1e-4),
    "fp16": Tolerance(max_flip_rate=0.005, max_probability_change=0.02),
    # BF16 keeps 8 bits where FP16 keeps 11, and no node can be spared it: the same decisions, but
    # probabilities that may move more.
    "bf16": Tolerance(max_flip_rate=0.005, max_probability_change=0.05),
    "int8": Tolerance(max_flip_rate=0.01, max_probability_change=0.1),
}


def tolerance_for(precision: Precision) -> Tolerance:
    """The default tolerance of a precision.

    Raises:
        UsageError: The precision has no default tolerance.
    """
    if precision not in _TOLERANCES:
        raise UsageError(f"There is no default tolerance for {precision}.")
    return _TOLERANCES[precision]


class PhotoSet(Value, frozen=True):
    """The images that something was measured on.

    Attributes:
        kind: The user's ``photos``, the bundle's ``golden`` ones, or ``generated``.
        source: The folder, as it was given; empty for golden and generated images.
        images: How many.
        sha256: Of the preprocessed pixels, in order, in lowercase hex.
    """

    kind: PhotoKind
    source: str
    images: int
    sha256: str


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
        """Proofs in order of what they show: by the module, on photos, on many."""
        return (
            self.reference_kind == "module",
            self.photos.kind == "photos",
            self.measurement.images,
        )
