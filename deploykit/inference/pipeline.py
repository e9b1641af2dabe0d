"""The pipeline of a prediction: files in, logits out, in order, on every core.

On the CPU each worker takes a batch all the way, from the files to the logits, with a session that
computes in the worker's own thread. No core waits for another's stage, and none is fought for. With
a session that has a device or threads of its own, a GPU's or OpenVINO's, the workers read, and one
thread keeps it busy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import TypeAlias, cast

import numpy as np

from deploykit.images.batches import (
    Batch,
    allocate_buffers,
    default_threads,
    read_batch,
    read_batches,
)
from deploykit.images.decode import Failure
from deploykit.images.preprocess import pixel_digest
from deploykit.images.scan import ImageFile
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import (
    Embeddings,
    EmbeddingSession,
    ImageBatch,
    Logits,
    PipelinedEmbeddingSession,
    PipelinedSession,
    Session,
    SessionSpec,
)
from deploykit.system.threads import StageClock, in_order, usable_cpus

# Measured on two cores: with efficientnet_b0 and dpn92 two images give 5 % more images/s than eight
# do, with a network of almost no work 6 % fewer; a worker takes a quarter of the memory.
_BATCH_ON_HOST = 2
_BATCH_ON_DEVICE = 8
#: While the device computes one batch, the host hands it the next.
_IN_FLIGHT = 2
#: (N, K), and (N, E) or None.
_Answer: TypeAlias = tuple[Logits, Embeddings | None]


@dataclass(frozen=True, eq=False, slots=True)
class AnsweredBatch:
    """Consecutive files, and the logits of those that could be read.

    Attributes:
        files: The files, in the order they were given.
        failures: For each file what is wrong with it, or None.
        logits: (N, K) float32, a row for each file without a failure.
        digests: See :func:`pixel_digest`, of each of these; empty where nobody asked.
        embeddings: (N, E) float32; None where nobody asked, or no file could be read.
    """

    files: tuple[ImageFile, ...]
    failures: tuple[Failure | None, ...]
    logits: Logits
    digests: tuple[str, ...] = ()
    embeddings: Embeddings | None = None


def shared_work(
    spec: SessionSpec, *, threads: int | None, batch_size: int | None
) -> tuple[int, int]:
    """How many workers there are, and the most images a run of the session.

    Args:
        spec: Of the session.
        threads: How many workers are asked for; None for as many as the CPUs can keep busy, but
            where they only read, no more than that takes.
        batch_size: How many images are asked for; None for what is fast at little memory.
    """
    if threads is None:
        threads = usable_cpus() if spec.concurrent else default_threads()
    if batch_size is None:
        batch_size = _BATCH_ON_HOST if spec.concurrent else _BATCH_ON_DEVICE
    return threads, min(batch_size, spec.largest_batch or batch_size)


def answer_files(
    files: Iterable[ImageFile],
    preprocessing: Preprocessing,
    session: Session,
    *,
    count: int | None = None,
    batch_size: int,
    workers: int,
    clock: StageClock,
    digested: bool = False,
    embedded: bool = False,
) -> Generator[AnsweredBatch, None, None]:
    """Read files and run a session on them.

    The memory in use does not depend on the number of files.

    Args:
        files: What to read, taken as it is needed.
        count: How many there are; None for files that tell their number.
        preprocessing: What was done in training.
        session: What answers.
        batch_size: The most files a run of the session; on the CPU fewer towards the end, so that
            no core is idle while another has a whole batch to do.
        workers: Threads.
        clock: Told what the stages take.
        digested: Whether to tell which images have the same pixels.
        embedded: Whether to give the embeddings, of a session of the graph that has them.

    Yields:
        Batch after batch, in the order of the files.

    Raises:
        UsageError: Memory does not hold the batches.
    """
    if count is None:
        count = len(cast(Sized, files))
    remaining = iter(files)

    def digests_of(batch: Batch) -> tuple[str, ...]:
        return tuple(map(pixel_digest, batch.images)) if digested else ()

    if not session.spec.concurrent:
        # No buffer needs to be larger than what there is to read.
        size = min(batch_size, max(1, count))
        batches = read_batches(
            remaining, preprocessing, batch_size=size, threads=workers, clock=clock
        )
        return _on_device(batches, session, clock, digests_of, embedded=embedded)

    def group_size(left: int) -> int:
        """Batches get smaller when fewer files are left than would keep all workers busy."""
        return min(batch_size, -(-left // (2 * workers)))

    free: SimpleQueue[ImageBatch] = SimpleQueue()
    for each in allocate_buffers(min(workers, count), group_size(count), preprocessing):
        free.put(each)

    def work(group: Sequence[ImageFile]) -> AnsweredBatch:
        buffer = free.get()
        try:
            batch = read_batch(group, preprocessing, buffer, clock)
            with clock.computing("session"):
                logits, embeddings = _run(session, batch.images, embedded=embedded)
            return AnsweredBatch(batch.files, batch.failures, logits, digests_of(batch), embeddings)
        finally:
            free.put(buffer)

    def groups() -> Iterator[Sequence[ImageFile]]:
        left = count
        while group := tuple(islice(remaining, group_size(max(1, left)))):
            yield group
            left -= len(group)

    ahead = 2 * workers
    return in_order(work, groups(), threads=workers, ahead=ahead, name="deploykit-predict")


def _on_device(
    batches: Iterable[Batch],
    session: Session,
    clock: StageClock,
    digests_of: Callable[[Batch], tuple[str, ...]],
    *,
    embedded: bool,
) -> Generator[AnsweredBatch, None, None]:
    started: deque[Callable[[], AnsweredBatch]] = deque()

    def start(images: ImageBatch) -> Callable[[], _Answer]:
        """Begin a batch, and return what waits for its answer."""
        if len(images) and isinstance(session, PipelinedSession):
            ticket = session.submit(images)
            if embedded:
                return partial(cast(PipelinedEmbeddingSession, session).collect_embedded, ticket)
            return lambda: (session.collect(ticket), None)
        answer = _run(session, images, embedded=embedded)
        return lambda: answer

    def finish(
        batch: Batch, digests: tuple[str, ...], wait: Callable[[], _Answer]
    ) -> AnsweredBatch:
        with clock.waiting("session"):
            logits, embeddings = wait()
        return AnsweredBatch(batch.files, batch.failures, logits, digests, embeddings)

    for batch in batches:
        digests = digests_of(batch)
        with clock.waiting("session"):
            started.append(partial(finish, batch, digests, start(batch.images)))
        if len(started) == _IN_FLIGHT:
            yield started.popleft()()
    while started:
        yield started.popleft()()


def _run(session: Session, images: ImageBatch, *, embedded: bool) -> _Answer:
    if len(images) == 0:  # and nobody asks for an embedding of any
        return np.empty((0, session.spec.classes), np.float32), None
    if embedded:
        return cast(EmbeddingSession, session).run_embedded(images)
    return session.run(images), None
