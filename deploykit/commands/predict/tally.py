"""What the rows of a prediction add up to."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deploykit.errors import InputError
from deploykit.specs.model import Labels
from deploykit.specs.prediction import Prediction
from deploykit.specs.value import Shown

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.bundle.embeddings import EmbeddingsRecord
    from deploykit.bundle.folder import Bundle
    from deploykit.proof.policy import Status
    from deploykit.specs.session import SessionSpec
    from deploykit.system.threads import Stage

#: In memory; what is more is on the disk, so that memory does not grow with the images.
_SPOOLED_BYTES = 2**24
_READ_BYTES = 2**26


@dataclass
class Tally:
    """What the rows so far add up to.

    Attributes:
        rows: Image files.
        failures: Rows that are not ok, by status.
        labels: Rows that are ok, by label.
        unlabelled: Rows that are ok and were given no label, as a multi-label model may.
        labelled: Rows that are ok and whose classes are known.
        correct: Those of them that were given exactly these classes.
        classes: How each class fares, where thresholds decide for classes; else None.
        skipped: Other files in the folder, which have no row.
        seconds: What the rows took, reading included; of several workers together.
        only: The row, where there is no other.
    """

    rows: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    labelled: int = 0
    correct: int = 0
    classes: ClassTally | None = None
    skipped: int = 0
    seconds: float = 0.0
    only: Prediction | None = None

    @property
    def ok(self) -> int:
        """Rows with a prediction."""
        return self.rows - self.failures.total()

    @property
    def accuracy(self) -> float | None:
        """The part of labelled rows that is correct, 0..1; None without any."""
        return self.correct / self.labelled if self.labelled else None

    @property
    def images_per_second(self) -> float | None:
        """Rows with a prediction a second, reading included; of several workers, each one's."""
        return self.ok / self.seconds if self.seconds > 0 else None

    @property
    def failures_text(self) -> str:
        """The rows that are not ok, by kind: ``2 corrupt, 1 truncated``."""
        return ", ".join(f"{count} {status}" for status, count in self.failures.most_common())

    def add(self, row: Prediction) -> None:
        """Count a row."""
        self.rows += 1
        self.only = row if self.rows == 1 else None
        if not row.ok:
            self.failures[row.status] += 1
            return
        self.labels.update(row.decided)
        self.unlabelled += not row.decided
        if row.truth is not None:
            self.labelled += 1
            self.correct += {*row.decided} == {*row.truth}
            if self.classes is not None:
                self.classes.add(row, row.truth)


@dataclass
class HostWork:
    """What a machine has done for a run.

    Attributes:
        rows: How many there are from it.
        seconds: What they took; of several workers together.
    """

    rows: int = 0
    seconds: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Count a part."""
        self.rows += rows
        self.seconds += seconds

    def images_per_second(self, workers: int = 1) -> float | None:
        """Of so many workers side by side."""
        return workers * self.rows / self.seconds if self.seconds > 0 else None


@dataclass
class ClusterReport:
    """What became of the workers of a cluster, in one command's run.

    Attributes:
        workers: How many worked side by side, by host.
        refused: Why a host was given nothing, by host.
        lost: How many workers ended before the run did.
        doubled: How many shards took so long that a second worker began them.
        predicted: How many files were predicted.
        seconds: In how many seconds; the opening of the sessions is not included.
    """

    workers: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    doubled: int = 0
    predicted: int = 0
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float | None:
        """Of all workers together, files without a prediction included."""
        return self.predicted / self.seconds if self.seconds > 0 else None


@dataclass(repr=False, kw_only=True)
class PredictionSummary(Shown):
    """A run that has ended. It prints as the command's summary.

    Attributes:
        bundle: What predicted.
        spec: What really ran.
        top_k: How many classes a row ranks.
        source: What was predicted.
        root: The folder that the rows' paths are relative to.
        tally: What the rows add up to.
        stage_seconds: What the stages took.
        status: Whether what ran is proven to decide as the trained network does.
        outputs: The files that were written.
        embeddings: What the embeddings are that were written, too; None without any.
        hosts: What each machine has predicted, by its name; empty where that is not known.
        report: What became of the workers of a cluster; None without one.
    """

    bundle: Bundle
    spec: SessionSpec
    top_k: int
    source: Path
    root: Path
    tally: Tally
    stage_seconds: dict[Stage, float]
    status: Status
    outputs: list[Path] = field(default_factory=list)
    embeddings: EmbeddingsRecord | None = None
    hosts: dict[str, HostWork] = field(default_factory=dict)
    report: ClusterReport | None = None


@dataclass(frozen=True, repr=False)
class ShardSummary(Shown):
    """What one of several processes has done for a run.

    Attributes:
        shard: Which one it was: ``3/40``.
        predicted: How many files it predicted.
        rows: How many of the run's files have their rows.
        files: How many the run has.
        folder: The run's.
    """

    shard: str
    predicted: int
    rows: int
    files: int
    folder: Path


def tally_of(labels: Labels, *, skipped: int = 0) -> Tally:
    """An empty tally of a model's rows.

    Of a model whose classes thresholds decide for, it keeps how each class fares: a threshold
    trades precision for recall.
    """
    classes = ClassTally(labels.names) if labels.head.thresholds else None
    return Tally(classes=classes, skipped=skipped)


@dataclass(frozen=True)
class ClassResult:
    """How a class fares, by scikit-learn's definitions.

    Attributes:
        label: The class.
        images: How many images are of it.
        decided: How many were given it.
        correct: How many were rightly given it.
        average_precision: See :func:`deploykit.parity.accuracy.average_precision`; None where no
            image is of it, or where not all rows rank all classes.
    """

    label: str
    images: int
    decided: int
    correct: int
    average_precision: float | None

    @property
    def recall(self) -> float | None:
        """The part of its images that were given it; None without any."""
        return self.correct / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """The part of the images given it that are of it; None without any."""
        return self.correct / self.decided if self.decided else None


class ClassTally:
    """Counts of classes over labelled rows, and the probabilities that rank images.

    Args:
        labels: The classes.

    Attributes:
        complete: Whether each row ranks all classes, as average precision needs it.
    """

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.complete = True
        self._labels = labels
        self._index = {label: i for i, label in enumerate(labels)}
        self._images = Counter[str]()
        self._decided = Counter[str]()
        self._correct = Counter[str]()
        self._rows = 0
        self._scores = tempfile.SpooledTemporaryFile(_SPOOLED_BYTES)  # noqa: SIM115
        weakref.finalize(self, self._scores.close)
        self._results: tuple[ClassResult, ...] | None = None

    def add(self, row: Prediction, truth: tuple[str, ...]) -> None:
        """Count a row whose classes are known."""
        self._images.update(truth)
        self._decided.update(row.decided)
        self._correct.update({*truth} & {*row.decided})
        self._rows += 1
        self._results = None
        self.complete = self.complete and len(row.top) == len(self._labels)
        if self.complete:
            scores = np.empty(len(self._labels))
            for each in row.top:
                scores[self._index[each.label]] = each.probability
            # The sign says whether the image is of the class; a zero has one, too.
            scores[[self._index[label] for label in truth]] *= -1
            with _keeping():
                self._scores.write(scores.tobytes())

    def results(self) -> tuple[ClassResult, ...]:
        """Each class that an image is of or was given, in the order of the labels."""
        if self._results is None:
            precisions = [*self._average_precisions()] if self.complete else []
            self._results = tuple(
                ClassResult(
                    label,
                    self._images[label],
                    self._decided[label],
                    self._correct[label],
                    precisions[i] if precisions else None,
                )
                for i, label in enumerate(self._labels)
                if self._images[label] or self._decided[label]
            )
        return self._results

    @property
    def mean_average_precision(self) -> float | None:
        """Over the classes that have images; None where it is not known."""
        known = [each.average_precision for each in self.results()]
        return float(np.mean(found)) if (found := [p for p in known if p is not None]) else None

    def _average_precisions(self) -> Iterator[float | None]:
        """One a class; a few classes are in memory at a time."""
        from deploykit.parity.accuracy import average_precision  # most runs have no use for it

        width = len(self._labels)
        step = max(1, _READ_BYTES // max(1, 8 * self._rows))
        for start in range(0, width, step):
            columns = self._columns(slice(start, start + step))
            for scores in columns.T:
                truth = np.signbit(scores)
                yield average_precision(truth, np.abs(scores)) if truth.any() else None

    def _columns(self, places: slice) -> npt.NDArray[np.float64]:
        """(N, C) the signed probabilities of some classes."""
        width = len(self._labels)
        found = []
        with _keeping():
            self._scores.seek(0)
            while part := self._scores.read(8 * width * max(1, _SPOOLED_BYTES // (8 * width))):
                found.append(np.frombuffer(part).reshape(-1, width)[:, places].copy())
            self._scores.seek(0, 2)
        return np.concatenate(found) if found else np.empty((0, width))[:, places]


@contextlib.contextmanager
def _keeping() -> Iterator[None]:
    """Say what keeps probabilities from being kept."""
    try:
        yield
    except OSError as exc:
        raise InputError(
            "The probabilities that average precision follows from cannot be kept in "
            f"{tempfile.gettempdir()}: {exc.strerror or exc}.",
            hint="Make room there, name another folder in the variable TMPDIR, or leave --top-k "
            "all out.",
        ) from exc
