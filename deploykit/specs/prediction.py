"""The answer for one image file."""

from __future__ import annotations

from deploykit.specs.value import Shown, Value


class Ranked(Value, frozen=True):
    """One of the top-k answers for an image.

    Attributes:
        label: The class's name.
        probability: The softmax of its logit, 0..1.
    """

    label: str
    probability: float


class Prediction(Shown, Value, frozen=True):
    """The answer for one image file; exactly one for each file, whatever is wrong with it.

    Attributes:
        path: Relative to the folder that was asked for, ``/`` on every system.
        status: ``ok``, or in a word what is wrong with the file: ``corrupt``, ``truncated``, ...
        reason: The same in a sentence; empty when ok.
        label: The top-1 class; None unless ok, as the fields below.
        probability: The top-1 class's softmax, 0..1.
        margin: Top-1 logit minus top-2 logit.
        expected: The class that the file's folder names, where the folder is labelled.
        top: The best k classes, best first, rank 1 included.
    """

    path: str
    status: str = "ok"
    reason: str = ""
    label: str | None = None
    probability: float | None = None
    margin: float | None = None
    expected: str | None = None
    top: tuple[Ranked, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the image could be read."""
        return self.status == "ok"
