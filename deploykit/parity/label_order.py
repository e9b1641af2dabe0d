"""Whether the labels stand in the order that the answers follow: told by a labelled folder."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deploykit.specs.value import Value

#: A change is more than chance where it makes so many more images right than wrong,
MIN_GAIN = 6
#: and at least so many right for each that it makes wrong.
MIN_GAIN_RATIO = 3
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
        likely: Whether it is the order of the training: it is a :func:`clear_gain`, and images of
            at least two classes show it.
        exchanges: Whether pairs of labels change places: then the folders may be exchanged instead.
    """

    change: str
    names: tuple[str, ...]
    correct: int
    likely: bool
    exchanges: bool = False


def clear_gain(gained: int, lost: int) -> bool:
    """Whether a change helps beyond chance.

    Args:
        gained: Images that it makes right.
        lost: Images that it makes wrong.
    """
    return gained - lost >= MIN_GAIN and gained >= MIN_GAIN_RATIO * lost


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
        The usual orders of the folder's names but for the recorded one, and pairs of labels that
        take each other's images: those that are likely together, any other alone. The best first.
    """
    right = np.array(truth)
    recorded = np.array(names)[answers] == right
    found: list[Reordering] = []
    for change, order in usual_orders(folder_names).items():
        if order == [*names] or any(each.names == tuple(order) for each in found):
            continue
        correct = np.array(order)[answers] == right
        gained, lost = correct & ~recorded, recorded & ~correct
        several = len({*right[gained].tolist()}) > 1
        likely = several and clear_gain(int(gained.sum()), int(lost.sum()))
        found.append(
            Reordering(change=change, names=tuple(order), correct=int(correct.sum()), likely=likely)
        )
    exchanged = _exchanges(answers, right, names)
    # Of labels in no usual order, two that are exchanged say more than a sorted rest.
    found = [*found, *exchanged] if order_name(names) else [*exchanged, *found]
    return sorted(found, key=lambda each: -each.correct)


def _exchanges(
    answers: npt.NDArray[np.int64], right: npt.NDArray[np.str_], names: tuple[str, ...]
) -> list[Reordering]:
    """The labels with those pairs exchanged of which each takes more of the other's than its own.

    No label is in two pairs.
    """
    place = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)  # (class of the folder, answer)
    for name, answer in zip(right.tolist(), answers.tolist(), strict=True):
        if name in place:
            counts[place[name], answer] += 1
    pairs = []
    for one, other in np.argwhere(np.triu(np.minimum(counts, counts.T), 1) > 0).tolist():
        if counts[one, other] > counts[one, one] and counts[other, one] > counts[other, other]:
            crossed = int(counts[one, other] + counts[other, one])
            straight = int(counts[one, one] + counts[other, other])
            pairs.append((crossed, straight, one, other))
    likely: list[tuple[int, int]] = []
    unlikely: list[tuple[int, int]] = []
    taken: set[int] = set()
    for crossed, straight, one, other in sorted(pairs, key=lambda pair: pair[1] - pair[0]):
        if taken.isdisjoint((one, other)):
            taken.update((one, other))
            (likely if clear_gain(crossed, straight) else unlikely).append((one, other))
    found = []
    for together in ([likely] if likely else []) + [[pair] for pair in unlikely]:
        order = list(names)
        for one, other in together:
            order[one], order[other] = names[other], names[one]
        found.append(
            Reordering(
                change=", ".join(f"{names[a]} and {names[b]} exchanged" for a, b in together),
                names=tuple(order),
                correct=int((np.array(order)[answers] == right).sum()),
                likely=together is likely,
                exchanges=True,
            )
        )
    return found
