"""What a measurement may show and still pass: chosen by precision, judged after it was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Self

import msgspec

from deploykit.parity.budget import Budget
from deploykit.parity.measurement import Measurement
from deploykit.parity.statistics import CONFIDENCE
from deploykit.specs.model import Precision
from deploykit.specs.session import Given
from deploykit.specs.value import Value
from deploykit.system.text import counted

#: Below FP32 a proof counts if its bound on the flip rate, at 95 % confidence, is at most this.
MAX_FLIP_RATE_BOUND = 0.1
#: How many decidable images without a flip give that bound; of fewer labelled ones no accuracy is
#: told.
MIN_IMAGES = math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - MAX_FLIP_RATE_BOUND))
#: Rounding turns few undecidable decisions: a candidate may flip this part of all images,
#: or one, without a margin that decides.
MAX_UNDECIDABLE_FLIP_RATE = 0.01
#: A reference that decides fewer images than this part shows nothing about decisions.
MIN_DECIDABLE_RATE = 0.5


class Population(Value, frozen=True):
    """The images over which rates are judged.

    Attributes:
        images: How many there are.
        undecidable: Those whose margin is too small to decide in the candidate's precision.
        others_hold: Whether those that were not measured are shown to keep their decision: only
            then are flips judged over all.
    """

    images: int
    undecidable: int
    others_hold: bool = True

    @classmethod
    def of(cls, measurement: Measurement) -> Self:
        """The measured images themselves."""
        return cls(images=measurement.images, undecidable=measurement.undecidable)

    @property
    def decidable(self) -> int:
        """The number of images whose margin decides."""
        return self.images - self.undecidable


class Tolerance(Value, frozen=True):
    """What a measurement may show and still pass.

    Attributes:
        max_flip_rate: Flips for each decidable image; None for any.
        max_relative_error: The largest logit error relative to the scale; None for any.
        max_probability_change: The 99th percentile of the images' changes of probability; None for
            any.
        max_accuracy_drop: By how many points the accuracy on the same labelled images may fall;
            None for any.
    """

    max_flip_rate: float | None
    max_relative_error: float | None = None
    max_probability_change: float | None = None
    max_accuracy_drop: float | None = None

    def part(self, share: float) -> Self:
        """What allows only a share of each of these."""
        limits = msgspec.structs.asdict(self).items()
        return type(self)(**{name: each and share * each for name, each in limits})

    def reasons(
        self, measurement: Measurement, population: Population | None = None
    ) -> tuple[str, ...]:
        """The reasons why a measurement does not pass, a sentence each; none when it passes.

        Args:
            measurement: What was found.
            population: What the images were chosen from by their margins; None if they were not.
        """
        return (
            *image_reasons(measurement, population),
            *self._unlabelled(measurement),
            *self.exceeded(measurement, population),
        )

    def _unlabelled(self, found: Measurement) -> Iterator[str]:
        """That the images do not show what is to be judged."""
        labelled = 0 if found.accuracy is None else found.accuracy.images
        if self.max_accuracy_drop is not None and labelled < MIN_IMAGES:
            yield (
                "its budget is a drop of accuracy, and the class is known of "
                f"{counted(labelled, 'image')}; {MIN_IMAGES} are the least"
            )

    def exceeded(
        self, measurement: Measurement, population: Population | None = None
    ) -> tuple[str, ...]:
        """The reasons that the numbers give, without those that the images show too little."""
        if measurement.non_finite:
            what = counted(measurement.non_finite, "logit is", "logits are")
            return (f"{what} NaN or infinite",)
        among = population or Population.of(measurement)
        return tuple(self._exceeded(measurement, among))

    def changes_too_many(self, found: Measurement, population: Population | None = None) -> bool:
        """Whether more decisions changed than may, those that are undecidable included."""
        return any(self._changed(found, population or Population.of(found)))

    def _exceeded(self, found: Measurement, among: Population) -> Iterator[str]:
        yield from self._changed(found, among)
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
            found.p99_probability_change <= self.max_probability_change
        ):
            yield (
                f"the 99th percentile of the changes of probability is "
                f"{found.p99_probability_change:.4f} (the largest "
                f"{found.max_probability_change:.4f}); at most {self.max_probability_change:g} is "
                "allowed"
            )
        change = found.accuracy
        if (
            self.max_accuracy_drop is not None
            and change is not None
            and not (change.drop <= self.max_accuracy_drop)
        ):
            yield (
                f"the {change.name} fell by {change.drop:.3g} points on "
                f"{counted(change.images, 'labelled image')}; at most "
                f"{self.max_accuracy_drop:.3g} is allowed"
            )

    def _changed(self, found: Measurement, among: Population) -> Iterator[str]:
        if self.max_flip_rate is None:
            return
        judged = max(among.decidable if among.others_hold else 0, found.decidable)
        if found.flips and found.flips / judged > self.max_flip_rate:
            yield (
                f"{found.flips} of {counted(judged, 'image')} changed their {found.decided}; "
                f"at most {100 * self.max_flip_rate:.3g}% may"
            )
        images = max(among.images if among.others_hold else 0, found.images)
        # Where the reference decides too little, that speaks against the images.
        rate = max(MAX_UNDECIDABLE_FLIP_RATE, self.max_flip_rate)
        if _is_decided(among) and found.undecidable_flips > max(1, rate * images):
            yield (
                f"{found.undecidable_flips} of {counted(images, 'image')} changed their "
                f"{found.decided} with a margin too small to decide; at most "
                f"{100 * rate:.3g}% may"
            )


def image_reasons(found: Measurement, population: Population | None = None) -> Iterator[str]:
    """Why images show too little about decisions, a sentence each.

    Args:
        found: What was measured.
        population: See :meth:`Tolerance.reasons`.
    """
    among = population or Population.of(found)
    if found.images == 0:
        yield "no image was compared"
    if found.images == 0 or found.non_finite:
        return
    if not _is_decided(among):
        yield (
            f"the reference does not decide {among.undecidable:,} of "
            f"{counted(among.images, 'image')}, whose margins are within rounding; it must decide "
            f"at least {MIN_DECIDABLE_RATE:.0%}"
        )


def _is_decided(among: Population) -> bool:
    return among.decidable >= MIN_DECIDABLE_RATE * among.images


_TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(max_flip_rate=0.0, max_relative_error=1e-4),
    "fp16": Tolerance(max_flip_rate=0.005, max_probability_change=0.02),
    # BF16 keeps 8 bits where FP16 keeps 11, and no node can be spared it: the same decisions, but
    # probabilities that may move more.
    "bf16": Tolerance(max_flip_rate=0.005, max_probability_change=0.05),
    "int8": Tolerance(max_flip_rate=0.01, max_probability_change=0.1),
}


#: Where there are no logits: a logit that is off by 1e-4 of a scale of 20 moves a probability by at
#: most half of that.
_FP32_PROBABILITIES = 1e-3


def tolerance_for(
    precision: Precision, budget: Budget | None = None, gives: Given = "logits"
) -> Tolerance:
    """What is allowed of a precision, or what the user allows instead.

    Nobody can allow more of FP32, except of a table, of which nobody knows how it was computed.

    Args:
        precision: The candidate's.
        budget: What the user allows; None for what the precision allows.
        gives: What the candidate gives. What it does not give cannot be judged.
    """
    is_exact = precision == "fp32" and gives in ("logits", "probabilities")
    if budget is None or is_exact:
        allowed = _TOLERANCES[precision]
        if gives == "logits":
            return allowed
        change = None
        if gives != "decisions":
            change = allowed.max_probability_change or _FP32_PROBABILITIES
        return Tolerance(max_flip_rate=allowed.max_flip_rate, max_probability_change=change)
    return Tolerance(max_flip_rate=budget.max_flip_rate, max_accuracy_drop=budget.max_accuracy_drop)
