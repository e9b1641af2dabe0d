"""Bytes are read ahead of those who decode: many at once, and never more than memory allows."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields

from deploykit.images.scan import ImageFile
from deploykit.images.sources import SourceFile
from deploykit.images.sources.containers import Container

#: Of all files that are read and not yet decoded. Whatever is larger comes alone.
BYTES_AHEAD = 2**28
#: Files, so that small ones do not become a crowd of requests.
_FILES_AHEAD = 128
#: Taken for the size of a file that nobody told.
_GUESSED_BYTES = 2**21


def read_ahead(
    files: Iterable[ImageFile], limit: int = BYTES_AHEAD
) -> Generator[ImageFile, None, None]:
    """Read files that take long to come, before they are asked for.

    Those on this machine pass by: whoever decodes them reads them.

    Args:
        files: Taken as there is room.
        limit: Bytes that are held at most, from when they are asked for until they are decoded.

    Yields:
        The files, in their order.
    """
    held = _HeldBytes(limit)
    pending = deque[ImageFile]()
    with ExitStack() as stack:
        readers, opened = dict[int, ThreadPoolExecutor](), set[Container]()
        for file in files:
            threads = file.threads if isinstance(file, SourceFile) else 0
            if not threads or not isinstance(file, SourceFile):
                pending.append(file)
            else:
                while not held.take(file.size or _GUESSED_BYTES):
                    if pending:
                        yield _come(pending.popleft())
                    else:
                        held.wait()
                container = file.container
                if container is not None and container not in opened:
                    opened.add(container)
                    stack.callback(container.close)
                if threads not in readers:
                    readers[threads] = ThreadPoolExecutor(threads, "deploykit-source")
                    stack.callback(readers[threads].shutdown, cancel_futures=True)
                pending.append(_started(file, readers[threads], held))
            if len(pending) >= (_FILES_AHEAD if readers else 1):
                yield _come(pending.popleft())
        while pending:
            yield _come(pending.popleft())


@dataclass(frozen=True, slots=True)
class _HeldFile(SourceFile):
    """A file that is being read."""

    data: list[Future[bytes]] | None = None  # none once it was decoded
    budget: _HeldBytes | None = None

    @contextmanager
    def held(self) -> Iterator[bytes]:
        """See :class:`deploykit.images.sources.SourceFile`."""
        if not self.data or self.budget is None:
            yield self.read()
            return
        future = self.data.pop()
        taken = self.size or _GUESSED_BYTES
        try:
            data = future.result()
            self.budget.change(len(data) - taken)
            taken = len(data)
            del future
            yield data
            del data
        finally:
            self.budget.change(-taken)


def _started(file: SourceFile, reader: ThreadPoolExecutor, held: _HeldBytes) -> _HeldFile:
    values = {field.name: getattr(file, field.name) for field in fields(SourceFile)}
    return _HeldFile(**values, data=[reader.submit(file.read)], budget=held)


def _come(file: ImageFile) -> ImageFile:
    """A file whose bytes are there: those who decode are not to wait."""
    if isinstance(file, _HeldFile) and file.data:
        file.data[0].exception()
    return file


class _HeldBytes:
    """Counts bytes that are held."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._changed = threading.Condition()

    def take(self, size: int) -> bool:
        """Count some more, unless they are too many; what is alone never is."""
        with self._changed:
            fits = not self._held or self._held + size <= self._limit
            self._held += size if fits else 0
            return fits

    def change(self, size: int) -> None:
        with self._changed:
            self._held += size
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until those who decode have given some back."""
        with self._changed:
            self._changed.wait_for(lambda: self._held < self._limit, timeout=1)
