"""Predict: one row for each image file of a folder, whatever is wrong with it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.commands.predict.tally import Tally, describe_failures
from deploykit.errors import ImagesError, UsageError
from deploykit.images.scan import FolderPresence, scan_images
from deploykit.inference.pipeline import AnsweredBatch, answer_files, shared_work
from deploykit.parity.measures import margins, softmax
from deploykit.proof.auto import AUTO, open_best
from deploykit.specs.model import Labels, Precision
from deploykit.specs.prediction import Prediction, Ranked
from deploykit.specs.session import Closing, Logits, SessionSpec
from deploykit.system.progress import Progress, Step, silent
from deploykit.system.threads import StageClock, worker_stages

NON_FINITE = "non-finite"
_DEFAULT_TOP = 5
# What becomes of every file when its drive goes away.
_NOT_THERE = frozenset({"unreadable", "vanished"})


@dataclass(frozen=True)
class PredictRequest:
    """What to predict, and how.

    Attributes:
        source: A folder, a .txt file that lists images, or one image file.
        top_k: How many classes a row ranks; None for min(5, K).
        runtime: See :func:`deploykit.proof.auto.open_best`.
        precision: The deploy graph's; None for what the runtime takes.
        batch_size: Images a run of the session, fewer where an engine takes fewer; None for 2 on
            the CPU, where each core runs a batch of its own, and 8 on a GPU.
        threads: For decoding, and for computing on the CPU; None for one a core, up to 16 where
            they only decode.
        tf32: Whether a GPU may compute FP32 in TensorFloat-32.
        done: Names of files that have a row already, from a run that was interrupted.
    """

    source: Path
    top_k: int | None = None
    runtime: str = AUTO
    precision: Precision | None = None
    batch_size: int | None = None
    threads: int | None = None
    tf32: bool = False
    done: frozenset[str] = frozenset()


class PredictionRun(Closing):
    """An open session and a folder: iterate once for the rows, then read the tally.

    Use it as a context manager: it owns the session.

    Args:
        bundle: What predicts.
        request: What to predict.
        progress: Called with every stage, after every batch, and with notes about the runtime.

    Attributes:
        tally: What the rows so far add up to.
        clock: What the stages took so far.
        top_k: How many classes a row ranks.
        root: The folder that the rows' paths are relative to.

    Raises:
        UsageError: A number or a runtime that makes no sense.
        ImagesError: There is no image file.
        DeploykitError: See :func:`deploykit.proof.auto.open_best`.
    """

    def __init__(
        self, bundle: Bundle, request: PredictRequest, progress: Progress = silent
    ) -> None:
        self._labels = bundle.manifest.labels
        self._preprocessing = bundle.manifest.preprocessing
        self._request = request
        self._progress = progress
        _check_numbers(request)
        classes = len(self._labels)
        self.top_k = min(_DEFAULT_TOP, classes) if request.top_k is None else request.top_k
        if not 1 <= self.top_k <= classes:
            raise UsageError(f"--top-k must be 1 to {classes}, the classes; got {self.top_k}.")
        progress(Step("scanning"))
        scan = scan_images(request.source, self._labels.names)
        self.root = scan.root
        self._presence = FolderPresence(scan.root)
        self._files = scan.files
        self.tally = Tally(skipped=scan.skipped)
        progress(Step("opening", detail=bundle.name))
        self._session = open_best(
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
        shared = worker_stages(concurrent=self._session.spec.concurrent)
        self.clock = StageClock(self._workers, shared)

    @property
    def spec(self) -> SessionSpec:
        """What really runs."""
        return self._session.spec

    @property
    def total(self) -> int:
        """How many rows there will be."""
        return len(self._files)

    def close(self) -> None:
        """Close what answers; closing twice is fine."""
        self._session.close()

    def __iter__(self) -> Iterator[Prediction]:
        """Yield one row a file, in the order of the scan.

        Raises:
            ImagesError: At the end, when not one of the files could be read.
            UsageError: Memory does not hold the batches.
            InputError: The folder went away meanwhile, or the system opens no more files: no row
                says of a file what is true of all.
        """
        start = time.perf_counter()
        done = self._request.done
        files = [file for file in self._files if file.name not in done] if done else self._files
        self._tell_progress()
        batches = answer_files(
            files,
            self._preprocessing,
            self._session,
            batch_size=self._batch_size,
            workers=self._workers,
            clock=self.clock,
        )
        with contextlib.closing(batches):
            for batch in batches:
                if any(failure and failure.status in _NOT_THERE for failure in batch.failures):
                    self._presence.check()
                for row in self._rows(batch):
                    self.tally.add(row)
                    self.tally.seconds = time.perf_counter() - start
                    yield row
                self._tell_progress()
        if self.tally.ok == 0 and not done:
            raise self.nothing_predicted()

    def _tell_progress(self) -> None:
        done = len(self._request.done) + self.tally.rows
        self._progress(Step("predicting", done, self.total, unit="images"))

    def nothing_predicted(self) -> ImagesError:
        """The error to end with when not one file has a prediction."""
        return ImagesError(
            f"No image in {self._request.source} has a prediction, of {self.tally.rows}: "
            f"{describe_failures(self.tally)}."
        )

    def _rows(self, batch: AnsweredBatch) -> Iterator[Prediction]:
        """A row for each of a batch's files, in their order."""
        readable = [
            file
            for file, failure in zip(batch.files, batch.failures, strict=True)
            if failure is None
        ]
        answers = iter(
            predictions(
                batch.logits,
                [file.name for file in readable],
                [file.expected for file in readable],
                self._labels,
                self.top_k,
            )
        )
        for file, failure in zip(batch.files, batch.failures, strict=True):
            if failure is None:
                yield next(answers)
            else:
                yield Prediction(
                    path=file.name,
                    status=failure.status,
                    reason=failure.reason,
                    expected=file.expected,
                )


def _check_numbers(request: PredictRequest) -> None:
    for option, number in (
        ("--batch-size", request.batch_size),
        ("--threads", request.threads),
    ):
        if number is not None and number < 1:
            raise UsageError(f"{option} must be at least 1; got {number}.")


def predict_folder(
    bundle: Path | str,
    source: Path | str,
    *,
    top_k: int | None = None,
    runtime: str = AUTO,
    precision: Precision | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
) -> Iterator[Prediction]:
    """Predict a folder of images, or one file.

    Rows come as they are predicted and are kept nowhere: the journal and ``--resume`` are the
    command's.

    Args:
        bundle: The bundle's folder.
        source: A folder, whose files are told by their ending, a .txt file that lists images, or
            one image file.
        top_k: See :class:`PredictRequest`, as the arguments below.
        runtime: What executes.
        precision: The deploy graph's.
        batch_size: Images a run.
        threads: CPU threads.

    Yields:
        One prediction a file, in a stable order; see :class:`Prediction` for files that cannot be
        read.

    Raises:
        DeploykitError: See :class:`PredictionRun`.
    """
    if not str(source):
        raise UsageError("The source is an empty path.", hint="The current folder is '.'.")
    request = PredictRequest(Path(source), top_k, runtime, precision, batch_size, threads)
    with PredictionRun(open_bundle(Path(bundle)), request) as run:
        yield from run


def predictions(
    logits: Logits,
    paths: list[str],
    expected: list[str | None],
    labels: Labels,
    top_k: int,
) -> list[Prediction]:
    """Turn (N, K) logits into N rows; an answer that is not finite becomes a row that says so."""
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    usable = np.where(finite[:, None], logits, 0)
    probabilities, margin = softmax(usable), margins(usable)
    # Stable, so that of equal logits the first class wins, as argmax has it in training.
    ranking = np.argsort(-usable, axis=1, kind="stable")[:, :top_k]
    return [
        _ranked(path, wanted, labels, probabilities[i], float(margin[i]), ranking[i].tolist())
        if finite[i]
        else Prediction(
            path=path,
            status=NON_FINITE,
            reason="the network's answer for this image is NaN or infinite",
            expected=wanted,
        )
        for i, (path, wanted) in enumerate(zip(paths, expected, strict=True))
    ]


def _ranked(
    path: str,
    expected: str | None,
    labels: Labels,
    probabilities: npt.NDArray[np.float64],
    margin: float,
    ranking: list[int],
) -> Prediction:
    top = tuple(Ranked(label=labels.names[i], probability=float(probabilities[i])) for i in ranking)
    return Prediction(
        path=path,
        label=top[0].label,
        probability=top[0].probability,
        margin=margin,
        expected=expected,
        top=top,
    )
