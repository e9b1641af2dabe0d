"""Latency against images/s as a picture in logarithmic coordinates, and what nothing else beats.

A point is an option at a batch size, its session alone. Of two points one beats the other where it
answers sooner and computes more; those that none beats are the Pareto front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deploykit.commands.bench.results import Measured, Standing, Timing


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
    """

    x: float
    y: float
    kind: Standing
    title: str


@dataclass(frozen=True)
class Text:
    """A label or an axis's number: the middle of its foot, and what it says."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Picture:
    """The picture's parts, in the coordinates of its frame.

    Attributes:
        dots: Every option at every batch size.
        labels: An option's name at its fastest dot.
        lines: What joins an option's dots, as SVG's ``points``, and how they are drawn.
        front: What joins those that are proven and that no other proven one beats.
        x_marks: Of the latency in milliseconds.
        y_marks: Of the images/s.
    """

    dots: tuple[Dot, ...]
    labels: tuple[Text, ...]
    lines: tuple[tuple[str, Standing], ...]
    front: str
    x_marks: tuple[Text, ...]
    y_marks: tuple[Text, ...]


def kind_of(measured: Measured) -> Standing:
    """How an option is drawn: by its standing, unless it is only compared with."""
    return measured.standing if measured.option.is_deployable else "reference"


def draw_options(options: Sequence[Measured]) -> Picture | None:
    """Draw options; None where no session ran alone."""
    timings = [timing for measured in options for timing in measured.timings]
    if not timings:
        return None
    x = _Axis.over([timing.median_ms for timing in timings], FRAME.left, FRAME.right)
    y = _Axis.over([timing.images_per_second for timing in timings], FRAME.bottom, FRAME.top)
    dots: list[Dot] = []
    labels: list[Text] = []
    lines: list[tuple[str, Standing]] = []
    proven: list[tuple[Timing, Dot]] = []
    for measured in options:
        kind = kind_of(measured)
        own = [
            Dot(
                x.at(timing.median_ms),
                y.at(timing.images_per_second),
                kind,
                f"{measured.option.name}, batch {timing.batch}: {timing.median_ms:.1f} ms, "
                f"{timing.images_per_second:.1f} images/s",
            )
            for timing in measured.timings
        ]
        dots += own
        lines.append((_points(own), kind))
        if own:
            labels.append(_label(min(own, key=lambda dot: dot.y), measured.option.name, labels))
        if kind == "proven":
            proven += zip(measured.timings, own, strict=True)
    return Picture(
        dots=tuple(dots),
        labels=tuple(labels),
        lines=tuple(lines),
        front=_points(_front(proven)),
        x_marks=tuple(Text(at, FRAME.bottom + 18, text) for at, text in x.marks()),
        y_marks=tuple(Text(FRAME.left - 8, at + 4, text) for at, text in y.marks()),
    )


def _front(proven: Sequence[tuple[Timing, Dot]]) -> list[Dot]:
    """The points that none beats, the lowest latency first."""
    front, most = [], 0.0
    for timing, dot in sorted(proven, key=lambda p: (p[0].median_ms, -p[0].images_per_second)):
        if timing.images_per_second > most:
            front.append(dot)
            most = timing.images_per_second
    return front


def _label(dot: Dot, text: str, others: Sequence[Text]) -> Text:
    """A text above a point or below it, where it covers none of the others."""
    half = _LETTER_WIDTH * len(text) / 2
    middle = min(max(dot.x, FRAME.left + half + 4), FRAME.right - half)
    heights = [round(dot.y + offset, 1) for offset in _LABEL_OFFSETS]
    free = (
        height
        for height in heights
        if not any(
            abs(middle - other.x) < half + _LETTER_WIDTH * len(other.text) / 2
            and abs(height - other.y) < _LABEL_HEIGHT
            for other in others
        )
    )
    return Text(round(middle, 1), next(free, heights[0]), text)


def _points(dots: Sequence[Dot]) -> str:
    return " ".join(f"{dot.x:g},{dot.y:g}" for dot in dots)


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

    def marks(self) -> list[tuple[float, str]]:
        """One, two and five times the powers of ten; of a long axis the powers alone."""
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if math.log10(self.high / self.low) < 3 else (1,)
        values = [step * 10.0**exponent for exponent in exponents for step in steps]
        return [
            (self.at(value), f"{value:g}") for value in values if self.low <= value <= self.high
        ]
