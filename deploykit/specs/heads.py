"""What logits mean: which classes they decide for, how clearly, and with what probabilities.

Everything that depends on the head goes through its methods; nothing else asks which head it is.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Self, TypeAlias, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from deploykit.errors import UsageError
from deploykit.specs.value import Value
from deploykit.system.text import counted

Array: TypeAlias = npt.NDArray[np.float64]
Decisions: TypeAlias = npt.NDArray[np.intp]
"""(N, D): the numbers that an image's decision consists of; of equal rows the decision is equal."""

HeadName: TypeAlias = Literal["single-label", "multi-label", "binary"]
HEADS: tuple[HeadName, ...] = get_args(HeadName)

#: Of a head whose classes are decided for one by one, where nobody said another.
DEFAULT_THRESHOLD = 0.5
ClassMeasure: TypeAlias = Literal["recall", "precision", "average precision"]

#: Two classes whose probabilities differ by less than this are as probable as each other.
_SAME_PROBABILITY = 1e-6
#: What stands for a probability of 0 and next to 1, so that their logits are finite.
_LEAST_PROBABILITY, _NEAREST_TO_ONE = 1e-38, 1e-16
#: Of the thresholds of single classes, in a line that shows them.
_SHOWN_CHARACTERS = 60


class BaseHead(Value, frozen=True, tag_field="kind"):
    """What logits (N, L) mean for K classes."""

    #: As ``--head`` takes it.
    name: ClassVar[HeadName]
    #: The activation that makes probabilities of the logits.
    activation: ClassVar[Literal["softmax", "sigmoid"]]
    #: What changes when a decision does.
    decided: ClassVar[Literal["class", "labels"]] = "class"
    #: Whether an image may be given any number of classes, none included. Where it is given exactly
    #: one, its folder can name it.
    several: ClassVar[bool] = False
    #: Whether files do not name it, because what names no head has this one.
    is_assumed: ClassVar[bool] = False
    #: What reports call the part of the images that are given exactly their classes.
    accuracy: ClassVar[Literal["accuracy", "exact match"]] = "accuracy"
    #: What reports tell of the answers about each class.
    class_measures: ClassVar[tuple[ClassMeasure, ...]] = ("recall",)
    #: What a margin is, in few words.
    margin_words: ClassVar[str] = "the distance of the nearest logit from its threshold"
    #: What a decision and a margin are, and when a decision means nothing: for a page's readers.
    decision_meaning: ClassVar[str]
    margin_meaning: ClassVar[str]
    undecidable_meaning: ClassVar[str] = (
        "the margin is below what the precision can resolve, so that either class would do"
    )
    #: A margin loses at most this many times what the logit changes that changes most.
    reach: ClassVar[int] = 1

    def logits_for(self, classes: int) -> int:
        """L, the number of logits of a network for K classes."""
        return classes

    def check(self, classes: int) -> None:
        """Refuse a number of classes that the head does not fit.

        Raises:
            UsageError: It does not.
        """
        del classes

    @abstractmethod
    def probabilities(self, logits: npt.ArrayLike) -> Array:
        """(N, L) => (N, K) the classes' probabilities, computed in float64."""

    def describe(self, names: Sequence[str] = ()) -> str:
        """``multi-label, decided above 0.3 to 0.5``; with names, each class's where it fits.

        Args:
            names: Those of the classes.
        """
        del names
        return self.name

    def headline(self, probabilities: Array) -> Array | None:
        """(N, K) => (N,) the one probability that stands for an image's answer.

        None where an image may be given any number of classes, so that none does.
        """
        return np.asarray(probabilities.max(axis=1))

    def headline_class(self, decided: int) -> int:
        """Which class :meth:`headline` is the probability of, where one class was decided for."""
        return decided

    @abstractmethod
    def scores(self, logits: npt.ArrayLike) -> Array:
        """(N, L) => (N, K) by which the classes of an image are ranked, the best the highest."""

    @abstractmethod
    def decide(self, logits: npt.ArrayLike) -> Decisions:
        """(N, L) => (N, D); what is not a number decides nothing that means anything."""

    @abstractmethod
    def chosen(self, decisions: Decisions, classes: int) -> npt.NDArray[np.bool_]:
        """(N, D) => (N, K) whether a decision is for a class."""

    def decisions(self, chosen: npt.NDArray[np.bool_]) -> Decisions:
        """(N, K) => (N, D) the decisions for these classes: what :meth:`chosen` is for."""
        return np.asarray(chosen.argmax(axis=1)[:, None], np.intp)

    @abstractmethod
    def margins(self, logits: npt.ArrayLike) -> Array:
        """(N, L) => (N,) how far an image's logits are from another decision; 0 if not finite."""

    @abstractmethod
    def relative_margins(self, logits: npt.ArrayLike) -> Array:
        """(N, L) => (N, D) how clear each part of a decision is, as a part of the row's own scale.

        0 where nothing is decided: the margin is 0, or the probabilities on both sides of the
        decision differ by less than 1e-6.
        """

    @abstractmethod
    def lost_margins(self, changes: Array) -> Array:
        """(N, L) changes of logits => (N,) the most by which they can take a margin away."""

    @abstractmethod
    def logits_from(self, probabilities: Array) -> Array:
        """(N, K) => (N, L) logits that give these probabilities; what is no number stays so."""

    @abstractmethod
    def logits_for_decisions(self, chosen: npt.NDArray[np.bool_]) -> Array:
        """(N, K) => (N, L) logits that stand for decisions, and tell nothing else."""

    def nearest(self, logits: npt.ArrayLike) -> npt.NDArray[np.intp]:
        """(N, L) => (N,) the class whose probability shows how clear a decision is."""
        return np.asarray(self.scores(logits).argmax(axis=1), np.intp)

    def reordered(self, places: Sequence[int]) -> Self:
        """The head of the same classes in another order.

        Args:
            places: (K,) where each of them is in this one's order.
        """
        del places
        return self

    def names_of(self, decision: Decisions, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The classes that one decision, (D,), is for, in the order of the labels."""
        chosen = self.chosen(decision[None], len(labels))[0]
        return tuple(labels[place] for place in np.flatnonzero(chosen))


class SingleLabel(BaseHead, frozen=True, tag="single-label"):
    """One logit a class, of which a softmax makes probabilities; the largest decides."""

    name: ClassVar[HeadName] = "single-label"
    activation: ClassVar[Literal["softmax", "sigmoid"]] = "softmax"
    is_assumed: ClassVar[bool] = True
    reach: ClassVar[int] = 2  # two logits that come closer
    margin_words: ClassVar[str] = "logit 1 minus logit 2"
    decision_meaning: ClassVar[str] = (
        "the class with the largest logit; a logit is what the network gives each class"
    )
    margin_meaning: ClassVar[str] = (
        "how far the reference's best class is ahead of its second, in logits"
    )
    thresholds: ClassVar[tuple[float, ...]] = ()

    def probabilities(self, logits: npt.ArrayLike) -> Array:
        """The softmax of each row."""
        return softmax(logits)

    def scores(self, logits: npt.ArrayLike) -> Array:
        """The logits."""
        return np.asarray(logits, np.float64)

    def decide(self, logits: npt.ArrayLike) -> Decisions:
        """(N, 1) the class with the largest logit; of equal ones the first, as training has it."""
        return np.asarray(np.argmax(logits, axis=1)[:, None], np.intp)

    def chosen(self, decisions: Decisions, classes: int) -> npt.NDArray[np.bool_]:
        """One class an image."""
        return np.asarray(decisions == np.arange(classes))

    def margins(self, logits: npt.ArrayLike) -> Array:
        """Top-1 logit minus top-2 logit.

        A network of one class decides nothing: its margin is 0.
        """
        values = np.asarray(logits, dtype=np.float64)
        found = np.zeros(len(values))
        if values.shape[1] > 1:
            usable = np.isfinite(values).all(axis=1)
            top = np.partition(values[usable], -2, axis=1)[:, -2:]
            found[usable] = top[:, 1] - top[:, 0]
        return found

    def relative_margins(self, logits: npt.ArrayLike) -> Array:
        """(N, 1).

        The own scale is the largest absolute logit less the row's mean: neither another image's
        logits nor what is added to all of a row's makes a decision look closer than it is. So with
        two classes the part is always 2.
        """
        values = np.asarray(logits, dtype=np.float64)
        margin = self.margins(values)
        found = np.zeros(len(values))
        rows = np.flatnonzero(margin > 0)
        chosen = values[rows]
        scale = np.abs(chosen - chosen.mean(axis=1, keepdims=True)).max(axis=1)
        # p1 - p2 = p1 (1 - exp(-margin)), without the difference of two numbers that are nearly
        # equal.
        difference = softmax(chosen).max(axis=1) * -np.expm1(-margin[rows])
        found[rows] = np.where(difference >= _SAME_PROBABILITY, margin[rows] / scale, 0.0)
        return found[:, None]

    def logits_from(self, probabilities: Array) -> Array:
        """Logarithms: a softmax takes away what is added to all logits of a row."""
        return np.asarray(np.log(np.clip(probabilities, _LEAST_PROBABILITY, 1.0)))

    def logits_for_decisions(self, chosen: npt.NDArray[np.bool_]) -> Array:
        """1 for the class that is decided for, else 0."""
        return chosen.astype(np.float64)

    def lost_margins(self, changes: Array) -> Array:
        """By how much two logits of a row moved apart."""
        return np.asarray(np.ptp(changes, axis=1))


class _Sigmoids(BaseHead, frozen=True):
    """Each logit decides by itself: its sigmoid is above a threshold or not.

    Attributes:
        thresholds: (L,) of the probabilities, each above 0 and below 1.
    """

    thresholds: tuple[float, ...]

    activation: ClassVar[Literal["softmax", "sigmoid"]] = "sigmoid"
    class_measures: ClassVar[tuple[ClassMeasure, ...]] = (
        "recall",
        "precision",
        "average precision",
    )

    def __post_init__(self) -> None:
        outside = [each for each in self.thresholds if not 0 < each < 1]
        if outside:
            raise UsageError(
                f"A threshold has to be above 0 and below 1; got {outside[0]:g}.",
                hint="It is a probability: 0.5 decides for what is likelier than not.",
            )

    def describe(self, names: Sequence[str] = ()) -> str:
        """The name and the thresholds."""
        low, high = min(self.thresholds), max(self.thresholds)
        if low == high:
            return f"{self.name}, decided above {low:g}"
        if len(names) == len(self.thresholds):
            pairs = zip(self.thresholds, names, strict=True)
            each = ", ".join(f"{limit:g} for {name}" for limit, name in pairs)
            if len(each) <= _SHOWN_CHARACTERS:
                return f"{self.name}, decided above {each}"
        return f"{self.name}, decided above {low:g} to {high:g}"

    def decide(self, logits: npt.ArrayLike) -> Decisions:
        """(N, L) 1 where the probability is above its threshold, else 0."""
        return (self._above(logits) > 0).astype(np.intp)

    def margins(self, logits: npt.ArrayLike) -> Array:
        """The smallest distance of a logit from its threshold."""
        above = self._above(logits)
        return np.where(
            np.isfinite(above).all(axis=1), np.abs(above).min(axis=1, initial=np.inf), 0
        )

    def relative_margins(self, logits: npt.ArrayLike) -> Array:
        """(N, L) each logit's distance from its threshold.

        The own scale is the row's largest absolute logit, and at least 1: a logit is no multiple of
        anything, for a sigmoid gives it a meaning of its own, and 1 is about a quarter in the
        probability.
        """
        values = np.asarray(logits, dtype=np.float64)
        usable = np.isfinite(values).all(axis=1)
        found = np.zeros(values.shape)
        chosen = values[usable]
        above = np.abs(self._above(chosen))
        scale = np.maximum(1.0, np.abs(chosen).max(axis=1, initial=0.0, keepdims=True))
        difference = np.abs(sigmoid(chosen) - np.array(self.thresholds))
        found[usable] = np.where(difference >= _SAME_PROBABILITY, above / scale, 0.0)
        return found

    def logits_from(self, probabilities: Array) -> Array:
        """The log-odds of each probability."""
        inside = np.clip(probabilities, _LEAST_PROBABILITY, 1 - _NEAREST_TO_ONE)
        return np.asarray(np.log(inside) - np.log1p(-inside))

    def logits_for_decisions(self, chosen: npt.NDArray[np.bool_]) -> Array:
        """1 above the threshold where it is decided for, else 1 below."""
        limits = self._above(np.zeros((1, len(self.thresholds))))
        return np.asarray(np.where(chosen, 1.0, -1.0) - limits)

    def lost_margins(self, changes: Array) -> Array:
        """By how much a logit moved."""
        return np.asarray(np.abs(changes).max(axis=1))

    def _above(self, logits: npt.ArrayLike) -> Array:
        """(N, L) how far each logit is above its threshold."""
        limits = [math.log(each) - math.log1p(-each) for each in self.thresholds]
        return np.asarray(np.asarray(logits, np.float64) - np.array(limits))


class MultiLabel(_Sigmoids, frozen=True, tag="multi-label"):
    """One logit a class, of which a sigmoid makes a probability; those above thresholds decide."""

    name: ClassVar[HeadName] = "multi-label"
    decided: ClassVar[Literal["class", "labels"]] = "labels"
    several: ClassVar[bool] = True
    accuracy: ClassVar[Literal["accuracy", "exact match"]] = "exact match"
    decision_meaning: ClassVar[str] = (
        "the classes whose probabilities are above their thresholds; a probability is the sigmoid "
        "of a logit, which is what the network gives each class"
    )
    margin_meaning: ClassVar[str] = (
        "how far the reference's nearest logit is from its threshold, in logits"
    )
    undecidable_meaning: ClassVar[str] = (
        "a logit is closer to its threshold than the precision can resolve, so that the image may "
        "as well have that class as not"
    )

    def check(self, classes: int) -> None:
        """One threshold a class."""
        if len(self.thresholds) != classes:
            raise UsageError(f"{len(self.thresholds)} thresholds do not fit {classes} classes.")

    def probabilities(self, logits: npt.ArrayLike) -> Array:
        """The sigmoid of each logit."""
        return sigmoid(logits)

    def headline(self, probabilities: Array) -> Array | None:
        """None."""
        del probabilities
        return None

    def scores(self, logits: npt.ArrayLike) -> Array:
        """The logits, whatever the thresholds are."""
        return np.asarray(logits, np.float64)

    def nearest(self, logits: npt.ArrayLike) -> npt.NDArray[np.intp]:
        """The class that is nearest to its threshold."""
        return np.asarray(np.abs(self._above(logits)).argmin(axis=1), np.intp)

    def reordered(self, places: Sequence[int]) -> Self:
        """The thresholds follow the classes."""
        thresholds = tuple(self.thresholds[place] for place in places)
        return msgspec.structs.replace(self, thresholds=thresholds)

    def chosen(self, decisions: Decisions, classes: int) -> npt.NDArray[np.bool_]:
        """Any number of classes an image."""
        del classes
        return np.asarray(decisions > 0)

    def decisions(self, chosen: npt.NDArray[np.bool_]) -> Decisions:
        """A 1 for each class of an image."""
        return np.asarray(chosen, np.intp)


class Binary(_Sigmoids, frozen=True, tag="binary"):
    """One logit for two classes: its sigmoid is the second one's probability."""

    name: ClassVar[HeadName] = "binary"
    decision_meaning: ClassVar[str] = (
        "the second class where its probability, the sigmoid of the logit, is above the threshold, "
        "else the first"
    )
    margin_meaning: ClassVar[str] = "how far the reference's logit is from the threshold, in logits"

    def logits_for(self, classes: int) -> int:
        """One."""
        del classes
        return 1

    def check(self, classes: int) -> None:
        """Two classes, one threshold."""
        if classes != 2 or len(self.thresholds) != 1:
            raise UsageError(
                "A binary head tells two classes apart, by one logit and one threshold; got "
                f"{counted(classes, 'class', 'classes')} and "
                f"{counted(len(self.thresholds), 'threshold')}.",
                hint="Of more classes an image has one (single-label), or any number "
                "(multi-label).",
            )

    def probabilities(self, logits: npt.ArrayLike) -> Array:
        """(N, 2)."""
        values = np.asarray(logits, np.float64)
        return np.concatenate([sigmoid(-values), sigmoid(values)], axis=1)

    def headline(self, probabilities: Array) -> Array | None:
        """The second class's, whichever was decided for."""
        return np.asarray(probabilities[:, 1])

    def headline_class(self, decided: int) -> int:
        """The second class."""
        del decided
        return 1

    def scores(self, logits: npt.ArrayLike) -> Array:
        """(N, 2): the class that is decided for comes first."""
        above = self._above(logits)
        return np.concatenate([np.zeros_like(above), np.where(above > 0, 1.0, -1.0)], axis=1)

    def logits_from(self, probabilities: Array) -> Array:
        """(N, 2), or (N, 1) of the second class alone => (N, 1) its log-odds."""
        return super().logits_from(probabilities[:, -1:])

    def logits_for_decisions(self, chosen: npt.NDArray[np.bool_]) -> Array:
        """(N, 2) => (N, 1)."""
        return super().logits_for_decisions(chosen[:, 1:])

    def chosen(self, decisions: Decisions, classes: int) -> npt.NDArray[np.bool_]:
        """One of the two classes."""
        return np.asarray(decisions == np.arange(classes))


Head: TypeAlias = SingleLabel | MultiLabel | Binary

#: The head of what names none. One object: msgspec knows a field's default by its identity.
ASSUMED_HEAD: Head = SingleLabel()


def head_of(name: HeadName, thresholds: Sequence[float]) -> Head:
    """Make a head.

    Args:
        name: As ``--head`` takes it.
        thresholds: (K,) those of the classes. A binary head has the last class's, a single-label
            head has none.

    Raises:
        UsageError: A threshold is not above 0 and below 1.
    """
    heads: dict[HeadName, Callable[[], Head]] = {
        "single-label": SingleLabel,
        "multi-label": lambda: MultiLabel(thresholds=(*thresholds,)),
        "binary": lambda: Binary(thresholds=(*thresholds[-1:],)),
    }
    return heads[name]()


def softmax(logits: npt.ArrayLike) -> Array:
    """The probabilities of each row of (N, K) logits, computed in float64."""
    values = np.asarray(logits, dtype=np.float64)
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def sigmoid(logits: npt.ArrayLike) -> Array:
    """The probability of each logit, computed in float64, and as exact near 0 as near 1/2."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64))))
