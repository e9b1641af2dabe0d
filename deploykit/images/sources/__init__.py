"""Where images come from, behind one interface: each has an ordinal, a name and bytes.

A file each: a folder, a list, cloud storage, tar and zip archives, Parquet, video. A source lists
its images one by one. What it lists is enough to read an image later, in another process, too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from deploykit.errors import InputError
from deploykit.images.decode import DecodeError, Failure
from deploykit.images.memory import MemoryBudget
from deploykit.images.scan import ImageFile, escape_name, unescape_name
from deploykit.images.sources.containers import (
    MOST_BYTES,
    Container,
    DamagedError,
    UnreadableError,
    check_size,
    read_range,
)
from deploykit.system.cloud import CloudPath, as_path, is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from deploykit.images.scan import Scan

#: Of all that is held for threads that decode.
_BYTES_HELD = 2**29
#: Requests that wait for a service at the same time: 30 ms each are 1,000 a second.
_REQUESTS = 32

Stamp = int | str | None
"""When a file was changed, in nanoseconds of the epoch; of an object its ETag."""


class Source(Protocol):
    """Images, listed one by one in an order that is the same each time.

    Attributes:
        path: What was named.
        root: What the names are relative to.
        skipped: How many other files were met so far.
    """

    @property
    def path(self) -> Path:
        """See above, as the next two."""
        ...

    @property
    def root(self) -> Path:  # noqa: D102
        ...

    @property
    def skipped(self) -> int:  # noqa: D102
        ...

    def __iter__(self) -> Iterator[ImageFile]:
        """List the images, once."""
        ...


class Listed:
    """A source whose images are all known.

    Args:
        scan: What it was before something was added to the images.
        files: The images.
    """

    def __init__(self, scan: Scan, files: Iterable[ImageFile]) -> None:
        self.path, self.root, self.skipped = scan.path, scan.root, scan.skipped
        self._files = files

    def __iter__(self) -> Iterator[ImageFile]:
        """See :class:`Source`."""
        return iter(self._files)


#: Where a container is damaged, its rest is one row; its name ends with a slash.
DAMAGED = -1


@dataclass(frozen=True, slots=True)
class SourceFile(ImageFile):
    """An image that is no file of its own on this machine.

    Attributes:
        size: In bytes; None where that is not known.
        changed: When the file that it is in was changed.
        inside: How many characters of the name are the container's; 0 where it is in none.
        at: See :class:`~deploykit.images.sources.containers.Member`.
    """

    size: int | None = None
    changed: Stamp = None
    inside: int = 0
    at: int = 0

    @property
    def place(self) -> Path:
        """The container, or the object."""
        name = self.name[: self.inside] if self.inside else self.name
        return place_of(self.root, name)

    @property
    def container(self) -> Container | None:
        """What reads the container; None where it is in none."""
        return container_of(self.place) if self.inside else None

    @property
    def threads(self) -> int:
        """How many threads should read such files ahead of those that decode."""
        container = self.container
        if container is not None and container.threads:
            return container.threads
        return _REQUESTS if isinstance(self.place, CloudPath) else 0

    @contextmanager
    def held(self) -> Iterator[bytes]:
        """Hold the file's bytes during the block.

        Raises:
            DecodeError: It cannot be read.
            InputError: What is true of all files of the source keeps it from that.
        """
        with _budget().taking(self.size or 0):
            yield self.read()

    def read(self) -> bytes:
        """The file's bytes; see :meth:`held`."""
        place = self.place
        try:
            if self.inside:
                return self._read_member(place)
            return _read_object(place, self.size)
        except UnreadableError as exc:
            raise DecodeError(self.name, exc.failure) from exc
        except ConnectionError as exc:
            if isinstance(place, CloudPath) and place.is_web:  # each may be another server
                raise DecodeError(self.name, Failure("unreadable", f"{exc.strerror}.")) from exc
            raise InputError(
                f"{self.name} cannot be read: {exc.strerror}.",
                hint="When the service answers again, add --resume: the rows so far are kept.",
            ) from exc
        except FileNotFoundError as exc:
            raise DecodeError(self.name, Failure("vanished", "It is not there.")) from exc
        except OSError as exc:
            reason = f"The system refuses to open it: {exc.strerror or exc}."
            raise DecodeError(self.name, Failure("unreadable", reason)) from exc
        except MemoryError as exc:
            reason = "There is not enough memory for its file."
            raise DecodeError(self.name, Failure("too-large", reason)) from exc

    def _read_member(self, place: Path) -> bytes:
        container = container_of(place)
        if container is None or self.at == DAMAGED:
            read_range(place, 0, 1)  # the system may refuse to, and says why
            reason = "It is damaged or ends too early; images behind that have no rows."
            raise UnreadableError("truncated", reason)
        check_size(self.size)
        if stamp_of(place) != self.changed:
            raise InputError(
                f"{place} has changed since it was listed: its images are not where they were.",
                hint="Delete the run's folder, to start again; or bring the file back as it was.",
            )
        return container.read(place, self.at, self.size)


def listed_file(
    root: Path,
    name: str,
    expected: str | None = None,
    expected_labels: tuple[str, ...] | None = None,
    **place: Any,
) -> ImageFile:
    """A file that was listed, from what the list says of it.

    Args:
        root: What the name is relative to.
        name: See :class:`deploykit.images.scan.ImageFile`, as the next two.
        expected: The class.
        expected_labels: The classes.
        place: See :class:`SourceFile`.
    """
    if place.get("inside") or isinstance(root, CloudPath) or is_url(name):
        return SourceFile(root, name, expected, expected_labels, **place)
    return ImageFile(root, name, expected, expected_labels)


def place_in_source(file: ImageFile) -> dict[str, Any]:
    """What :func:`listed_file` takes as ``place``; nothing of a file of its own on this machine."""
    if not isinstance(file, SourceFile):
        return {}
    return {"size": file.size, "changed": file.changed, "inside": file.inside, "at": file.at}


def members_of(
    root: Path, name: str, place: Path, container: Container, count: Callable[[], None]
) -> Iterator[tuple[SourceFile, str | None]]:
    """List the images of a container, each with the class beside it, or None.

    What keeps the rest, or all, from being listed is a row that says so.

    Args:
        root: What names are relative to.
        name: The container's.
        place: Where it is.
        container: What reads it.
        count: Called for everything else in it.

    Raises:
        OSError: What is true of all files keeps it from being read.
    """
    changed: Stamp = None
    try:
        changed = stamp_of(place)
        for member in container.members(place, count):
            shown = f"{name}{container.before_names}{shown_name(member.name)}"
            file = SourceFile(
                root, shown, size=member.size, changed=changed, inside=len(name), at=member.at
            )
            yield file, member.label
    except ConnectionError:
        raise
    except (DamagedError, OSError):
        damaged = f"{name}/"
        yield SourceFile(root, damaged, changed=changed, inside=len(name), at=DAMAGED), None


def shown_name(name: str) -> str:
    """A member's name as rows show it: one line of text without zeros, that nothing opens."""
    shown = "/".join(map(escape_name, name.split("/"))).replace("\0", "\N{SYMBOL FOR NULL}")
    return shown.rstrip("/") or "unnamed"


def place_of(root: Path, name: str) -> Path:
    """What a name leads to."""
    if is_url(name):
        return as_path(unescape_name(name))
    if isinstance(root, CloudPath):
        return as_path(f"{root}/{unescape_name(name)}")  # a key may have two slashes
    return root / unescape_name(name)


def stamp_of(place: Path) -> Stamp:
    """What tells a file from one that it was before.

    Raises:
        OSError: It is not there.
    """
    if isinstance(place, CloudPath):
        return _stamp_of_object(place)
    return place.stat().st_mtime_ns


@functools.lru_cache(4096)
def _stamp_of_object(place: CloudPath) -> Stamp:
    return etag_of(place.info())


def etag_of(info: dict[str, Any]) -> Stamp:
    """What a service says by which an object is told from one that it was before."""
    found = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("LastModified")
    return None if found is None else str(found).strip('"')


def _read_object(place: Path, size: int | None) -> bytes:
    if not isinstance(place, CloudPath):
        raise TypeError(f"{place} is no object")
    if place.is_web:
        data = place.read_up_to(MOST_BYTES + 1)
        check_size(len(data))
        return data
    check_size(place.info().get("size") if size is None else size)
    return place.read_bytes()


def container_of(place: Path) -> Container | None:
    """What reads a file that holds many images; None for any other."""
    return _container(place.suffix.lower())


@functools.cache
def _container(ending: str) -> Container | None:
    if ending == ".tar":
        from deploykit.images.sources.tar import Tar

        return Tar()
    if ending == ".zip":
        from deploykit.images.sources.zip import Zip

        return Zip()
    if ending == ".parquet":
        from deploykit.images.sources.parquet import Parquet

        return Parquet()
    if ending in VIDEO_ENDINGS:
        from deploykit.images.sources.video import Video

        return Video()
    return None


CONTAINER_ENDINGS = (".tar", ".zip", ".parquet")
VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


@functools.cache
def _budget() -> MemoryBudget:
    return MemoryBudget(_BYTES_HELD)
