"""Each photo's margin against how far its logits moved, as a picture in logarithmic coordinates.

Where every logit moved by at most d, two of them came closer by at most 2 d: a photo whose margin
is larger than that cannot have changed its class. In the picture, that is a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from deploykit.parity.measures import margins
from deploykit.specs.session import Logits

Kind: TypeAlias = Literal["safe", "close", "flipped"]

WIDTH, HEIGHT = 560, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 546, 12, 346

#: So many photos are all drawn; of more, those that matter, and the others as a density.
MOST_POINTS = 1200
_DRAWN_CLOSEST = 300
_CELL = 7
_SHADES = 4

_MOST_TICKS = 7
#: Smaller parts of the largest value than these are drawn at the edge.
_MARGIN_DECADES, _CHANGE_DECADES = 6, 9


@dataclass(frozen=True)
class Photo:
    """A photo's place among the answers, and how near it came to another class.

    Attributes:
        index: Its place.
        margin: Reference top-1 logit minus top-2 logit.
        change: The largest absolute difference of a logit.
        kind: ``flipped``; else ``close`` where a change as large could flip it; else ``safe``.
    """

    index: int
    margin: float
    change: float
    kind: Kind

    @property
    def room(self) -> float:
        """How many times further its logits would have to move before its class could change."""
        return self.margin / (2 * self.change) if self.change > 0 else math.inf


@dataclass(frozen=True)
class Point:
    """A photo in the picture's coordinates."""

    x: float
    y: float
    photo: Photo


@dataclass(frozen=True)
class Tick:
    """A power of ten on an axis: where it is, and its exponent."""

    at: float
    exponent: int


@dataclass(frozen=True)
class Scatter:
    """The picture's parts, in the coordinates of a box of ``WIDTH`` by ``HEIGHT``.

    Attributes:
        points: The photos that are drawn one by one, by ascending margin.
        shades: The others as SVG paths of small squares, from few photos a square to many.
        x_ticks: Of the margin.
        y_ticks: Of the change.
        line: Where a flip becomes possible: x and y of both ends.
        risk: The corners of what is above it, as SVG's ``points``.
        undecidable: Up to this x a margin is too small for the class to mean anything.
        allowed: The y of the largest change that is allowed; None for any.
    """

    points: tuple[Point, ...]
    shades: tuple[str, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    line: tuple[float, float, float, float]
    risk: str
    undecidable: float
    allowed: float | None


def compared_photos(reference: Logits, candidate: Logits) -> list[Photo]:
    """Every photo of which both sides' logits, (N, K), are finite numbers."""
    places = np.flatnonzero(np.isfinite(reference).all(axis=1) & np.isfinite(candidate).all(axis=1))
    if not places.size:
        return []
    ours, theirs = reference[places].astype(np.float64), candidate[places].astype(np.float64)
    columns = (
        places.tolist(),
        margins(ours).tolist(),
        np.abs(theirs - ours).max(axis=1).tolist(),
        (ours.argmax(axis=1) != theirs.argmax(axis=1)).tolist(),
    )
    return [
        Photo(index, margin, change, "flipped" if flipped else _kind(margin, change))
        for index, margin, change, flipped in zip(*columns, strict=True)
    ]


def _kind(margin: float, change: float) -> Kind:
    return "safe" if 2 * change < margin else "close"


def scatter_of(
    photos: Sequence[Photo], undecidable: float, allowed: float | None
) -> Scatter | None:
    """Draw photos.

    Args:
        photos: See :func:`compared_photos`.
        undecidable: The margin up to which a class means nothing.
        allowed: The largest change of a logit that is allowed; None for any.

    Returns:
        The picture; None where no logit moved or no margin is above zero, which needs none.
    """
    positive = [photo.margin for photo in photos if photo.margin > 0]
    changes = [photo.change for photo in photos if photo.change > 0]
    if not positive or not changes:
        return None
    x = _Axis.over(positive, _MARGIN_DECADES, LEFT, RIGHT)
    # The lines have to be seen, however far from them the photos are.
    seen = [*changes, 10.0**x.last / 2, *([allowed] if allowed else [])]
    y = _Axis.over(seen, _CHANGE_DECADES, BOTTOM, TOP)
    placed = sorted(
        (Point(x.at(photo.margin), y.at(photo.change), photo) for photo in photos),
        key=lambda point: point.photo.margin,
    )
    drawn = _drawn_one_by_one(placed)
    ends = _line(x, y)
    return Scatter(
        points=tuple(point for point in placed if point.photo.index in drawn),
        shades=_shades([point for point in placed if point.photo.index not in drawn]),
        x_ticks=x.ticks(),
        y_ticks=y.ticks(),
        line=ends,
        risk=_risk(*ends),
        undecidable=x.at(undecidable) if undecidable > 0 else LEFT,
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

    def ticks(self) -> tuple[Tick, ...]:
        step = math.ceil((self.last - self.first) / _MOST_TICKS)
        exponents = range(self.last, self.first - 1, -step)
        return tuple(Tick(self.at(10.0**exponent), exponent) for exponent in exponents)


def _line(x: _Axis, y: _Axis) -> tuple[float, float, float, float]:
    """Both ends of ``margin = 2 * change`` in the picture."""
    lowest = max(10.0**x.first, 2 * 10.0**y.first)
    highest = 10.0**x.last
    return x.at(lowest), y.at(lowest / 2), x.at(highest), y.at(highest / 2)


def _risk(x1: float, y1: float, x2: float, y2: float) -> str:
    corners = [(x1, y1), (x2, y2), (x2, TOP), (LEFT, TOP), (LEFT, y1)]
    return " ".join(f"{x:g},{y:g}" for x, y in corners)


def _drawn_one_by_one(points: Sequence[Point]) -> set[int]:
    if len(points) <= MOST_POINTS:
        return {point.photo.index for point in points}
    by_room = sorted(
        (point.photo for point in points), key=lambda photo: (photo.kind != "flipped", photo.room)
    )
    flips = sum(photo.kind == "flipped" for photo in by_room)
    return {photo.index for photo in by_room[: min(flips + _DRAWN_CLOSEST, MOST_POINTS)]}


def _shades(points: Sequence[Point]) -> tuple[str, ...]:
    if not points:
        return ()
    places = np.array([(point.x, point.y) for point in points])
    cells, counts = np.unique((places // _CELL).astype(int), axis=0, return_counts=True)
    shade = np.ceil(_SHADES * np.log1p(counts) / np.log1p(counts.max())).astype(int)
    square = f"h{_CELL - 1}v{_CELL - 1}h{1 - _CELL}z"
    return tuple(
        "".join(f"M{x} {y}{square}" for x, y in (cells[shade == level] * _CELL).tolist())
        for level in range(1, _SHADES + 1)
    )
