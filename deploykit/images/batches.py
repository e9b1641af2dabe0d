"""Files to batches of pixels: decoded on threads, in order, into buffers that are used again."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.errors import UsageError
from deploykit.images.decode import DecodeError, Failure, decoded_rgb
from deploykit.images.memory import MOST_THREADS
from deploykit.images.preprocess import OversizeError, preprocess
from deploykit.images.scan import ImageFile
from deploykit.images.sources import SourceFile
from deploykit.system.threads import StageClock, in_order, usable_cpus

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from deploykit.images.preprocess import Pixels
    from deploykit.specs.preprocessing import Preprocessing
    from deploykit.specs.session import ImageBatch

_LEAST_BATCHES_AHEAD = 2


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Consecutive files, and the images of those that could be read.

    Attributes:
        files: The files, in the order they were given.
        failures: For each file what is wrong with it, or None.
        images: (N, H, W, 3) RGB: one image for each of ``readable``, in the same order. N may
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
    as :func:`deploykit.system.threads.in_order` has it.

    Args:
        files: Consumed as they are needed.
        preprocessing: What was done in training.
        batch_size: Files a batch.
        threads: Threads that decode and resize, which Pillow does without the interpreter's lock;
            by default as many as :func:`default_threads` says.
        clock: Told what decoding and resizing take.

    Raises:
        UsageError: A number is below 1, or memory does not hold the batches; with the first batch.
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
    buffers = allocate_buffers(ahead + 2, batch_size, preprocessing)
    clock = StageClock() if clock is None else clock

    def read(place: tuple[ImageFile, Pixels]) -> tuple[ImageFile, Failure | None]:
        file, image = place
        return file, read_into(file, preprocessing, image, clock)

    places = zip(files, (image for buffer in cycle(buffers) for image in buffer), strict=False)
    results = in_order(
        read, places, threads=threads, ahead=ahead * batch_size, name="deploykit-read"
    )
    with contextlib.closing(results):
        for buffer in cycle(buffers):
            group = list(islice(results, len(buffer)))
            if not group:
                break
            failures = tuple(failure for _, failure in group)
            kept = [row for row, failure in enumerate(failures) if failure is None]
            if len(kept) < len(failures):
                buffer[: len(kept)] = buffer[kept]
            yield Batch(tuple(file for file, _ in group), failures, buffer[: len(kept)])


def read_batch(
    files: Sequence[ImageFile],
    preprocessing: Preprocessing,
    buffer: ImageBatch,
    clock: StageClock,
) -> Batch:
    """Read files into a buffer, one after the other in the caller's thread.

    Args:
        files: What to read; no more files than the buffer has rows.
        preprocessing: What was done in training.
        buffer: (M, H, W, 3), overwritten; the batch's images are a view of it.
        clock: Told what decoding and resizing take.
    """
    failures: list[Failure | None] = []
    readable = 0
    for file in files:
        # The row of a file that cannot be read is the next one's.
        failure = read_into(file, preprocessing, buffer[readable], clock)
        readable += failure is None
        failures.append(failure)
    return Batch(tuple(files), tuple(failures), buffer[:readable])


def read_into(
    file: ImageFile,
    preprocessing: Preprocessing,
    out: Pixels,
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
        with contextlib.ExitStack() as held:
            with clock.computing("decode"):
                if isinstance(file, SourceFile):
                    data = held.enter_context(file.held())
                    image = held.enter_context(decoded_rgb(file.path, data=data))
                    del data
                else:
                    image = held.enter_context(decoded_rgb(file.path))
            with clock.computing("resize"):
                preprocess(image, preprocessing, out)
            del image  # its memory goes before others may take as much
    except (DecodeError, OversizeError, MemoryError) as exc:
        return _failure_of(exc)
    return None


def read_bytes(data: bytes, name: str, preprocessing: Preprocessing) -> Pixels | Failure:
    """Read an image that is held in memory, or say what is wrong with it.

    Args:
        data: What its file would hold.
        name: What an error calls it.
        preprocessing: What was done in training.

    Returns:
        (H, W, 3) of the model's input size; or why there are none.
    """
    try:
        with decoded_rgb(Path(name), data=data) as image:
            return preprocess(image, preprocessing)
    except (DecodeError, OversizeError, MemoryError) as exc:
        return _failure_of(exc)


def _failure_of(exc: DecodeError | OversizeError | MemoryError) -> Failure:
    if isinstance(exc, DecodeError):
        return exc.failure
    if isinstance(exc, OversizeError):
        return Failure("too-large", exc.message)
    return Failure("too-large", "There is not enough memory to resize it.")


def allocate_buffers(count: int, batch_size: int, preprocessing: Preprocessing) -> list[ImageBatch]:
    """Make buffers, each (batch_size, H, W, 3), for images that are preprocessed.

    Raises:
        UsageError: Memory does not hold them.
    """
    shape = (batch_size, *preprocessing.input_size, 3)
    bytes_of = np.dtype(preprocessing.pixel_type).itemsize
    try:
        return [np.empty(shape, preprocessing.pixel_type) for _ in range(count)]
    except (MemoryError, ValueError) as exc:  # ValueError: more bytes than an address can count
        raise UsageError(
            f"Batches of {batch_size} images take {count} buffers of "
            f"{math.prod(shape) * bytes_of / 2**30:.1f} GiB, and memory does not hold them.",
            hint="Choose a smaller batch size.",
        ) from exc


def default_threads() -> int:
    """How many threads read: one for each CPU that this process can keep busy, up to 16."""
    return min(usable_cpus(), MOST_THREADS)
