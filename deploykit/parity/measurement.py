"""What a comparison found: numbers and no opinion, frozen, without any I/O."""

from __future__ import annotations

import math
from typing import Literal

from deploykit.parity.statistics import paired_interval
from deploykit.specs.model import Precision
from deploykit.specs.value import Value

#: Up to this part of an image's own scale a margin is within the precision's rounding, so that the
#: decision means nothing; see :meth:`deploykit.specs.heads.BaseHead.relative_margins`.
UNDECIDABLE_MARGIN: dict[Precision, float] = {
    "fp32": 1e-4,
    "fp16": 5e-3,
    "bf16": 5e-3,
    "int8": 5e-3,
}


class Flip(Value, frozen=True):
    """An image whose decision differs between reference and candidate.

    Attributes:
        path: The image's name.
        reference: What the reference decided for: ``robin``; ``robin, crow``; ``none``.
        candidate: What the candidate decided for.
        margin: The reference's; see :meth:`deploykit.specs.heads.BaseHead.margins`.
        decidable: Whether what changed was clear enough for the flip to count.
    """

    path: str
    reference: str
    candidate: str
    margin: float
    decidable: bool


class AccuracyChange(Value, frozen=True):
    """How often reference and candidate are right on the same labelled images.

    Attributes:
        name: What reports call the part of the images that are given exactly their classes.
        images: How many images have known classes, at least 1.
        correct: On how many of them the reference is right.
        lost: On how many only the reference is.
        won: On how many only the candidate is.
    """

    name: Literal["accuracy", "exact match"]
    images: int
    correct: int
    lost: int
    won: int

    def __post_init__(self) -> None:
        wrong = self.images - self.correct
        if self.images < 1 or not (0 <= self.lost <= self.correct and 0 <= self.won <= wrong):
            raise ValueError(f"{self.lost} lost and {self.won} won of {self.images} images")

    @property
    def drop(self) -> float:
        """By how many points the candidate's accuracy is below the reference's."""
        return 100 * (self.lost - self.won) / self.images

    @property
    def drop_interval(self) -> tuple[float, float]:
        """The 95 % interval of the drop, in points; see :func:`paired_interval`."""
        low, high = paired_interval(self.lost, self.won, self.images)
        return 100 * low, 100 * high


class Measurement(Value, frozen=True, omit_defaults=True):
    """A candidate's logits compared with the reference's, image by image.

    Attributes:
        images: The number of images compared.
        batch_sizes: The sizes of the batches that the images were run in, ascending.
        scale: The largest absolute reference logit; relative errors are relative to it.
        max_abs_error: The largest absolute difference of a logit that is finite on both sides: a
            manifest cannot hold infinity. NaN where the candidate gives no logits.
        flips: Images whose decision differs although their margin decides.
        undecidable: Images whose margin is too small to decide, flipped or not.
        flipped: Every image whose decision differs, smallest margin last.
        max_probability_change: The largest absolute difference of a probability; this and the next
            are NaN where the candidate gives decisions alone.
        p99_probability_change: The 99th percentile, over the images, of an image's largest change
            of a probability: the smallest that at least 99 % of the images do not exceed (nearest
            rank, definition 1 of Hyndman and Fan, "Sample quantiles in statistical packages", The
            American Statistician 50 (1996)). Of fewer than 100 images it is the largest.
        non_finite: The number of NaN or infinite logits, on both sides together.
        flip_rate_bound: The one-sided 95 % upper bound of the flip rate (Clopper-Pearson) over the
            decidable images; None without any, and where the images are no blind sample of photos.
        classes: How many different decisions the reference makes.
        spread: The most by which the reference's probability of a class differs between two of the
            images: near 0 its answers hardly depend on the image.
        decided: What a decision is for: a ``class``, or any number of ``labels``.
        accuracy: Both sides' on the images of which the classes are known; None without any.
    """

    images: int
    batch_sizes: tuple[int, ...]
    scale: float
    max_abs_error: float
    flips: int
    undecidable: int
    flipped: tuple[Flip, ...]
    max_probability_change: float
    p99_probability_change: float
    non_finite: int
    flip_rate_bound: float | None
    classes: int
    spread: float
    decided: Literal["class", "labels"] = "class"
    accuracy: AccuracyChange | None = None

    @property
    def decision(self) -> str:
        """What an image is given, with an article: ``class``, ``set of labels``."""
        return "class" if self.decided == "class" else f"set of {self.decided}"

    @property
    def has_logits(self) -> bool:
        """Whether logits were compared."""
        return not math.isnan(self.max_abs_error)

    @property
    def has_probabilities(self) -> bool:
        """Whether probabilities were compared."""
        return not math.isnan(self.max_probability_change)

    @property
    def max_relative_error(self) -> float:
        """The largest absolute difference of a logit, relative to the scale; else infinite."""
        if not self.has_logits:
            return math.nan
        if self.non_finite or not self.scale > 0:
            return math.inf
        return self.max_abs_error / self.scale

    @property
    def decidable(self) -> int:
        """The number of images whose margin decides."""
        return self.images - self.undecidable

    @property
    def undecidable_flips(self) -> int:
        """Images whose decision differs and whose margin does not decide."""
        return sum(not flip.decidable for flip in self.flipped)

    @property
    def flip_rate(self) -> float:
        """Flips for each decidable image; 1 when there is none."""
        return self.flips / self.decidable if self.decidable else 1.0
