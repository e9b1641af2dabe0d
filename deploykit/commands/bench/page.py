"""The page of a benchmark: the recommendation first, then every candidate it was chosen from.

It has a chart of latency against images/s, in logarithmic coordinates. A dot is a candidate at a
batch size, its session alone. One dot beats another if it answers sooner and computes more; the
dots that none beats are the Pareto front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from deploykit.bundle.accepted import Accepted
from deploykit.commands.bench import text
from deploykit.commands.bench.results import NOTHING_PASSED, Benchmark, Measured, Timing
from deploykit.html import words
from deploykit.html.document import check_page, page_mark, render, write_document
from deploykit.proof.text import proof_words
from deploykit.system.files import remove_ours
from deploykit.system.text import counted

_STYLES = ("tiles.css", "tables.css", "verdict.css", "picture.css", "print.css", "bench.css")
_BADGES = {
    "proven": "good",
    "within budget": "warn",
    "failed": "bad",
    "unproven": "warn",
    "reference": "",
}

LEFT, RIGHT, TOP, BOTTOM = 92, 626, 14, 366
FRAME = dict(width=640, height=420, left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM)  # noqa: C408
#: Where a label may stand beside its dot: right, left, above, below, and further away.
_LABEL_OFFSETS = ((13, 5), (-13, 5), (0, -10), (0, 20), (13, -8), (-13, -8), (13, 18), (-13, 18))
#: Of a label in a narrow window, where letters are large.
_LABEL_SIZE = (14, 16)


def begin_bench_page(path: Path) -> None:
    """Check that the page can be written, and remove that of an earlier run.

    Raises:
        UsageError: See :func:`deploykit.html.document.check_page`.
    """
    check_page(path, "bench")
    remove_ours(path, page_mark("bench"))


def write_bench_page(path: Path, benchmark: Benchmark, accepted: Accepted | None) -> None:
    """Write the page; one that is there is replaced when the new one is whole.

    Args:
        path: The page.
        benchmark: What was measured.
        accepted: What was accepted; None for nothing.

    Raises:
        InputError: The system fails to write it: the disk may be full.
    """
    best = benchmark.recommended
    proof = None if best is None else best.proof
    rows = text.candidate_rows(benchmark)
    beside = ("candidate", "images/s", "range")
    context = {
        "benchmark": benchmark,
        "rows": [*zip(benchmark.measured, rows, strict=True)],
        "columns": [column for column in rows[0] if column not in beside],
        "created": datetime.fromisoformat(benchmark.created),
        "accepted": accepted,
        "recommended": best,
        "proof_sentences": proof_words(proof) if proof is not None else [],
        "fastest": max(max(each.rates) for each in benchmark.measured),
        "frame": FRAME,
        "chart": draw_chart(benchmark.measured),
        "badges": _BADGES,
        "css_class": css_class,
        "counted": counted,
        "text": text,
        "nothing": NOTHING_PASSED,
        "words": words,
        "stranger": words.stranger,
    }
    write_document(path, render(__package__, "bench.html.j2", _STYLES, (), context))


def css_class(measured: Measured) -> str:
    """How a candidate is drawn: by its status, unless it is only compared with."""
    return measured.word.replace(" ", "-") if measured.is_deployable else "reference"


class Dot(NamedTuple):
    """A candidate at a batch size, in the chart's coordinates."""

    x: float
    y: float
    css_class: str
    title: str


class Label(NamedTuple):
    """A text; x and y are the middle of its foot."""

    x: float
    y: float
    text: str


class Chart(NamedTuple):
    """The chart's parts.

    Attributes:
        dots: Every candidate at every batch size.
        labels: A candidate's place in the list, from 1, at its fastest dot.
        names: The list: the candidates that have dots, and how they are drawn.
        lines: What joins a candidate's dots, as SVG's ``points``, and how they are drawn.
        front: What joins the proven dots that no other proven one beats.
        x_marks: Of the latency in milliseconds.
        y_marks: Of the images/s.
    """

    dots: list[Dot]
    labels: list[Label]
    names: list[tuple[str, str]]
    lines: list[tuple[str, str]]
    front: str
    x_marks: list[Label]
    y_marks: list[Label]


def draw_chart(measured: Sequence[Measured]) -> Chart | None:
    """Draw candidates; None where no session ran alone."""
    timings = [timing for each in measured for timing in each.timings]
    if not timings:
        return None
    x = _Axis.over([timing.median_ms for timing in timings], LEFT, RIGHT)
    y = _Axis.over([timing.images_per_second for timing in timings], BOTTOM, TOP)
    x_marks = [Label(at, BOTTOM + 18, text) for at, text in x.marks()]
    y_marks = [Label(LEFT - 8, at + 4, text) for at, text in y.marks()]
    chart = Chart([], [], [], [], "", x_marks, y_marks)
    fastest: list[Dot] = []
    proven: list[tuple[Timing, Dot]] = []
    for each in measured:
        kind = css_class(each)
        dots = [
            Dot(
                x.at(timing.median_ms),
                y.at(timing.images_per_second),
                kind,
                f"{each.name}, batch {timing.batch}: {timing.median_ms:.1f} ms, "
                f"{timing.images_per_second:.1f} images/s",
            )
            for timing in each.timings
        ]
        chart.dots.extend(dots)
        chart.lines.append((_points(dots), kind))
        if dots:
            chart.names.append((each.name, kind))
            fastest.append(min(dots, key=lambda dot: dot.y))
        if kind == "proven":
            proven += zip(each.timings, dots, strict=True)
    for place, dot in enumerate(fastest, 1):
        chart.labels.append(_label(dot, str(place), [*chart.dots, *chart.labels]))
    front: list[Dot] = []
    most = 0.0
    for timing, dot in sorted(proven, key=lambda p: (p[0].median_ms, -p[0].images_per_second)):
        if timing.images_per_second > most:
            front.append(dot)
            most = timing.images_per_second
    return chart._replace(front=_points(front))


def _label(dot: Dot, text: str, others: Sequence[Dot | Label]) -> Label:
    """A text beside a dot, where it covers the fewest other dots and labels."""
    width, height = _LABEL_SIZE

    def covered(label: Label) -> int:
        middle = label.y - height / 3
        return sum(
            abs(label.x - other.x) < width
            and abs(middle - (other.y - height / 3 * isinstance(other, Label))) < height
            for other in others
            if other != dot
        )

    places = (Label(round(dot.x + x, 1), round(dot.y + y, 1), text) for x, y in _LABEL_OFFSETS)
    return min(places, key=covered)


def _points(dots: Sequence[Dot]) -> str:
    return " ".join(f"{dot.x:g},{dot.y:g}" for dot in dots)


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis from a value to another, between two places of the chart."""

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
