"""How often a model is right on labelled images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.parity.answers import Answers
from deploykit.parity.measurement import UNDECIDABLE_MARGIN, AccuracyChange
from deploykit.parity.statistics import upper_bound
from deploykit.specs.heads import BaseHead, ClassMeasure
from deploykit.specs.model import Labels, Precision
from deploykit.specs.session import Logits, SessionSpec
from deploykit.specs.value import Value

Flags = npt.NDArray[np.bool_]


class Score(Value, frozen=True):
    """How many of some images a model is right on.

    Attributes:
        label: What they are: a class's name, or ``all images``.
        images: How many there are.
        correct: On how many of them the model is right.
        error_rate_bound: The one-sided 95 % upper bound of the error rate (Clopper-Pearson).
    """

    label: str
    images: int
    correct: int
    error_rate_bound: float

    @property
    def rate(self) -> float:
        """The part of the images that the model is right on."""
        return self.correct / self.images


class ClassAccuracy(Score, frozen=True):
    """A model's answers about one class. Its ``rate`` is the recall, as scikit-learn defines it.

    Attributes:
        images: How many images are of the class.
        correct: How many of them the model gives the class.
        decided: How many images the model gives the class, rightly or not.
        average_precision: The mean of the precisions at each new image of the class, by falling
            score, as scikit-learn's ``average_precision_score`` has it; 0..1.
    """

    decided: int
    average_precision: float

    @property
    def precision(self) -> float:
        """The part of the images given the class that are of it; 0 without any."""
        return self.correct / self.decided if self.decided else 0.0

    def told(self, measures: Sequence[ClassMeasure]) -> tuple[float, ...]:
        """Some of its measures, each 0..1."""
        every: dict[ClassMeasure, float] = {
            "recall": self.rate,
            "precision": self.precision,
            "average precision": self.average_precision,
        }
        return tuple(every[each] for each in measures)


class Accuracy(Score, frozen=True):
    """How often a model is right on labelled images, over all classes.

    An image counts as correct where the model gives it exactly its classes, one or several.

    Attributes:
        classes: For each class that has images, in the order of the labels.
    """

    classes: tuple[ClassAccuracy, ...]

    @property
    def mean_average_precision(self) -> float:
        """The mean over the classes that have images."""
        return float(np.mean([each.average_precision for each in self.classes]))

    def tells_the_same(self, other: Accuracy, head: BaseHead) -> bool:
        """Whether a report tells the same of both, class by class."""
        ours, theirs = (
            [each.told(head.class_measures) for each in side.classes] for side in (self, other)
        )
        return (self.correct, ours) == (other.correct, theirs)


def accuracy_of(
    logits: Logits,
    paths: Sequence[str],
    expected: Mapping[str, Collection[str]],
    labels: Labels,
) -> Accuracy | None:
    """Hold answers against what is right.

    Args:
        logits: (N, L). An answer that is not finite is wrong.
        paths: The N images' names.
        expected: The classes of those images of which they are known, by the images' names.
        labels: The K classes' names, and what the logits mean.

    Returns:
        The accuracy over the labelled images; None where there is none.
    """
    rows, truth = _labelled(paths, expected, labels)
    if not rows:
        return None
    given = logits[rows]
    chosen, right = _given(given, truth, labels)
    usable = np.asarray(np.isfinite(given).all(axis=1))
    scores = labels.head.probabilities(np.where(usable[:, None], given, 0))
    scores[~usable] = -1  # behind all that was answered
    classes = tuple(
        ClassAccuracy(
            label=labels.names[i],
            **_counts(chosen[truth[:, i], i]),
            decided=int(chosen[:, i].sum()),
            average_precision=average_precision(truth[:, i], scores[:, i]),
        )
        for i in np.flatnonzero(truth.any(axis=0)).tolist()
    )
    return Accuracy(label="all images", **_counts(right), classes=classes)


def accuracy_change(
    reference: Logits,
    candidate: Logits,
    paths: Sequence[str],
    expected: Mapping[str, Collection[str]],
    labels: Labels,
) -> AccuracyChange | None:
    """Hold both sides' answers to the same images against what is right.

    Args:
        reference: (N, L).
        candidate: (N, L).
        paths: See :func:`accuracy_of`, as the arguments below.
        expected: The classes that are known.
        labels: What the logits mean.

    Returns:
        None without a labelled image.
    """
    rows, truth = _labelled(paths, expected, labels)
    if not rows:
        return None
    ours, theirs = (_given(side[rows], truth, labels)[1] for side in (reference, candidate))
    return AccuracyChange(
        name=labels.head.accuracy,
        images=len(rows),
        correct=int(ours.sum()),
        lost=int((ours & ~theirs).sum()),
        won=int((theirs & ~ours).sum()),
    )


class ClassChange(Value, frozen=True):
    """What becomes of a class's images in a candidate.

    Attributes:
        label: The class's name.
        images: How many images are of it; where no image has a known class, how many the reference
            gives it, clearly enough to mean something.
        reference: How many of them the reference gives it.
        candidate: How many of them the candidate gives it.
    """

    label: str
    images: int
    reference: int
    candidate: int

    @property
    def lost(self) -> int:
        """How many fewer of them the candidate gives it; less than 0 where it gives more."""
        return self.reference - self.candidate


def class_changes(
    reference: Logits,
    candidate: Logits,
    paths: Sequence[str],
    expected: Mapping[str, Collection[str]],
    labels: Labels,
    precision: Precision,
) -> tuple[ClassChange, ...]:
    """Which classes lose images: by their labels, or without any by the reference's decisions.

    Args:
        reference: (N, L).
        candidate: (N, L).
        paths: See :func:`accuracy_of`, as the arguments below.
        expected: The classes that are known.
        labels: What the logits mean.
        precision: The candidate's, which sets what is undecidable.

    Returns:
        Those of every class that has images; those that lose most of their images first.
    """
    head = labels.head
    rows, truth = _labelled(paths, expected, labels)
    if not rows:
        rows = np.flatnonzero(np.isfinite(reference).all(axis=1)).tolist()
        clear = head.relative_margins(reference[rows]) > UNDECIDABLE_MARGIN[precision]
        truth = head.chosen(head.decide(reference[rows]), len(labels)) & clear
    ours, theirs = (_given(side[rows], truth, labels)[0] for side in (reference, candidate))
    found = [
        ClassChange(
            label=labels.names[i],
            images=int(truth[:, i].sum()),
            reference=int(ours[truth[:, i], i].sum()),
            candidate=int(theirs[truth[:, i], i].sum()),
        )
        for i in np.flatnonzero(truth.any(axis=0)).tolist()
    ]
    return tuple(sorted(found, key=lambda each: -each.lost / each.images))


def _labelled(
    paths: Sequence[str], expected: Mapping[str, Collection[str]], labels: Labels
) -> tuple[list[int], Flags]:
    """The rows whose classes are known, and (n, K) these classes."""
    rows = [row for row, path in enumerate(paths) if path in expected]
    index = {label: i for i, label in enumerate(labels.names)}
    truth = np.zeros((len(rows), len(labels)), np.bool_)
    for row, place in enumerate(rows):
        truth[row, [index[label] for label in expected[paths[place]]]] = True
    return rows, truth


def _given(logits: Logits, truth: Flags, labels: Labels) -> tuple[Flags, Flags]:
    """(n, L) => (n, K) which classes are given, and (n,) whether they are exactly the true ones.

    An answer that is not finite gives no class, and is wrong.
    """
    head = labels.head
    usable = np.asarray(np.isfinite(logits).all(axis=1))
    chosen = head.chosen(head.decide(logits), len(labels)) & usable[:, None]
    return chosen, np.asarray((chosen == truth).all(axis=1) & usable)


def average_precision(truth: Flags, scores: npt.NDArray[np.float64]) -> float:
    """The area under precision and recall, without interpolation: sum of (R_n - R_n-1) P_n.

    As scikit-learn's ``average_precision_score``
    (https://scikit-learn.org/stable/modules/model_evaluation.html#precision-recall-f-measure-metrics):
    images of equal scores count as one step.

    Args:
        truth: (N,) which images are of the class, at least one.
        scores: (N,) by which they are ranked.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    found = np.cumsum(truth[order])[ends]
    gained = np.diff(found, prepend=0) / truth.sum()
    return float((gained * found / (ends + 1)).sum())


def accuracies(
    answers: Answers, expected: Mapping[str, Collection[str]], labels: Labels
) -> tuple[Accuracy, ...]:
    """The accuracy of the reference, then of each candidate; empty without a labelled image."""
    found = (
        accuracy_of(logits, answers.paths, expected, labels)
        for logits in (answers.reference, *answers.candidates)
    )
    return tuple(each for each in found if each is not None)


def changes_by_candidate(
    answers: Answers,
    candidates: Sequence[SessionSpec],
    expected: Mapping[str, Collection[str]],
    labels: Labels,
) -> dict[SessionSpec, tuple[ClassChange, ...]]:
    """The :func:`class_changes` of each candidate, but of what computes in FP32 here."""
    return {
        candidate: class_changes(
            answers.reference, logits, answers.paths, expected, labels, candidate.precision
        )
        for candidate, logits in zip(candidates, answers.candidates, strict=True)
        if candidate.precision != "fp32" or candidate.place != "here"
    }


def _counts(right: Flags) -> dict[str, Any]:
    """The number of images (at least 1), of those that are right, and the bound."""
    correct = int(right.sum())
    bound = upper_bound(len(right) - correct, len(right))
    bound = 1.0 if bound is None else bound
    return {"images": len(right), "correct": correct, "error_rate_bound": bound}
