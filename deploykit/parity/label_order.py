"""Whether the labels stand in the order that the answers follow: told by a labelled folder."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deploykit.parity.significance import SIGNIFICANT, several, sign_test
from deploykit.specs.value import Value

_DIGITS = re.compile(r"(\d+)")
#: The orders in which programs list folders, by their names.
IMAGE_FOLDER, NATURAL, CASE_INSENSITIVE = (
    "sorted by code point, as ImageFolder does",
    "in natural order, 2 before 10",
    "sorted without regard to case",
)


class Reordering(Value, frozen=True):
    """Another order of the labels.

    Attributes:
        change: What is done otherwise, in words: ``dog and food exchanged``.
        names: The labels in that order.
        correct: Images that are right with it.
        chance: How likely an order that is no better would look as good; 1 where it makes images of
            one class only right.
        exchanges: Whether it is pairs that change places, for which the folders may be to blame as
            well.
    """

    change: str
    names: tuple[str, ...]
    correct: int
    chance: float
    exchanges: bool = False

    @property
    def significant(self) -> bool:
        """Whether it is more than chance."""
        return self.chance < SIGNIFICANT


def order_name(names: Sequence[str]) -> str | None:
    """Which of the usual orders names are in; None for none."""
    return next((name for name, order in usual_orders(names).items() if order == [*names]), None)


def usual_orders(names: Sequence[str]) -> dict[str, list[str]]:
    """Names in the orders in which programs list folders."""
    return {
        IMAGE_FOLDER: sorted(names),
        NATURAL: sorted(names, key=_natural_key),
        CASE_INSENSITIVE: sorted(names, key=lambda name: (name.casefold(), name)),
    }


def _natural_key(name: str) -> tuple[list[str | int], str]:
    """``class_10`` => ``class_``, 10: text and numbers alternate, so that like meets like."""
    parts = _DIGITS.split(name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def reorderings(
    answers: npt.NDArray[np.int64],
    truth: Sequence[str],
    names: tuple[str, ...],
    folder_names: Sequence[str],
) -> list[Reordering]:
    """Try the other orders that labels may have.

    Args:
        answers: (N,) the top-1 index of each image.
        truth: The N images' right names.
        names: The K labels in the recorded order.
        folder_names: The K classes as the folder has them, in any order.

    Returns:
        The usual orders of the folder's names but for the recorded one, and exchanged pairs; the
        best first.
    """
    right = np.array(truth)
    recorded = np.array(names)[answers] == right
    orders: dict[str, list[str]] = {}
    for change, order in usual_orders(folder_names).items():
        if order != [*names] and order not in orders.values():
            orders[change] = order
    hypotheses = len(orders)
    found = []
    for change, order in orders.items():
        correct = np.array(order)[answers] == right
        gained, lost = correct & ~recorded, recorded & ~correct
        chance = 1.0
        if several(right[gained].tolist()):
            chance = sign_test(int(gained.sum()), int(lost.sum()), hypotheses)
        found.append(
            Reordering(change=change, names=tuple(order), correct=int(correct.sum()), chance=chance)
        )
    exchanged = _exchanged(answers, right, names)
    if exchanged is not None:
        # Of labels in no usual order, two that are exchanged say more than a sorted rest.
        found.insert(len(found) if order_name(names) else 0, exchanged)
    return sorted(found, key=lambda each: -each.correct)


def doubtful_exchanges(
    answers: npt.NDArray[np.int64], truth: Sequence[str], names: tuple[str, ...]
) -> list[str]:
    """Say which labels look exchanged on images too few to tell it from chance.

    Args:
        answers: (N,) the top-1 index of each image.
        truth: The N images' right names.
        names: The K labels in the recorded order.

    Returns:
        ``dog and food`` for each two, the likeliest first.
    """
    pairs = _crossed_pairs(_confusion(answers, np.array(truth), names))
    return [
        f"{names[pair.one]} and {names[pair.other]}" for pair in pairs if pair.chance >= SIGNIFICANT
    ]


def _exchanged(
    answers: npt.NDArray[np.int64], right: npt.NDArray[np.str_], names: tuple[str, ...]
) -> Reordering | None:
    """The labels with those pairs exchanged that take each other's images; None for no pair."""
    pairs = [
        pair
        for pair in _crossed_pairs(_confusion(answers, right, names))
        if pair.chance < SIGNIFICANT
    ]
    if not pairs:
        return None
    order = list(names)
    for one, other, _ in pairs:
        order[one], order[other] = names[other], names[one]
    return Reordering(
        change=", ".join(f"{names[one]} and {names[other]} exchanged" for one, other, _ in pairs),
        names=tuple(order),
        correct=int((np.array(order)[answers] == right).sum()),
        chance=max(pair.chance for pair in pairs),
        exchanges=True,
    )


class _Pair(NamedTuple):
    """Two labels' places, and how likely it is that they look so exchanged by chance."""

    one: int
    other: int
    chance: float


def _crossed_pairs(counts: npt.NDArray[np.int64]) -> list[_Pair]:
    """The pairs of which each takes more of the other's images than of its own.

    Any two might look so: the chance is corrected for all pairs that there are.

    Args:
        counts: (K, K), how many images of each class (row) were given each label (column).

    Returns:
        The pairs, the surest first; no label is in two.
    """
    pairs = []
    for one, other in np.argwhere(np.triu(np.minimum(counts, counts.T), 1) > 0).tolist():
        if counts[one, other] > counts[one, one] and counts[other, one] > counts[other, other]:
            crossed = int(counts[one, other] + counts[other, one])
            straight = int(counts[one, one] + counts[other, other])
            chance = sign_test(crossed, straight, hypotheses=math.comb(len(counts), 2))
            pairs.append(_Pair(one, other, chance))
    taken: set[int] = set()
    surest = []
    for pair in sorted(pairs, key=lambda pair: pair.chance):
        if taken.isdisjoint((pair.one, pair.other)):
            taken.update((pair.one, pair.other))
            surest.append(pair)
    return surest


def _confusion(
    answers: npt.NDArray[np.int64], right: npt.NDArray[np.str_], names: tuple[str, ...]
) -> npt.NDArray[np.int64]:
    """How many images of each class (row) were given each label (column), as (K, K)."""
    place = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)
    for name, answer in zip(right.tolist(), answers.tolist(), strict=True):
        if name in place:
            counts[place[name], answer] += 1
    return counts
