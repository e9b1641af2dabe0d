"""How much memory the images that are being decoded may take together, in all threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator

from PIL import Image

from deploykit.system.threads import usable_cpus

#: Of the 2 to 3 ms that a photo takes, about 0.14 ms are Python's: more threads would wait for it.
MOST_THREADS = 16
#: What decoding and converting take at most, measured with Pillow 13: 4 for a plain photo, 8 with
#: transparency, as CMYK or compressed TIFF. Progressive JPEG with full colour takes 10.
_BYTES_PER_PIXEL = 8
_MORE_BYTES_PER_PIXEL = {"JPEG2000": 20, "WEBP": 18}
#: They hold other images, which may be larger than they say.
_CONTAINERS = frozenset({"BLP", "ICNS", "ICO", "IPTC"})
#: As many of these as there are threads are decoded at once.
_ORDINARY_PIXELS = 24_000_000
#: Where Pillow's own limit was taken away.
_LARGEST_PIXELS = 178_956_970


class MemoryBudget:
    """Bytes that threads share: whoever finds too few left waits, in the order of asking.

    Args:
        limit: How many bytes there are.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._free = limit
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taking(self, size: int) -> Iterator[None]:
        """Hold bytes during the block; a thread that holds some must not ask for more.

        Args:
            size: How many. Of more than there are all are taken: such a block runs alone.
        """
        size = min(size, self._limit)
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and size <= self._free)
                self._free -= size
            finally:  # also when Ctrl-C ends the waiting
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            if size > _ORDINARY_PIXELS * _BYTES_PER_PIXEL:
                _return_freed_memory()
            with self._changed:
                self._free += size
                self._changed.notify_all()


def decoding_budget() -> MemoryBudget:
    """The budget of this process, made at the first call."""
    with _making:  # or several threads would each make one
        return _budget()


@functools.cache
def _budget() -> MemoryBudget:
    """The budget.

    As many ordinary photos as there are threads are decoded at once. Of the largest images that
    Pillow takes at all there is always room for one.
    """
    pixels = max(_most_pixels(), _ORDINARY_PIXELS * min(usable_cpus(), MOST_THREADS))
    return MemoryBudget(pixels * _BYTES_PER_PIXEL)


def decoding_bytes(image: Image.Image) -> int:
    """What it takes to decode an image and to convert it, judged by its header.

    Args:
        image: One that is open and not yet loaded.
    """
    pixels = _most_pixels() if image.format in _CONTAINERS else image.width * image.height
    return pixels * _MORE_BYTES_PER_PIXEL.get(image.format or "", _BYTES_PER_PIXEL)


def _return_freed_memory() -> None:
    """Give the system what this process has freed.

    The C library of Linux, glibc, keeps it for the thread that freed it, so that each thread would
    have the memory of the largest image that it ever decoded.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # as in musl's
            ctypes.CDLL(None).malloc_trim(0)


def _most_pixels() -> int:
    """The most pixels that Pillow decodes."""
    limit = Image.MAX_IMAGE_PIXELS
    return _LARGEST_PIXELS if limit is None else 2 * limit


_making = threading.Lock()


def _forget() -> None:
    """What other threads hold, nobody gives back in a child process."""
    global _making
    _making = threading.Lock()
    _budget.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
