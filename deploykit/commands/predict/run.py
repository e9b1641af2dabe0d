"""Predict: one row for each image file of a folder, whatever is wrong with it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from deploykit.bundle.folder import Bundle
from deploykit.commands.predict.tally import tally_of
from deploykit.errors import UsageError
from deploykit.images.scan import FolderPresence, ImageFile, Scan
from deploykit.images.sources import Listed, Source
from deploykit.images.sources.ahead import read_ahead
from deploykit.images.sources.opening import open_source, source_root
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
        source: See :func:`deploykit.images.sources.opening.open_source`.
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
        embeddings: Whether to run the graph that gives embeddings, too.
        every: Of a video, seconds from one frame to the next; None for 1.
    """

    source: Path
    top_k: TopK | None = None
    runtime: str = AUTO
    precision: Precision | None = None
    batch_size: int | None = None
    threads: int | None = None
    tf32: bool = False
    expected: Path | None = None
    embeddings: bool = False
    every: Fraction | None = None

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
        listed: Whether a plan lists the files already, so that nobody needs to look for them.
        opener: Opens a session that stands for those of other processes, as a scheduler's
            ``open_session`` does; None from it, or in its place, for one of this process.

    Attributes:
        bundle: What predicts.
        request: What to predict.
        session: What answers; close the run, not this.
        source: Where the images come from; None where a plan lists them.
        tally: What the rows so far add up to, of who iterates.
        clock: What the stages took so far.
        top_k: How many classes a row ranks.
        root: What the rows' paths are relative to.

    Raises:
        UsageError: A number or a runtime that makes no sense.
        ImagesError: There is no image file.
        InputError: The table of labels is not clear, or has no row for an image.
        DeploykitError: See :func:`deploykit.proof.auto.open_best`.
    """

    def __init__(
        self,
        bundle: Bundle,
        request: PredictRequest,
        progress: Progress = silent,
        *,
        listed: bool = False,
        opener: Callable[..., Session | None] | None = None,
    ) -> None:
        self.bundle = bundle
        self.request = request
        self._progress = progress
        labels = bundle.manifest.labels
        self.top_k = checked_top(request.top_k, len(labels))
        self.source: Source | None = None
        if listed:
            self.root = source_root(request.source)
        else:
            progress(Step("scanning"))
            self.source = _opened(request, labels, progress)
            self.root = self.source.root
        self._presence = FolderPresence(self.root)
        self.tally = tally_of(labels)
        progress(Step("opening", detail=bundle.name))
        far = None if opener is None else opener(bundle, request, self.root, progress)
        self.session: Session = far or _opener(request)(
            bundle,
            runtime=request.runtime,
            precision=request.precision,
            threads=request.threads,
            pipelined=True,
            tf32=request.tf32,
            progress=progress,
        )
        self._workers, self._batch_size = shared_work(
            self.session.spec, threads=request.threads, batch_size=request.batch_size
        )
        self.clock = StageClock(self._workers, concurrent=self.session.spec.concurrent)

    @property
    def spec(self) -> SessionSpec:
        """What really runs."""
        return self.session.spec

    def close(self) -> None:
        """Close what answers; closing twice is fine."""
        self.session.close()

    def __iter__(self) -> Iterator[Prediction]:
        """Yield one row a file, in the order of the scan; see :meth:`answers`."""
        files = () if self.source is None else tuple(self.source)
        self.tally.skipped = 0 if self.source is None else self.source.skipped
        start = time.perf_counter()
        for row, _ in self.answers(files, len(files)):
            self.tally.add(row)
            self.tally.seconds = time.perf_counter() - start
            yield row

    def answers(
        self, files: Iterable[ImageFile], count: int, *, done: int = 0
    ) -> Generator[tuple[Prediction, Embeddings | None], None, None]:
        """Yield one row a file, in the order of the files, and its embedding.

        Args:
            files: What to predict, taken as it is needed.
            count: How many there are.
            done: How many other files have a row already, for the progress.

        Yields:
            The row; and (E,) float32, or None of a row that is not ok, and where the request did
            not ask for embeddings.

        Raises:
            UsageError: Memory does not hold the batches.
            InputError: The folder went away meanwhile, or the system opens no more files: no row
                says of a file what is true of all.
        """
        labels, total = self.bundle.manifest.labels, done + count
        self._progress(Step("predicting", done, total, unit="images"))
        read = read_ahead(files)
        batches = answer_files(
            read,
            self.bundle.manifest.preprocessing,
            self.session,
            count=count,
            batch_size=self._batch_size,
            workers=self._workers,
            clock=self.clock,
            embedded=self.request.embeddings,
        )
        with contextlib.closing(read), contextlib.closing(batches):
            for batch in batches:
                if any(failure and failure.status in _NOT_THERE for failure in batch.failures):
                    self._presence.check()
                rows = rows_of(batch, labels, self.top_k)
                for row, embedding in zip(rows, embeddings_of(batch), strict=True):
                    yield row, embedding if row.ok else None
                done += len(batch.files)
                self._progress(Step("predicting", done, total, unit="images"))


def _opened(request: PredictRequest, labels: Labels, progress: Progress) -> Source:
    """A source, with what is right of each image where that is known."""
    several = labels.head.several
    by_folder = request.expected is None and not several
    source = open_source(request.source, labels.names if by_folder else (), every=request.every)
    if request.expected is None:
        return source
    scan = Scan(source.path, source.root, tuple(source), source.skipped)
    from deploykit.images.truth import read_truth

    known = read_truth(request.expected, scan, labels, progress).rows

    def with_truth(file: ImageFile) -> ImageFile:
        classes = known.get(file.name)
        if several:
            return replace(file, expected_labels=classes)
        return replace(file, expected=classes[0] if classes else None)

    return Listed(scan, map(with_truth, scan.files))


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


def rows_of(batch: AnsweredBatch, labels: Labels, top_k: int) -> Iterator[Prediction]:
    """A row for each of a batch's files, in their order.

    A file that cannot be read, and an answer that is not finite, have a row that says so.

    Args:
        batch: The files and their logits.
        labels: What the logits mean.
        top_k: How many classes a row ranks.
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
        if failure is None and finite[i := next(answer)]:
            ranked = ranking[i]
            decided = None if chosen is None else ranked[chosen[i, ranked]].tolist()
            yield Prediction(
                path=file.name,
                label=None if decided is not None else names[ranked[0]],
                labels=None if decided is None else tuple(names[k] for k in decided),
                probability=None if headline is None else float(headline[i]),
                margin=float(margin[i]),
                expected=file.expected,
                expected_labels=file.expected_labels,
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
                expected=file.expected,
                expected_labels=file.expected_labels,
            )
