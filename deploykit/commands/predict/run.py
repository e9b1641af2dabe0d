"""Predict: one row for each image file of a folder, whatever is wrong with it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from deploykit.bundle.folder import Bundle
from deploykit.commands.predict.tally import tally_of
from deploykit.errors import UsageError
from deploykit.images.scan import FolderPresence, scan_images
from deploykit.inference.pipeline import AnsweredBatch, answer_files, shared_work
from deploykit.proof.auto import AUTO, open_best, open_with_embeddings
from deploykit.specs.model import Labels, Precision
from deploykit.specs.prediction import Prediction, Ranked
from deploykit.specs.session import Closing, Embeddings, Session, SessionSpec
from deploykit.system.progress import Progress, Step, silent
from deploykit.system.threads import StageClock

#: Status and reason of an image whose answer means nothing.
NOT_FINITE = ("non-finite", "the network's answer for this image is NaN or infinite")
TopK: TypeAlias = int | Literal["all"]
"""How many classes a row ranks."""

_DEFAULT_TOP = 5
# What becomes of every file when its drive goes away.
_NOT_THERE = frozenset({"unreadable", "vanished"})


@dataclass(frozen=True)
class PredictRequest:
    """What to predict, and how.

    Attributes:
        source: A folder, a .txt file that lists images, or one image file.
        expected: A table of what is right, see :func:`deploykit.images.truth.read_truth`; without
            one the folders name the classes of images, where an image is of one class.
        top_k: How many classes a row ranks; None for min(5, K).
        runtime: See :func:`deploykit.proof.auto.open_best`.
        precision: The deploy graph's; None for what the runtime takes.
        batch_size: Images a run of the session, fewer where an engine takes fewer; None for 2 on
            the CPU, where each core runs a batch of its own, and 8 on a GPU.
        threads: For decoding, and for computing on the CPU; None for one a core, up to 16 where
            they only decode.
        tf32: Whether a GPU may compute FP32 in TensorFloat-32.
        done: Names of files that have a row already, from a run that was interrupted.
        embeddings: Whether to run the graph that gives embeddings, too.
    """

    source: Path
    top_k: TopK | None = None
    runtime: str = AUTO
    precision: Precision | None = None
    batch_size: int | None = None
    threads: int | None = None
    tf32: bool = False
    expected: Path | None = None
    done: frozenset[str] = frozenset()
    embeddings: bool = False

    def __post_init__(self) -> None:
        for option, number in (("--batch-size", self.batch_size), ("--threads", self.threads)):
            if number is not None and number < 1:
                raise UsageError(f"{option} must be at least 1; got {number}.")


class PredictionRun(Closing):
    """An open session and a folder: iterate once for the rows, then read the tally.

    Use it as a context manager: it owns the session.

    Args:
        bundle: What predicts.
        request: What to predict.
        progress: Called with every stage, after every batch, and with notes about the runtime.

    Attributes:
        bundle: What predicts.
        request: What to predict.
        tally: What the rows so far add up to.
        truth: What is right by a table of labels; None without one.
        clock: What the stages took so far.
        top_k: How many classes a row ranks.
        root: The folder that the rows' paths are relative to.

    Raises:
        UsageError: A number or a runtime that makes no sense.
        ImagesError: There is no image file.
        InputError: The table of labels is not clear, or has no row for an image.
        DeploykitError: See :func:`deploykit.proof.auto.open_best`.
    """

    def __init__(
        self, bundle: Bundle, request: PredictRequest, progress: Progress = silent
    ) -> None:
        self.bundle = bundle
        self.request = request
        self._progress = progress
        labels = bundle.manifest.labels
        self.top_k = checked_top(request.top_k, len(labels))
        progress(Step("scanning"))
        by_folder = request.expected is None and not labels.head.several
        scan = scan_images(request.source, labels.names if by_folder else None)
        self.truth = None
        if request.expected is not None:
            from deploykit.images.truth import read_truth

            self.truth = read_truth(request.expected, scan, labels, progress)
        self.root = scan.root
        self._presence = FolderPresence(scan.root)
        self._files = scan.files
        self.tally = tally_of(labels, skipped=scan.skipped)
        progress(Step("opening", detail=bundle.name))
        self._session: Session = _opener(request)(
            bundle,
            runtime=request.runtime,
            precision=request.precision,
            threads=request.threads,
            pipelined=True,
            tf32=request.tf32,
            progress=progress,
        )
        self._workers, self._batch_size = shared_work(
            self._session.spec, threads=request.threads, batch_size=request.batch_size
        )
        self.clock = StageClock(self._workers, concurrent=self._session.spec.concurrent)

    @property
    def spec(self) -> SessionSpec:
        """What really runs."""
        return self._session.spec

    def close(self) -> None:
        """Close what answers; closing twice is fine."""
        self._session.close()

    def __iter__(self) -> Iterator[Prediction]:
        """Yield one row a file, in the order of the scan; see :meth:`answers`."""
        return (row for row, _ in self.answers())

    def answers(self) -> Iterator[tuple[Prediction, Embeddings | None]]:
        """Yield one row a file, in the order of the scan, and its embedding.

        Yields:
            The row; and (E,) float32, or None of a row that is not ok, and where the request did
            not ask for embeddings.

        Raises:
            UsageError: Memory does not hold the batches.
            InputError: The folder went away meanwhile, or the system opens no more files: no row
                says of a file what is true of all.
        """
        start = time.perf_counter()
        done, labels = self.request.done, self.bundle.manifest.labels
        truth = None if self.truth is None else self.truth.rows
        files = [file for file in self._files if file.name not in done] if done else self._files
        self._tell_progress()
        batches = answer_files(
            files,
            self.bundle.manifest.preprocessing,
            self._session,
            batch_size=self._batch_size,
            workers=self._workers,
            clock=self.clock,
            embedded=self.request.embeddings,
        )
        with contextlib.closing(batches):
            for batch in batches:
                if any(failure and failure.status in _NOT_THERE for failure in batch.failures):
                    self._presence.check()
                rows = rows_of(batch, labels, self.top_k, truth)
                for row, embedding in zip(rows, embeddings_of(batch), strict=True):
                    self.tally.add(row)
                    self.tally.seconds = time.perf_counter() - start
                    yield row, embedding if row.ok else None
                self._tell_progress()

    def _tell_progress(self) -> None:
        done = len(self.request.done) + self.tally.rows
        self._progress(Step("predicting", done, len(self._files), unit="images"))


def _opener(request: PredictRequest) -> Callable[..., Session]:
    """What opens the session of a run."""
    return open_with_embeddings if request.embeddings else open_best


def checked_top(top_k: TopK | None, classes: int) -> int:
    """How many classes a row ranks: at most five where nobody said.

    Raises:
        UsageError: There are not as many classes.
    """
    if top_k == "all":
        return classes
    chosen = min(_DEFAULT_TOP, classes) if top_k is None else top_k
    if not 1 <= chosen <= classes:
        raise UsageError(f"--top-k must be 1 to {classes}, the classes; got {chosen}.")
    return chosen


def embeddings_of(batch: AnsweredBatch) -> Iterator[Embeddings | None]:
    """The embedding, (E,), of each of a batch's files, in their order; None where there is none."""
    answers = iter([] if batch.embeddings is None else batch.embeddings)
    for failure in batch.failures:
        yield None if failure is not None else next(answers, None)


def rows_of(
    batch: AnsweredBatch,
    labels: Labels,
    top_k: int,
    truth: Mapping[str, tuple[str, ...]] | None = None,
) -> Iterator[Prediction]:
    """A row for each of a batch's files, in their order.

    A file that cannot be read, and an answer that is not finite, have a row that says so.

    Args:
        batch: The files and their logits.
        labels: What the logits mean.
        top_k: How many classes a row ranks.
        truth: The classes of files of which they are known, by the files' names; None for what
            their folders say.
    """
    finite = np.asarray(np.isfinite(batch.logits).all(axis=1))
    usable = np.where(finite[:, None], batch.logits, 0)
    head, names = labels.head, labels.names
    probabilities, margin = head.probabilities(usable), head.margins(usable)
    headline = head.headline(probabilities)
    chosen = head.chosen(head.decide(usable), len(labels)) if head.several else None
    # Stable, so that of equal logits the first class wins, as argmax has it in training.
    ranking = np.argsort(-head.scores(usable), axis=1, kind="stable")
    answer = itertools.count()
    for file, failure in zip(batch.files, batch.failures, strict=True):
        expected, expected_labels = file.expected, None
        if truth is not None:
            known = truth.get(file.name)
            expected = known[0] if known and not head.several else None
            expected_labels = known if head.several else None
        if failure is None and finite[i := next(answer)]:
            ranked = ranking[i]
            decided = None if chosen is None else ranked[chosen[i, ranked]].tolist()
            yield Prediction(
                path=file.name,
                label=None if decided is not None else names[ranked[0]],
                labels=None if decided is None else tuple(names[k] for k in decided),
                probability=None if headline is None else float(headline[i]),
                margin=float(margin[i]),
                expected=expected,
                expected_labels=expected_labels,
                top=tuple(
                    Ranked(label=names[k], probability=float(probabilities[i, k]))
                    for k in ranked[:top_k].tolist()
                ),
            )
        else:
            status, reason = NOT_FINITE if failure is None else (failure.status, failure.reason)
            yield Prediction(
                path=file.name,
                status=status,
                reason=reason,
                expected=expected,
                expected_labels=expected_labels,
            )
