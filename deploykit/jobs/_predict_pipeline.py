"""The pipeline of a prediction: files in, logits out, in order, on every core.

On the CPU each worker takes a batch all the way, from the files to the logits, with a session that
computes in the worker's own thread. No core waits for another's stage, and none is fought for. On a
GPU the workers read, and one thread keeps the device busy.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from deploykit.images.batches import Batch, read_batches, read_into
from deploykit.images.decode import Failure
from deploykit.images.scan import ImageFile
from deploykit.session import ImageBatch, Logits, PipelinedSession, Session
from deploykit.specs import Preprocessing
from deploykit.stages import StageClock

#: While the device computes one batch, the host hands it the next.
_IN_FLIGHT = 2


@dataclass(frozen=True, eq=False, slots=True)
class AnsweredBatch:
    """Consecutive files, and the logits of those that could be read.

    Attributes:
        files: The files, in the order they were given.
        failures: For each file what is wrong with it, or None.
        logits: (N, K) float32, a row for each file without a failure.
    """

    files: tuple[ImageFile, ...]
    failures: tuple[Failure | None, ...]
    logits: Logits


def answer_files(
    files: Sequence[ImageFile],
    preprocessing: Preprocessing,
    session: Session,
    *,
    batch_size: int,
    workers: int,
    clock: StageClock,
) -> Generator[AnsweredBatch, None, None]:
    """Read files and run a session on them.

    The memory in use does not depend on the number of files.

    Args:
        files: What to read.
        preprocessing: What was done in training.
        session: What answers.
        batch_size: The most files a run of the session; towards the end fewer, so that no core is
            idle while another has a whole batch to do.
        workers: Threads.
        clock: Told what the stages take.

    Yields:
        Batch after batch, in the order of the files.
    """
    if session.spec.concurrent:
        return _on_host(files, preprocessing, session, batch_size, workers, clock)
    return _on_device(files, preprocessing, session, batch_size, workers, clock)


def _on_device(
    files: Sequence[ImageFile],
    preprocessing: Preprocessing,
    session: Session,
    batch_size: int,
    workers: int,
    clock: StageClock,
) -> Generator[AnsweredBatch, None, None]:
    batches = read_batches(
        files, preprocessing, batch_size=batch_size, threads=workers, clock=clock
    )
    started: deque[tuple[Batch, Callable[[], Logits]]] = deque()
    for batch in batches:
        with clock.waiting("session"):
            started.append((batch, _start(session, batch.images)))
        if len(started) == _IN_FLIGHT:
            yield _finish(*started.popleft(), clock)
    while started:
        yield _finish(*started.popleft(), clock)


def _start(session: Session, images: ImageBatch) -> Callable[[], Logits]:
    """Begin a batch, and return what waits for its logits."""
    if len(images) and isinstance(session, PipelinedSession):
        return partial(session.collect, session.submit(images))
    logits = _run(session, images)
    return lambda: logits


def _finish(batch: Batch, wait: Callable[[], Logits], clock: StageClock) -> AnsweredBatch:
    with clock.waiting("session"):
        logits = wait()
    return AnsweredBatch(batch.files, batch.failures, logits)


def _on_host(
    files: Sequence[ImageFile],
    preprocessing: Preprocessing,
    session: Session,
    batch_size: int,
    workers: int,
    clock: StageClock,
) -> Generator[AnsweredBatch, None, None]:
    local = threading.local()

    def work(group: tuple[ImageFile, ...]) -> AnsweredBatch:
        if not hasattr(local, "images"):
            local.images = np.empty((batch_size, *preprocessing.input_size, 3), np.uint8)
        images: ImageBatch = local.images
        failures: list[Failure | None] = []
        readable = 0
        for file in group:
            # The row of a file that cannot be read is the next one's.
            failure = read_into(file, preprocessing, images[readable], clock)
            readable += failure is None
            failures.append(failure)
        with clock.computing("session"):
            logits = _run(session, images[:readable])
        return AnsweredBatch(group, tuple(failures), logits)

    return _in_order(work, _groups(files, batch_size, workers), workers)


def _run(session: Session, images: ImageBatch) -> Logits:
    if len(images) == 0:
        return np.empty((0, session.spec.classes), np.float32)
    return session.run(images)


def _groups(
    files: Sequence[ImageFile], batch_size: int, workers: int
) -> Iterator[tuple[ImageFile, ...]]:
    """Cut files into batches that get smaller when fewer are left than would keep all busy."""
    start = 0
    while start < len(files):
        share = -(-(len(files) - start) // (2 * workers))
        size = min(batch_size, share)
        yield tuple(files[start : start + size])
        start += size


def _in_order(
    work: Callable[[tuple[ImageFile, ...]], AnsweredBatch],
    groups: Iterator[tuple[ImageFile, ...]],
    workers: int,
) -> Generator[AnsweredBatch, None, None]:
    """Do the work on threads, a few groups ahead of whoever consumes the results."""
    executor = ThreadPoolExecutor(workers, thread_name_prefix="deploykit-predict")
    pending: deque[Future[AnsweredBatch]] = deque()
    try:
        for group in groups:
            pending.append(executor.submit(work, group))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
