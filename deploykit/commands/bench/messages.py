"""What ``bench`` and the processes that measure for it say to each other: a line of JSON each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self, TypeAlias

from deploykit.commands.bench.results import Option
from deploykit.images.scan import ImageFile
from deploykit.specs.session import SessionSpec
from deploykit.specs.value import Value


class Sample(Value, frozen=True):
    """Photos, as what can be sent: a path need not be Unicode.

    Attributes:
        root: The folder, as the system's bytes.
        photos: The name of each photo, and its class where the folder tells.
    """

    root: bytes
    photos: tuple[tuple[str, str | None], ...]

    @classmethod
    def of(cls, root: Path, files: list[ImageFile]) -> Self:
        """Photos of one folder."""
        return cls(
            root=os.fsencode(root), photos=tuple((file.name, file.expected) for file in files)
        )

    @property
    def files(self) -> list[ImageFile]:
        """The same, to be read."""
        root = Path(os.fsdecode(self.root))
        return [ImageFile(root, name, expected) for name, expected in self.photos]


class Begin(Value, frozen=True, tag=True):
    """Open an option as a prediction does, and give one photo's logits with it.

    Attributes:
        bundle: Its folder, as the system's bytes.
        option: What to open.
        sample: Photos that can be read.
    """

    bundle: bytes
    option: Option
    sample: Sample


class Begun(Value, frozen=True, tag=True):
    """The answer, given as soon as the logits are there.

    Attributes:
        spec: What really runs.
        batch_size: The most photos that a run of a prediction takes.
    """

    spec: SessionSpec
    batch_size: int


class PredictSample(Value, frozen=True, tag=True):
    """Predict the sample once."""


class SamplePredicted(Value, frozen=True, tag=True):
    """The answer.

    Attributes:
        peak_memory_bytes: Of this process, which has done nothing else; None where the system does
            not tell.
        images_per_second: Of the sample.
        labelled: Photos of it whose class the folder tells.
        correct: Those of them whose answer is that class.
    """

    peak_memory_bytes: int | None
    images_per_second: float
    labelled: int
    correct: int


class Compute(Value, frozen=True, tag=True):
    """Run the session alone, with batches of one size after the other.

    Attributes:
        batches: Images a run, of each size.
        seconds: Go on for so long with each; at least one run.
    """

    batches: tuple[int, ...]
    seconds: float


class Computed(Value, frozen=True, tag=True):
    """The answer.

    Attributes:
        seconds: Of each run by the batch size, from images in memory to logits in memory.
        refusals: The batch sizes that cannot run, and why.
    """

    seconds: dict[int, tuple[float, ...]]
    refusals: dict[int, str]


class Predict(Value, frozen=True, tag=True):
    """Predict so many photos, from their files to their logits; the sample again and again."""

    images: int


class Predicted(Value, frozen=True, tag=True):
    """The answer: how long it took."""

    seconds: float


class Refused(Value, frozen=True, tag=True):
    """The answer to anything that fails.

    Attributes:
        message: The error's.
        hint: The error's.
        exit_code: The error's.
        damaged: Whether a file of the bundle is missing or has changed.
    """

    message: str
    hint: str | None
    exit_code: int
    damaged: bool


Request: TypeAlias = Begin | PredictSample | Compute | Predict
Reply: TypeAlias = Begun | SamplePredicted | Computed | Predicted | Refused
