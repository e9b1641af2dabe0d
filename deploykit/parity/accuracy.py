"""How often a model is right on labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from deploykit.parity.answers import Answers
from deploykit.parity.statistics import upper_bound
from deploykit.session import Logits
from deploykit.specs import Labels, Value


class ClassAccuracy(Value, frozen=True):
    """One class of a labelled folder.

    Attributes:
        label: The class's name.
        images: Images that its folder has.
        correct: Those of them that the model gives this class.
        error_rate_bound: The one-sided 95 % upper bound of its error rate (Clopper-Pearson).
    """

    label: str
    images: int
    correct: int
    error_rate_bound: float

    @property
    def rate(self) -> float:
        """The part of its images that the model is right on."""
        return self.correct / self.images


class Accuracy(Value, frozen=True):
    """A model's answers against the folders' names.

    Attributes:
        images: Labelled images.
        correct: Those whose top-1 class is their folder's.
        error_rate_bound: The one-sided 95 % upper bound of the error rate (Clopper-Pearson).
        classes: The same for each class that has images, in the order of the labels.
    """

    images: int
    correct: int
    error_rate_bound: float
    classes: tuple[ClassAccuracy, ...]

    @property
    def rate(self) -> float:
        """The part of the images that the model is right on."""
        return self.correct / self.images


def accuracy_of(
    logits: Logits, paths: Sequence[str], expected: Mapping[str, str], labels: Labels
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
    given = logits[rows]
    right = (given.argmax(axis=1) == wanted) & np.isfinite(given).all(axis=1)
    classes = []
    for i in np.unique(wanted).tolist():
        images, correct = int((wanted == i).sum()), int(right[wanted == i].sum())
        classes.append(
            ClassAccuracy(
                label=labels.names[i],
                images=images,
                correct=correct,
                error_rate_bound=_error_rate_bound(images, correct),
            )
        )
    correct = int(right.sum())
    return Accuracy(
        images=len(rows),
        correct=correct,
        error_rate_bound=_error_rate_bound(len(rows), correct),
        classes=tuple(classes),
    )


def accuracies(
    answers: Answers, expected: Mapping[str, str], labels: Labels
) -> tuple[Accuracy, ...]:
    """The accuracy of the reference, then of each candidate; empty without a labelled image."""
    found = (
        accuracy_of(logits, answers.paths, expected, labels)
        for logits in (answers.reference, *answers.candidates)
    )
    return tuple(each for each in found if each is not None)


def _error_rate_bound(images: int, correct: int) -> float:
    return cast("float", upper_bound(images - correct, images))  # None without images only
