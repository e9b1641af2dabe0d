"""Latency against images/s as a picture in logarithmic coordinates, and what nothing else beats.

A point is an option at a batch size, its session alone. Of two points one beats the other where it
answers sooner and computes more; those that none beats are the Pareto front.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, TypeAlias

from deploykit.commands.bench.results import Measured
from deploykit.commands.bench.timings import Timing

Kind: TypeAlias = Literal["proven", "open", "refused", "compared"]
"""How a point is drawn: proven; not proven; known to break its tolerance, or to have changed
decisions; or there to be compared with, because a prediction cannot take it."""


@dataclass(frozen=True)
class Frame:
    """The box that the picture is drawn in, and where in it the axes are."""

    width: int = 640
    height: int = 420
    left: int = 74
    right: int = 626
    top: int = 14
    bottom: int = 366


FRAME = Frame()

_STEPS = (1, 2, 5)
#: Of a letter of a label, on average.
_LETTER_WIDTH = 6.4
_LABEL_HEIGHT = 14
_LABEL_OFFSETS = (-10, 19, -25, 34, -40, 49)


@dataclass(frozen=True)
class Dot:
    """An option at a batch size, in the picture's coordinates.

    Attributes:
        x: Of its median latency.
        y: Of its images/s.
        kind: How it is drawn.
        title: All that it stands for, in words.
        label: What stands beside it; empty for nothing.
        label_x: Where the middle of that stands.
        label_y: Where its foot stands.
    """

    x: float
    y: float
    kind: Kind
    title: str
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0


@dataclass(frozen=True)
class Mark:
    """A tick of an axis: where it is, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Pareto:
    """The picture's parts, in the coordinates of its frame.

    Attributes:
        dots: Every option at every batch size.
        lines: What joins an option's, as SVG's ``points``, and how they are drawn.
        front: What joins those that are proven and that no other proven one beats.
        x_marks: Of the latency in milliseconds.
        y_marks: Of the images/s.
    """

    dots: tuple[Dot, ...]
    lines: tuple[tuple[str, Kind], ...]
    front: str
    x_marks: tuple[Mark, ...]
    y_marks: tuple[Mark, ...]


def kind_of(measured: Measured) -> Kind:
    """How an option is drawn."""
    if not measured.option.is_deployable:
        return "compared"
    if measured.standing == "proven":
        return "proven"
    return "open" if measured.standing == "unproven" else "refused"


def pareto_of(options: Sequence[Measured]) -> Pareto | None:
    """Draw options; None where no session ran alone."""
    points = [(measured, timing) for measured in options for timing in measured.timings]
    if not points:
        return None
    x = _Axis.over([timing.median_ms for _, timing in points], FRAME.left, FRAME.right)
    y = _Axis.over([timing.images_per_second for _, timing in points], FRAME.bottom, FRAME.top)
    front = front_of(points)
    dots = [
        Dot(
            x.at(timing.median_ms),
            y.at(timing.images_per_second),
            kind_of(measured),
            _title(measured, timing),
        )
        for measured, timing in points
    ]
    return Pareto(
        dots=tuple(_labelled(dots, options)),
        lines=tuple(
            (_path([(x.at(t.median_ms), y.at(t.images_per_second)) for t in each.timings]), kind)
            for each, kind in ((each, kind_of(each)) for each in options)
        ),
        front=_path([(dots[i].x, dots[i].y) for i in front]),
        x_marks=x.marks(),
        y_marks=y.marks(),
    )


def front_of(points: Sequence[tuple[Measured, Timing]]) -> list[int]:
    """The proven points that no proven one beats: their places, the lowest latency first."""
    proven = [i for i, (measured, _) in enumerate(points) if kind_of(measured) == "proven"]
    front: list[int] = []
    most = 0.0
    for i in sorted(proven, key=lambda i: (points[i][1].median_ms, -_rate(points[i]))):
        if _rate(points[i]) > most:
            front.append(i)
            most = _rate(points[i])
    return front


def _rate(point: tuple[Measured, Timing]) -> float:
    return point[1].images_per_second


def _title(measured: Measured, timing: Timing) -> str:
    return (
        f"{measured.option.name}, batch {timing.batch}: {timing.median_ms:.1f} ms, "
        f"{timing.images_per_second:.1f} images/s"
    )


def _labelled(dots: Sequence[Dot], options: Sequence[Measured]) -> Iterator[Dot]:
    """Write each option's name beside its fastest point, where there is room."""
    taken: list[tuple[float, float, float]] = []
    rest = iter(dots)
    for measured in options:
        own = list(islice(rest, len(measured.timings)))
        fastest = min(own, key=lambda dot: dot.y, default=None)
        for dot in own:
            yield dot if dot is not fastest else _with_label(dot, measured.option.name, taken)


def _with_label(dot: Dot, text: str, taken: list[tuple[float, float, float]]) -> Dot:
    """Put a text above a point or below it, where it covers none of the texts so far.

    Args:
        dot: The point.
        text: What to write.
        taken: From where to where the texts so far reach, and how high they stand; this one too
            when the function returns.
    """
    width = _LETTER_WIDTH * len(text)
    middle = min(max(dot.x, FRAME.left + width / 2 + 4), FRAME.right - width / 2)
    start, end = middle - width / 2, middle + width / 2
    free = (
        dot.y + offset
        for offset in _LABEL_OFFSETS
        if not any(
            start < right and left < end and abs(dot.y + offset - height) < _LABEL_HEIGHT
            for left, right, height in taken
        )
    )
    height = next(free, dot.y + _LABEL_OFFSETS[0])
    taken.append((start, end, height))
    return replace(dot, label=text, label_x=round(middle, 1), label_y=round(height, 1))


def _path(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis from a value to another, between two places of the picture."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        """An axis that shows values with some room around them."""
        return cls(min(values) / 1.3, max(values) * 1.3, start, end)

    def at(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + part * (self.end - self.start), 1)

    def marks(self) -> tuple[Mark, ...]:
        """One, two and five times the powers of ten; of a long axis the powers alone."""
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = _STEPS if math.log10(self.high / self.low) < 3 else _STEPS[:1]
        values = [step * 10.0**exponent for exponent in exponents for step in steps]
        return tuple(
            Mark(self.at(value), f"{value:g}") for value in values if self.low <= value <= self.high
        )
