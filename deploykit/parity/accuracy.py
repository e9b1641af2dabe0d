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
    """One class of a labelled folder. Its bound counts copies of an image once.

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
    """A model's answers against the folders' names. Its bound counts copies of an image once.

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
    given = logits[rows]
    right = (given.argmax(axis=1) == wanted) & np.isfinite(given).all(axis=1)
    classes = [
        ClassAccuracy(
            label=labels.names[i],
            images=int((wanted == i).sum()),
            correct=int((right & (wanted == i)).sum()),
            error_rate_bound=_error_rate_bound(wanted == i, right),
        )
        for i in np.unique(wanted).tolist()
    ]
    return Accuracy(
        images=len(rows),
        correct=int(right.sum()),
        error_rate_bound=_error_rate_bound(np.ones_like(right), right),
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


def _error_rate_bound(rows: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]) -> float:
    """The bound over some rows, of which there is at least one."""
    bound = upper_bound(int((rows & ~right).sum()), int(rows.sum()))
    return 1.0 if bound is None else bound
