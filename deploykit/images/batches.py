"""Files to uint8 batches: decoded on threads, in order, into buffers that are used again."""

from __future__ import annotations

import math
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np

from deploykit.errors import UsageError
from deploykit.images.decode import DecodeError, Failure, decode_rgb
from deploykit.images.preprocess import OversizeError, preprocess_into
from deploykit.images.scan import ImageFile
from deploykit.stages import StageClock

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    import numpy.typing as npt

    from deploykit.session import ImageBatch
    from deploykit.specs import Preprocessing

# Of the 2 to 3 ms that a photo takes, about 0.14 ms are Python's: more threads would wait for it.
_MOST_THREADS = 16
_LEAST_BATCHES_AHEAD = 2


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Consecutive files, and the images of those that could be read.

    Attributes:
        files: The files, in the order they were given.
        failures: For each file what is wrong with it, or None.
        images: (N, H, W, 3) uint8 RGB: one image for each of ``readable``, in the same order. N may
            be 0. It is a view of a buffer that is used again, see ``read_batches``.
    """

    files: tuple[ImageFile, ...]
    failures: tuple[Failure | None, ...]
    images: ImageBatch

    @property
    def readable(self) -> tuple[ImageFile, ...]:
        """The files that ``images`` shows."""
        pairs = zip(self.files, self.failures, strict=True)
        return tuple(file for file, failure in pairs if failure is None)


def read_batches(
    files: Iterable[ImageFile],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    threads: int | None = None,
    clock: StageClock | None = None,
) -> Generator[Batch, None, None]:
    """Read files in batches, a few ahead of whoever consumes them.

    Each file is in exactly one batch. A batch takes ``batch_size`` consecutive files, the last one
    what is left; a file that cannot be read makes its batch's images fewer and moves no other's.

    The images of a batch stay as they are while the next batch is with the consumer, and are
    overwritten from the moment that the one after it is asked for: copy what must live longer. The
    memory in use does not depend on the number of files.

    The threads start with the first batch and end with the last, or when the generator is closed,
    which an abandoned one is as soon as nothing refers to it.

    Args:
        files: Consumed as they are needed.
        preprocessing: What was done in training.
        batch_size: Files a batch.
        threads: Threads that decode and resize, which Pillow does without the interpreter's lock;
            by default one for each CPU, up to 16.
        clock: Told what decoding and resizing take.

    Raises:
        UsageError: A number is below 1, or memory does not hold the batches.
    """
    if threads is None:
        threads = default_threads()
    if batch_size < 1 or threads < 1:
        raise UsageError(
            f"A batch size of {batch_size} with {threads} threads reads nothing.",
            hint="Choose both at least 1.",
        )
    ahead = max(_LEAST_BATCHES_AHEAD, math.ceil(2 * threads / batch_size))
    # Beside those ahead: the batch that the consumer has, and the one before it.
    buffers = _allocate(ahead + 2, batch_size, preprocessing)
    return _read_ahead(iter(files), preprocessing, buffers, ahead, threads, clock or StageClock())


@dataclass(frozen=True, eq=False, slots=True)
class _Pending:
    """A batch that threads are filling."""

    files: tuple[ImageFile, ...]
    results: list[Future[Failure | None]]
    buffer: ImageBatch

    def wait(self) -> Batch:
        """Wait for the batch, and close the gaps that unreadable files left."""
        failures = tuple(result.result() for result in self.results)
        kept = [row for row, failure in enumerate(failures) if failure is None]
        if len(kept) < len(failures):
            self.buffer[: len(kept)] = self.buffer[kept]
        return Batch(self.files, failures, self.buffer[: len(kept)])


def _read_ahead(
    files: Iterator[ImageFile],
    preprocessing: Preprocessing,
    buffers: list[ImageBatch],
    ahead: int,
    threads: int,
    clock: StageClock,
) -> Generator[Batch, None, None]:
    executor = ThreadPoolExecutor(threads, thread_name_prefix="deploykit-read")
    pending: deque[_Pending] = deque()
    try:
        for buffer in cycle(buffers):
            group = tuple(islice(files, len(buffer)))
            if not group:
                break
            results = [
                executor.submit(read_into, file, preprocessing, out, clock)
                for file, out in zip(group, buffer, strict=False)
            ]
            pending.append(_Pending(group, results, buffer))
            if len(pending) > ahead:
                yield pending.popleft().wait()
        while pending:
            yield pending.popleft().wait()
    finally:
        executor.shutdown(cancel_futures=True)


def read_into(
    file: ImageFile,
    preprocessing: Preprocessing,
    out: npt.NDArray[np.uint8],
    clock: StageClock,
) -> Failure | None:
    """Read one file into its row of a buffer, or say what is wrong with it.

    Args:
        file: What to read.
        preprocessing: What was done in training.
        out: (H, W, 3), overwritten; of a file that cannot be read the contents mean nothing.
        clock: Told how long decoding and resizing kept this thread's CPU.
    """
    try:
        with clock.computing("decode"):
            image = decode_rgb(file.path)
        with clock.computing("resize"):
            preprocess_into(image, preprocessing, out)
    except DecodeError as exc:
        return exc.failure
    except OversizeError as exc:
        return Failure("too-large", exc.message)
    except MemoryError:
        return Failure("too-large", "There is not enough memory to resize it.")
    return None


def _allocate(count: int, batch_size: int, preprocessing: Preprocessing) -> list[ImageBatch]:
    shape = (batch_size, *preprocessing.input_size, 3)
    try:
        return [np.empty(shape, np.uint8) for _ in range(count)]
    except (MemoryError, ValueError) as exc:  # ValueError: more bytes than an address can count
        raise UsageError(
            f"Batches of {batch_size} images take {count} buffers of "
            f"{math.prod(shape) / 2**30:.1f} GiB, and memory does not hold them.",
            hint="Choose a smaller batch size.",
        ) from exc


def default_threads() -> int:
    """One for each CPU that this process may use, up to 16."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    return min(os.cpu_count() or 1, _MOST_THREADS)
