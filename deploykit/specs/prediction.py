"""The answer for one image file."""

from __future__ import annotations

from deploykit.specs.value import Shown, Value


class Ranked(Value, frozen=True):
    """One of the top-k answers for an image.

    Attributes:
        label: The class's name.
        probability: Its own, 0..1.
    """

    label: str
    probability: float


class Prediction(Shown, Value, frozen=True):
    """The answer for one image file; exactly one for each file, whatever is wrong with it.

    Attributes:
        path: Relative to the folder that was asked for, ``/`` on every system.
        status: ``ok``, or in a word what is wrong with the file: ``corrupt``, ``truncated``, ...
            ``crashed-worker`` where it ended each process of a cluster that read it.
        reason: The same in a sentence; empty when ok.
        label: The class; None unless ok, as the fields below, and of a multi-label model.
        labels: The classes above their thresholds, best first, of a multi-label model; else None.
        probability: The class's softmax, 0..1; of a binary model the second class's sigmoid,
            whichever was decided for; None of a multi-label model.
        margin: Top-1 logit minus top-2 logit; else the smallest distance of a logit from its
            threshold.
        expected: The class that the file's folder names, where the folder is labelled.
        expected_labels: The classes that a table of labels names; None of other models, and where
            it does not name the file.
        top: The best k classes, best first, rank 1 included.
    """

    path: str
    status: str = "ok"
    reason: str = ""
    label: str | None = None
    labels: tuple[str, ...] | None = None
    probability: float | None = None
    margin: float | None = None
    expected: str | None = None
    expected_labels: tuple[str, ...] | None = None
    top: tuple[Ranked, ...] = ()

    @property
    def decided(self) -> tuple[str, ...]:
        """The classes that were decided for: one, unless the model is multi-label."""
        if self.labels is not None:
            return self.labels
        return () if self.label is None else (self.label,)

    @property
    def truth(self) -> tuple[str, ...] | None:
        """The classes that are right, where that is known."""
        return self.expected_labels if self.expected is None else (self.expected,)

    @property
    def ok(self) -> bool:
        """Whether the image could be read."""
        return self.status == "ok"
