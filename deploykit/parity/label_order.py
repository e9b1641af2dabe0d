"""Whether the labels stand in the order that the answers follow: told by a labelled folder."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deploykit.parity.significance import SIGNIFICANT, several, sign_test
from deploykit.specs import Value

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
    """

    change: str
    names: tuple[str, ...]
    correct: int
    chance: float

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


def _exchanged(
    answers: npt.NDArray[np.int64], right: npt.NDArray[np.str_], names: tuple[str, ...]
) -> Reordering | None:
    """The labels with those pairs exchanged that take each other's images; None for no pair."""
    counts = _confusion(answers, right, names)
    order, changes, chances = list(names), [], []
    pairs = np.argwhere(np.triu(np.minimum(counts, counts.T), 1) > 0).tolist()
    for one, other in sorted(pairs, key=lambda pair: -int(counts[*pair] + counts[*pair[::-1]])):
        crossed = counts[one, other] + counts[other, one]
        straight = counts[one, one] + counts[other, other]
        both = counts[one, other] > counts[one, one] and counts[other, one] > counts[other, other]
        chance = sign_test(int(crossed), int(straight), math.comb(len(names), 2))
        untouched = (order[one], order[other]) == (names[one], names[other])
        if both and untouched and chance < SIGNIFICANT:
            order[one], order[other] = names[other], names[one]
            changes.append(f"{names[one]} and {names[other]} exchanged")
            chances.append(chance)
    if not changes:
        return None
    return Reordering(
        change=", ".join(changes),
        names=tuple(order),
        correct=int((np.array(order)[answers] == right).sum()),
        chance=max(chances),
    )


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
