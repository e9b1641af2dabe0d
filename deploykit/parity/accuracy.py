"""How often a model is right on labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from deploykit.parity.answers import Answers
from deploykit.parity.statistics import upper_bound
from deploykit.specs.model import Labels
from deploykit.specs.session import Logits
from deploykit.specs.value import Value


class ClassAccuracy(Value, frozen=True):
    """A model's answers to the images of one class.

    Attributes:
        label: The class's name.
        images: How many images its folder has.
        correct: Those of them that the model gives this class.
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


class Accuracy(ClassAccuracy, frozen=True):
    """How often a model is right on a labelled folder, over all classes.

    Attributes:
        label: ``all images``.
        classes: The same for each class that has images, in the order of the labels.
    """

    classes: tuple[ClassAccuracy, ...]


def accuracy_of(
    logits: Logits,
    paths: Sequence[str],
    expected: Mapping[str, str],
    labels: Labels,
) -> Accuracy | None:
    """Hold answers against the folders' names.

    Args:
        logits: (N, K). An answer that is not finite is wrong.
        paths: The N images' names.
        expected: The labels of those images whose folder names one.
        labels: The K classes' names.

    Returns:
        The accuracy over the labelled images; None where there is none.
    """
    rows = [row for row, path in enumerate(paths) if path in expected]
    if not rows:
        return None
    index = {label: i for i, label in enumerate(labels.names)}
    wanted = np.array([index[expected[paths[row]]] for row in rows])
    given, head = logits[rows], labels.head
    chosen = head.chosen(head.decide(given), len(labels))
    truth = wanted[:, None] == np.arange(len(labels))
    right = (chosen == truth).all(axis=1) & np.isfinite(given).all(axis=1)
    classes = tuple(
        ClassAccuracy(labels.names[i], *_counts(right[wanted == i]))
        for i in np.unique(wanted).tolist()
    )
    return Accuracy("all images", *_counts(right), classes)


def accuracies(
    answers: Answers, expected: Mapping[str, str], labels: Labels
) -> tuple[Accuracy, ...]:
    """The accuracy of the reference, then of each candidate; empty without a labelled image."""
    found = (
        accuracy_of(logits, answers.paths, expected, labels)
        for logits in (answers.reference, *answers.candidates)
    )
    return tuple(each for each in found if each is not None)


def _counts(right: npt.NDArray[np.bool_]) -> tuple[int, int, float]:
    """The number of images (at least 1), of those that are right, and the bound."""
    correct = int(right.sum())
    bound = upper_bound(len(right) - correct, len(right))
    return len(right), correct, 1.0 if bound is None else bound
