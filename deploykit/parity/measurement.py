"""What a comparison found: numbers and no opinion, frozen, without any I/O."""

from __future__ import annotations

from typing import Literal

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


class Measurement(Value, frozen=True, omit_defaults=True):
    """A candidate's logits compared with the reference's, image by image.

    Attributes:
        images: The number of images compared.
        batch_sizes: The sizes of the batches that the images were run in, ascending.
        scale: The largest absolute reference logit; relative errors are relative to it.
        max_abs_error: The largest absolute difference of a logit.
        flips: Images whose decision differs although their margin decides.
        undecidable: Images whose margin is too small to decide, flipped or not.
        flipped: Every image whose decision differs, smallest margin last.
        max_probability_change: The largest absolute difference of a probability.
        rms_probability_change: The root mean square, over the images, of an image's largest change
            of a probability: unlike the largest of all it hardly depends on which images there are.
        non_finite: The number of NaN or infinite logits, on both sides together.
        flip_rate_bound: The one-sided 95 % upper bound of the flip rate (Clopper-Pearson) over the
            decidable images; None without any, and where the images are no blind sample of photos.
        classes: How many different decisions the reference makes.
        spread: The most by which the reference's probability of a class differs between two of the
            images: near 0 its answers hardly depend on the image.
        decided: What a decision is for: a ``class``, or any number of ``labels``.
    """

    images: int
    batch_sizes: tuple[int, ...]
    scale: float
    max_abs_error: float
    flips: int
    undecidable: int
    flipped: tuple[Flip, ...]
    max_probability_change: float
    rms_probability_change: float
    non_finite: int
    flip_rate_bound: float | None
    classes: int
    spread: float
    decided: Literal["class", "labels"] = "class"

    @property
    def decision(self) -> str:
        """What an image is given, with an article: ``class``, ``set of labels``."""
        return "class" if self.decided == "class" else f"set of {self.decided}"

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
        """Images whose decision differs and whose margin does not decide."""
        return sum(not flip.decidable for flip in self.flipped)

    @property
    def flip_rate(self) -> float:
        """Flips for each decidable image; 1 when there is none."""
        return self.flips / self.decidable if self.decidable else 1.0
