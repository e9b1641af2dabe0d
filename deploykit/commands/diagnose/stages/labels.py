"""Whether a bundle's labels are in the order that its answers follow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from deploykit.commands.diagnose.stages.images import StageImages
from deploykit.commands.diagnose.stages.preprocessing import export_again
from deploykit.images.labels import LABELS_FILE
from deploykit.parity.diagnosis import Finding, Options
from deploykit.specs.model import Labels
from deploykit.specs.session import Logits

#: A change is named where so many more right classes are given with it than without,
_MIN_GAIN = 6
#: at least so many for each that is lost,
_MIN_GAIN_RATIO = 3
#: and of so many different ones.
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
    """The answers to images whose right classes are known.

    Attributes:
        logits: (n, L).
        truth: The n images' right classes.
        labels: The classes as the bundle records them.
    """

    logits: Logits
    truth: Sequence[tuple[str, ...]]
    labels: Labels

    @property
    def true_names(self) -> npt.NDArray[np.str_]:
        """(m,) the images' right classes, one after the other: one an image, or any number."""
        return np.array([name for names in self.truth for name in names], np.str_)

    def given(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """(n, K) which classes the images get, with the labels in this order."""
        head, recorded = self.labels.head, self.labels.names
        if {*names} == {*recorded}:  # thresholds are those of names, not of places
            head = head.reordered([recorded.index(name) for name in names])
        finite = np.isfinite(self.logits).all(axis=1, keepdims=True)
        logits = np.where(finite, self.logits, 0)
        return np.asarray(head.chosen(head.decide(logits), len(recorded)) & finite)

    def wanted(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """(n, K) which classes they should get; what has no such name has no column."""
        places = {name: place for place, name in enumerate(names)}
        found = np.zeros((len(self.truth), len(names)), np.bool_)
        for row, classes in enumerate(self.truth):
            found[row, [places[name] for name in classes if name in places]] = True
        return found

    def right(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """(n,) which images get exactly their right classes, with the labels in this order."""
        same = (self.given(names) == self.wanted(names)).all(axis=1)
        finite = np.isfinite(self.logits).all(axis=1)
        named = np.array([{*each} <= {*names} for each in self.truth], np.bool_)
        return np.asarray(same & finite & named)

    def hits(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """(m,) which of :attr:`true_names` are given; of one class an image, which are right."""
        given, places = self.given(names), {name: place for place, name in enumerate(names)}
        return np.array(
            [
                name in places and given[row, places[name]]
                for row, classes in enumerate(self.truth)
                for name in classes
            ],
            np.bool_,
        )


@dataclass(frozen=True, eq=False)
class LabelOrder:
    """Another order of the labels.

    Attributes:
        change: What is done otherwise: ``dog and food exchanged``.
        names: The labels in that order.
        hits: (m,), which of the right classes are given with it.
        right: (n,), which images are right with it.
        exchanges: Whether pairs of labels change places: then the truth may be exchanged instead.
    """

    change: str
    names: tuple[str, ...]
    hits: npt.NDArray[np.bool_]
    right: npt.NDArray[np.bool_]
    exchanges: bool = False

    @classmethod
    def of(
        cls,
        change: str,
        names: Sequence[str],
        answers: LabelledAnswers,
        *,
        exchanges: bool = False,
    ) -> Self:
        """Hold answers against an order."""
        return cls(change, tuple(names), answers.hits(names), answers.right(names), exchanges)


def is_clear_gain(
    before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_], truth: npt.NDArray[np.str_]
) -> bool:
    """Whether a change makes so much more right that it may be named as the cause.

    Args:
        before: (m,), which right classes are given without it.
        after: (m,), which are given with it.
        truth: (m,), the right classes.
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
    answers: LabelledAnswers, known: Sequence[str], *, columns: Sequence[str] = (), table: str = ""
) -> list[LabelOrder]:
    """Try the other orders that labels may have.

    Args:
        answers: The network's, to what training would have given it.
        known: The K classes as the folder has them, in any order.
        columns: The same in the order of a table's columns; empty without a table.
        table: What it is called.

    Returns:
        The order of the table's columns; the usual orders of the known names; and the labels with
        those pairs exchanged that take each other's images. The best first, without the recorded.
    """
    names = answers.labels.names
    found: dict[tuple[str, ...], LabelOrder] = {}
    every = _usual_orders(known)
    if [*columns] not in every.values():
        every = {f"in the order of the columns of {table}": [*columns], **every}
    for change, order in every.items():
        if order and order != [*names]:
            found.setdefault(tuple(order), LabelOrder.of(change, order, answers))
    orders = list(found.values())
    exchanged = _exchanged(answers)
    if exchanged is not None and exchanged.names != tuple(columns):
        # Of labels in no usual order, two that are exchanged say more than a sorted rest.
        orders.insert(len(orders) if order_name(names) else 0, exchanged)
    return sorted(orders, key=lambda each: -each.hits.sum())


def _exchanged(answers: LabelledAnswers) -> LabelOrder | None:
    """The labels with pairs exchanged of which each clearly takes the other's images.

    Of a pair those images count that are of one of both, and are given one of both. No label is in
    two pairs.
    """
    names = answers.labels.names
    given, wanted = answers.given(names), answers.wanted(names)

    def count(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """(K, K) on how many images the first is so of a class, and the other of another."""
        return one.T.astype(np.int64) @ other.astype(np.int64)

    # (class that is right, class that is given), and (class that is right and given, another).
    crossed_counts = count(wanted & ~given, given & ~wanted)
    straight_counts = count(wanted & given, ~(wanted | given))
    both = np.minimum(crossed_counts, crossed_counts.T)
    pairs = []
    for one, other in np.argwhere(np.triu(both, 1) > 0).tolist():
        sides = ((one, other), (other, one))
        each = all(crossed_counts[side] > straight_counts[side] for side in sides)
        crossed = sum(int(crossed_counts[side]) for side in sides)
        straight = sum(int(straight_counts[side]) for side in sides)
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
    return LabelOrder.of(", ".join(changes), order, answers, exchanges=True)


def order_finding(
    order: LabelOrder, answers: LabelledAnswers, images: StageImages, options: Options
) -> Finding:
    """Name the order that the answers follow, and what to do.

    Which of two is exchanged, the labels or the truth, no answer tells.

    Args:
        order: The order.
        answers: What follows it.
        images: Which were answered, and what their classes are called.
        options: How ``export`` is told of the order.
    """
    labels, classes = answers.labels, images.classes
    if {*labels.names} != {*classes}:
        shown = ", ".join(labels.names[:_LABELS_TOLD])
        more = ", ..." if len(labels) > _LABELS_TOLD else ""
        made_up = labels == Labels.numbered(len(labels))
        kind = "made-up names" if made_up else f"not {images.whose} names"
        how = (
            f"the bundle's labels are {kind} ({shown}{more}): with {images.whose}, {order.change},"
        )
    elif order.exchanges:
        how = f"with {order.change}"
    else:
        own = order_name(labels.names) or "not"
        how = f"training had its labels {order.change}; the bundle's are {own}: with training's"
    before = answers.hits(labels.names).sum()
    what = images.true_words if labels.head.several else f"photos get {images.right_words}"
    message = f"{how} {order.hits.sum()} of {len(order.hits)} {what} instead of {before}"
    hint = export_again(options)
    if ("--classes", LABELS_FILE) in options:
        hint += ", a text file with the labels in that order, one a line"
    if order.exchanges:
        message += f": either the labels are exchanged, or {images.truth_exchanged} are"
        hint = f"{images.look_at_them} Where they are, the labels are wrong: {hint}"
        options = ()
    return Finding(stage="labels", message=message, hint=hint, options=options, labels=order.names)
