"""Files that hold many images: what reads each kind has the same interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from deploykit.images.decode import Failure, FailureStatus
from deploykit.system.cloud import CloudPath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Of a photo's file where it is held in memory. No JPEG of as many pixels as are decoded has more.
MOST_BYTES = 2**28


class Member(NamedTuple):
    """An image in a file that holds many.

    Attributes:
        name: As it stands there; only a name, whatever is in it.
        at: Where it is: a place in bytes, a row, a time.
        size: In bytes; None where that is not known.
        label: The class that stands beside it; None for none.
    """

    name: str
    at: int
    size: int | None = None
    label: str | None = None


class Container(Protocol):
    """A kind of file that holds many images."""

    #: Threads that read ahead of those that decode: none where it costs nothing to read, and one
    #: where it must be read from the front to the back.
    threads: int
    #: What stands between the container's name and an image's.
    before_names: str

    def members(self, place: Path, count: Callable[[], None]) -> Iterator[Member]:
        """List the images.

        Args:
            place: The file.
            count: Called for everything else.

        Raises:
            DamagedError: What is behind the members so far cannot be listed.
            OSError: It cannot be read.
        """
        ...

    def read(self, place: Path, at: int, size: int | None) -> bytes:
        """An image's file.

        Raises:
            UnreadableError: It cannot be read.
            OSError: The container cannot.
        """
        ...

    def close(self) -> None:
        """Leave the file that was read last; it is opened again where it is asked for."""
        ...


class DamagedError(Exception):
    """A container that ends too early, or is none."""


class UnreadableError(Exception):
    """A member that cannot be read.

    Attributes:
        failure: Why not.
    """

    def __init__(self, status: FailureStatus, reason: str) -> None:
        super().__init__(reason)
        self.failure = Failure(status, reason)


def read_range(place: Path, start: int, size: int) -> bytes:
    """A part of a file; what is behind its end is missing."""
    if isinstance(place, CloudPath):
        return place.read_range(start, size)
    with place.open("rb") as stream:
        stream.seek(start)
        return stream.read(size)


def check_size(size: int | None) -> None:
    """Refuse to hold a file that is too large.

    Raises:
        UnreadableError: It is.
    """
    if size is not None and size > MOST_BYTES:
        raise UnreadableError("too-large", f"It has {size} bytes; at most {MOST_BYTES} are read.")
