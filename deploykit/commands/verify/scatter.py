"""Each image's margin against how far its logits moved, as a picture in logarithmic coordinates.

Where every logit moved by at most d, two of them came closer by at most 2 d, and one came closer to
its threshold by at most d: an image whose margin is larger than that cannot have changed its
decision. In the picture, that is a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deploykit.parity.measures import decides
from deploykit.specs.heads import BaseHead
from deploykit.specs.model import Precision
from deploykit.specs.session import Logits

LEFT, RIGHT, TOP, BOTTOM = 78, 546, 12, 346

#: So many images are drawn: of more, those that changed or came nearest.
MOST_POINTS = 1200
_MOST_TICKS = 7
#: Smaller parts of the largest value than these are drawn at the edge.
_MARGIN_DECADES, _CHANGE_DECADES = 6, 9


@dataclass(frozen=True)
class Movement:
    """How near an image came to another decision.

    Attributes:
        index: Its place among the answers.
        margin: The reference's.
        change: The largest absolute difference of a logit.
        flipped: Whether its decision changed.
        decidable: Whether the margin is large enough for the decision to mean something.
        reach: How many times the change a margin may lose.
    """

    index: int
    margin: float
    change: float
    flipped: bool
    decidable: bool = True
    reach: int = 2

    @property
    def kind(self) -> Literal["safe", "close", "flipped"]:
        """``flipped``; else ``close`` where a change as large could flip it; else ``safe``."""
        if self.flipped:
            return "flipped"
        return "safe" if self.reach * self.change < self.margin else "close"

    @property
    def room(self) -> float:
        """How many times further its logits would have to move before its decision could change."""
        return self.margin / (self.reach * self.change) if self.change > 0 else math.inf


@dataclass(frozen=True)
class Scatter:
    """The picture's parts, in the coordinates of a box of 560 by 400.

    Attributes:
        points: The x and y of each image that is drawn, and the image, by ascending margin.
        x_ticks: Of the margin: the x and the exponent of each power of ten.
        y_ticks: Of the change.
        line: Where a flip becomes possible: x and y of both ends.
        allowed: The y of the largest change that is allowed; None for any.
    """

    points: tuple[tuple[float, float, Movement], ...]
    x_ticks: tuple[tuple[float, int], ...]
    y_ticks: tuple[tuple[float, int], ...]
    line: tuple[float, float, float, float]
    allowed: float | None


def movements(
    reference: Logits, candidate: Logits, head: BaseHead, precision: Precision
) -> list[Movement]:
    """How every image moved of which both sides' logits, (N, L), are finite numbers.

    Args:
        reference: (N, L).
        candidate: (N, L).
        head: What the logits mean.
        precision: The candidate's.
    """
    places = np.flatnonzero(np.isfinite(reference).all(axis=1) & np.isfinite(candidate).all(axis=1))
    if not places.size:
        return []
    ours, theirs = reference[places].astype(np.float64), candidate[places].astype(np.float64)
    columns = (
        places.tolist(),
        head.margins(ours).tolist(),
        np.abs(theirs - ours).max(axis=1).tolist(),
        (head.decide(ours) != head.decide(theirs)).any(axis=1).tolist(),
        decides(ours, head, precision).tolist(),
    )
    return [Movement(*row, head.reach) for row in zip(*columns, strict=True)]


def scatter_of(images: Sequence[Movement], allowed: float | None) -> Scatter | None:
    """Draw images.

    Args:
        images: See :func:`movements`.
        allowed: The largest change of a logit that is allowed; None for any.

    Returns:
        The picture; None where no logit moved or no margin is above zero, which needs none.
    """
    positive = [each.margin for each in images if each.margin > 0]
    changes = [each.change for each in images if each.change > 0]
    if not positive or not changes:
        return None
    x = _Axis.over(positive, _MARGIN_DECADES, LEFT, RIGHT)
    # The lines have to be seen, however far from them the images are.
    seen = [*changes, 10.0**x.last / 2, *([allowed] if allowed else [])]
    y = _Axis.over(seen, _CHANGE_DECADES, BOTTOM, TOP)
    drawn = sorted(images, key=lambda each: (not each.flipped, each.room))[:MOST_POINTS]
    drawn.sort(key=lambda each: each.margin)
    # Both ends of margin = reach * change.
    reach = images[0].reach
    low, high = max(10.0**x.first, reach * 10.0**y.first), 10.0**x.last
    return Scatter(
        points=tuple((x.at(each.margin), y.at(each.change), each) for each in drawn),
        x_ticks=x.ticks(),
        y_ticks=y.ticks(),
        line=(x.at(low), y.at(low / reach), x.at(high), y.at(high / reach)),
        allowed=y.at(allowed) if allowed else None,
    )


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis: whole powers of ten from ``first`` to ``last``, between two places."""

    first: int
    last: int
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], decades: int, start: float, end: float) -> _Axis:
        last = math.ceil(math.log10(max(values)))
        first = max(math.floor(math.log10(min(values))), last - decades)
        return cls(min(first, last - 1), last, start, end)

    def at(self, value: float) -> float:
        """Where a value is; at the edge when it is beyond."""
        exponent = math.log10(value) if value > 0 else self.first
        part = (exponent - self.first) / (self.last - self.first)
        return round(self.start + min(max(part, 0.0), 1.0) * (self.end - self.start), 1)

    def ticks(self) -> tuple[tuple[float, int], ...]:
        step = math.ceil((self.last - self.first) / _MOST_TICKS)
        exponents = range(self.last, self.first - 1, -step)
        return tuple((self.at(10.0**exponent), exponent) for exponent in exponents)
