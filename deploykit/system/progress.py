"""How a job tells what it is doing: it calls back with events, and never prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Step:
    """A stage has come this far.

    Attributes:
        stage: What is being done, as a person would say it: ``exporting``, ``comparing``.
        done: How much is done, in the stage's own unit (images, epochs).
        total: How much there is; None when it is not known.
        detail: What exactly is being done, where a stage has parts.
        unit: What is counted, where people care how fast it goes: ``images``.
    """

    stage: str
    done: int = 0
    total: int | None = None
    detail: str = ""
    unit: str = ""

    def __str__(self) -> str:
        detail = f": {self.detail}" if self.detail else ""
        of = "" if self.total is None else f" ({self.done} of {self.total})"
        return f"{self.stage}{detail}{of}"


@dataclass(frozen=True)
class Note:
    """Something that the user should read: an assumption, a choice, a finished epoch."""

    message: str

    def __str__(self) -> str:
        return self.message


Progress: TypeAlias = Callable[[Step | Note], None]


def silent(event: Step | Note) -> None:
    """Ignore an event: the default callback."""
    del event


def without_repeats(progress: Progress) -> Progress:
    """A callback that passes on every event, but each note only once."""
    told: set[Note] = set()

    def on_event(event: Step | Note) -> None:
        if event in told:
            return
        if isinstance(event, Note):
            told.add(event)
        progress(event)

    return on_event
