"""Whether a bundle's labels are in the order that its answers follow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploykit.commands.diagnose.stages.preprocessing import export_again
from deploykit.images.labels import LABELS_FILE
from deploykit.parity.diagnosis import Finding, Options
from deploykit.specs.model import Labels

#: A change is named where it makes so many more images right than wrong,
_MIN_GAIN = 6
#: at least so many right for each that it makes wrong,
_MIN_GAIN_RATIO = 3
#: and images of so many classes right.
_MIN_CLASSES = 2
_LABELS_TOLD = 3
_DIGITS = re.compile(r"(\d+)")
#: The orders in which programs list folders, by their names.
IMAGE_FOLDER, NATURAL, CASE_INSENSITIVE = (
    "sorted by code point, as ImageFolder does",
    "in natural order, 2 before 10",
    "sorted without regard to case",
)


@dataclass(frozen=True, eq=False)
class LabelledAnswers:
    """The answers to images whose right class is known.

    Attributes:
        classes: (n,), the top-1 index of each image; -1 where an answer is not finite.
        truth: (n,), the images' right names.
    """

    classes: npt.NDArray[np.int64]
    truth: npt.NDArray[np.str_]

    def right(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which images get their right name, (n,), with the labels in this order."""
        found = np.array(names)[self.classes] == self.truth
        return np.asarray(found & (self.classes >= 0))


@dataclass(frozen=True, eq=False)
class LabelOrder:
    """Another order of the labels.

    Attributes:
        change: What is done otherwise: ``dog and food exchanged``.
        names: The labels in that order.
        right: (n,), which images are right with it.
        exchanges: Whether pairs of labels change places: then the folders may be exchanged instead.
    """

    change: str
    names: tuple[str, ...]
    right: npt.NDArray[np.bool_]
    exchanges: bool = False


def is_clear_gain(
    before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_], truth: npt.NDArray[np.str_]
) -> bool:
    """Whether a change makes so many more images right that it may be named as the cause.

    Args:
        before: (n,), which images are right without it.
        after: (n,), which are right with it.
        truth: (n,), the images' right names.
    """
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    several = len({*truth[after].tolist()}) >= _MIN_CLASSES
    return several and gained - lost >= _MIN_GAIN and gained >= _MIN_GAIN_RATIO * lost


def order_name(names: Sequence[str]) -> str | None:
    """Which of the usual orders names are in; None for none."""
    return next((name for name, order in _usual_orders(names).items() if order == [*names]), None)


def _usual_orders(names: Sequence[str]) -> dict[str, list[str]]:
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


def other_orders(
    answers: LabelledAnswers, names: tuple[str, ...], folder_names: Sequence[str]
) -> list[LabelOrder]:
    """Try the other orders that labels may have.

    Args:
        answers: The network's, to what training would have given it.
        names: The K labels in the recorded order.
        folder_names: The K classes as the folder has them, in any order.

    Returns:
        The usual orders of the folder's names but for the recorded one; and the labels with those
        pairs exchanged that take each other's images. The best first.
    """
    found: dict[tuple[str, ...], LabelOrder] = {}
    for change, order in _usual_orders(folder_names).items():
        if order != [*names]:
            new = LabelOrder(change, tuple(order), answers.right(order))
            found.setdefault(new.names, new)
    orders = list(found.values())
    exchanged = _exchanged(answers, names)
    if exchanged is not None:
        # Of labels in no usual order, two that are exchanged say more than a sorted rest.
        orders.insert(len(orders) if order_name(names) else 0, exchanged)
    return sorted(orders, key=lambda each: -each.right.sum())


def _exchanged(answers: LabelledAnswers, names: tuple[str, ...]) -> LabelOrder | None:
    """The labels with pairs exchanged of which each clearly takes the other's images.

    No label is in two pairs.
    """
    indices = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)  # (class of the folder, answer)
    for name, answer in zip(answers.truth.tolist(), answers.classes.tolist(), strict=True):
        if name in indices and answer >= 0:
            counts[indices[name], answer] += 1
    pairs = []
    for one, other in np.argwhere(np.triu(np.minimum(counts, counts.T), 1) > 0).tolist():
        crossed = int(counts[one, other] + counts[other, one])
        straight = int(counts[one, one] + counts[other, other])
        each = counts[one, other] > counts[one, one] and counts[other, one] > counts[other, other]
        if each and crossed - straight >= _MIN_GAIN and crossed >= _MIN_GAIN_RATIO * straight:
            pairs.append((straight - crossed, one, other))
    order = list(names)
    changes = []
    for _, one, other in sorted(pairs):
        if (order[one], order[other]) == (names[one], names[other]):
            order[one], order[other] = names[other], names[one]
            changes.append(f"{names[one]} and {names[other]} exchanged")
    if not changes:
        return None
    return LabelOrder(", ".join(changes), tuple(order), answers.right(order), exchanges=True)


def order_finding(
    order: LabelOrder, labels: Labels, recorded: int, classes: Sequence[str], options: Options
) -> Finding:
    """Name the order that the answers follow, and what to do.

    Which of two is exchanged, the labels or the folders, no answer tells.

    Args:
        order: The order.
        labels: As the bundle records them.
        recorded: How many images are right with those.
        classes: As the folder names them.
        options: How ``export`` is told of the order.
    """
    if {*labels.names} != {*classes}:
        shown = ", ".join(labels.names[:_LABELS_TOLD])
        more = ", ..." if len(labels) > _LABELS_TOLD else ""
        made_up = labels == Labels.numbered(len(labels))
        kind = "made-up names" if made_up else "not the folder's names"
        how = f"the bundle's labels are {kind} ({shown}{more}): with the folder's, {order.change},"
    elif order.exchanges:
        how = f"with {order.change}"
    else:
        own = order_name(labels.names) or "not"
        how = f"training had its labels {order.change}; the bundle's are {own}: with training's"
    message = (
        f"{how} {order.right.sum()} of {len(order.right)} photos get their folder's class instead "
        f"of {recorded}"
    )
    hint = export_again(options)
    if ("--classes", LABELS_FILE) in options:
        hint += ", a text file with the labels in that order, one a line"
    if order.exchanges:
        message += ": either the labels are exchanged, or the photos' folders are"
        hint = (
            "Look at the photos in these folders. Where they are not what the folder says, move "
            f"them. Where they are, the labels are wrong: {hint}"
        )
        options = ()
    return Finding(stage="labels", message=message, hint=hint, options=options, labels=order.names)
