"""What a search that found nothing offers instead: the budget within which what it tried passes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from deploykit.commands.quantize.search import NodeSet
from deploykit.parity.budget import Budget
from deploykit.parity.measurement import Measurement
from deploykit.parity.tolerance import MIN_IMAGES, tolerance_for
from deploykit.proof.text import accuracy_change_text
from deploykit.proof.verdict import Verdict
from deploykit.system.text import counted, rate_digits

#: More flips than this, or more points of accuracy, are no offer, unless they were asked for.
_MOST_FLIPS, _MOST_POINTS = 0.2, 20.0


@dataclass(frozen=True)
class Offer:
    """A graph that was tried, and a budget within which it passes.

    Attributes:
        budget: The smallest, in whole percent and points.
        nodes: Those that the graph keeps in FP32.
        measurement: Of the graph.
    """

    budget: Budget
    nodes: NodeSet
    measurement: Measurement


def offers_of(
    failing: Iterable[tuple[NodeSet, Verdict]], asked: Budget | None, part: float
) -> list[Offer]:
    """The offer that allows least, and the one with the fewest nodes in FP32 if that is another.

    Args:
        failing: The graphs that were tried, as the nodes that they keep in FP32 and the verdicts.
        asked: The budget within which they failed; None for what the precision allows.
        part: The part of a budget that a search uses up.
    """
    found = []
    for keep, verdict in failing:
        if verdict.measurement.decidable < MIN_IMAGES:
            continue  # so few promise nothing, and would prove nothing
        budget = _least_budget(verdict.measurement, asked, part)
        rule = tolerance_for(verdict.candidate.precision, budget).part(part)
        if not (_is_beyond(budget, asked) or verdict.extremes or rule.reasons(verdict.measurement)):
            found.append(Offer(budget, keep, verdict.measurement))
    if not found:
        return []
    ends = min(found, key=_allows), min(found, key=lambda each: (len(each.nodes), *_allows(each)))
    return [*dict.fromkeys(ends)]


def offer_lines(
    offers: Sequence[Offer], name: str, where: str, speeds: Sequence[str]
) -> Iterator[str]:
    """A sentence for each offer, with what was measured.

    Args:
        offers: The offers.
        name: Of the precision: ``INT8``.
        where: Which images were measured: ``the search``.
        speeds: How fast each is, "" where that is not known.
    """
    for offer, speed in zip(offers, speeds, strict=True):
        found = offer.measurement
        rate = rate_digits(found.flip_rate)
        changed = f"{rate} % of the decisions changed ({found.flips} of {found.decidable})"
        beside = "" if found.accuracy is None else f"; {accuracy_change_text(found.accuracy)}"
        yield (
            f"{name} with {counted(len(offer.nodes), 'node')} in FP32 passes with "
            f"{' '.join(offer.budget.options)}: on the images of {where} {changed}{beside}{speed}."
        )


def speed_text(times_fp32: float | None, runtime: str) -> str:
    """``; 3.4 times as fast as FP32 on openvino``; "" where it is not known."""
    return "" if times_fp32 is None else f"; {times_fp32:.1f} times as fast as FP32 on {runtime}"


def _allows(offer: Offer) -> tuple[float, float, int]:
    return offer.budget.max_flip_rate or 0, offer.budget.max_accuracy_drop or 0, len(offer.nodes)


def _is_beyond(budget: Budget, asked: Budget | None) -> bool:
    """Whether a budget allows more than anybody would want."""
    flips, points = (asked.max_flip_rate, asked.max_accuracy_drop) if asked else (None, None)
    return (budget.max_flip_rate or 0) > max(_MOST_FLIPS, flips or 0) or (
        budget.max_accuracy_drop or 0
    ) > max(_MOST_POINTS, points or 0)


def _least_budget(found: Measurement, asked: Budget | None, part: float) -> Budget:
    """The smallest budget, of the kind that was asked for, else of flips; none below the asked."""
    rate, points = (0.0, None) if asked is None else (asked.max_flip_rate, asked.max_accuracy_drop)
    drop = 0.0 if found.accuracy is None else found.accuracy.drop
    flips, fall = _least(found.flip_rate, part, 100), _least(drop, part, 1)
    return Budget(
        max_flip_rate=None if rate is None else max(rate, min(100, flips) / 100),
        max_accuracy_drop=None if points is None else max(points, min(100, fall)),
    )


def _least(value: float, part: float, unit: int) -> int:
    """How many percent or points are at least needed, so that a part of them allows a value."""
    needed = max(1, math.ceil(round(unit * value / part, 9)))
    return needed if part * (needed / unit) >= value else needed + 1
