"""Images in a tar archive, a WebDataset shard among them, read where they lie."""

from __future__ import annotations

import itertools
import tarfile
from typing import TYPE_CHECKING, Any

from deploykit.images.scan import IMAGE_EXTENSIONS
from deploykit.images.sources.containers import DamagedError, Member, UnreadableError, read_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_BLOCK = 512
#: Of a header, which holds a name: one that claims to be longer is an attack, or damaged.
_MOST_HEADER_BYTES = 2**20
_ENDINGS = tuple(IMAGE_EXTENSIONS)


class Tar:
    """See :class:`~deploykit.images.sources.containers.Container`.

    ``at`` is where an image's bytes begin.
    """

    threads, before_names = 0, "/"

    def members(self, place: Path, count: Callable[[], None]) -> Iterator[Member]:
        """List the files that are images by their ending; symbolic links and devices are none."""
        with place.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            try:
                # Which unpacks nothing: of what is compressed, each image would be unpacked
                # from the archive's beginning.
                archive = _Archive(fileobj=_Careful(stream))
                yield from _members(place, archive, size, count)
                _check_end(stream, archive.offset)
            # UnicodeError and ValueError: of numbers and names that are none.
            except (tarfile.TarError, ValueError, OverflowError) as exc:
                raise DamagedError(str(exc)) from exc

    def read(self, place: Path, at: int, size: int | None) -> bytes:
        """See :class:`deploykit.images.sources.containers.Container`."""
        data = read_range(place, at, size or 0)
        if len(data) < (size or 0):
            reason = f"The archive ends too early: it has {len(data)} of the image's {size} bytes."
            raise UnreadableError("truncated", reason)
        return data

    def close(self) -> None:
        """Nothing is open."""


def _members(
    place: Path, archive: _Archive, size: int, count: Callable[[], None]
) -> Iterator[Member]:
    linked: dict[str, Member] | None = None
    for header in _headers(archive):
        found: Member | None = None
        is_image = header.name.lower().endswith(_ENDINGS)
        if header.isfile() and not header.issparse():
            found = Member(header.name, header.offset_data, header.size)
            if linked is not None:
                linked[header.name] = found
        elif header.islnk() and is_image:
            if linked is None:
                linked = _before(place, header.offset)
            found = linked.get(header.linkname)
        if found is not None and is_image:
            yield found._replace(name=header.name)
        elif not header.isdir():
            count()
        if header.offset_data + header.size > size:
            raise tarfile.ReadError("it ends too early")


def _headers(archive: _Archive) -> Iterator[tarfile.TarInfo]:
    before = -1
    while (header := archive.next()) is not None:
        archive.forget()
        if archive.offset <= before:
            raise tarfile.ReadError("it leads in a circle")
        before = archive.offset
        yield header


def _before(place: Path, offset: int) -> dict[str, Member]:
    """The files that stand in front of a hard link, which has the bytes of one of them.

    Only an archive with such links is read again, and keeps its names in memory.
    """
    with place.open("rb") as stream:
        headers = _headers(_Archive(fileobj=_Careful(stream)))
        return {
            header.name: Member(header.name, header.offset_data, header.size)
            for header in itertools.takewhile(lambda header: header.offset < offset, headers)
            if header.isfile() and not header.issparse()
        }


def _check_end(stream: Any, offset: int) -> None:
    """Tell the end of an archive from damage, which tarfile takes for one."""
    stream.seek(offset)
    if stream.read(_BLOCK) != bytes(_BLOCK):
        raise tarfile.ReadError("it has no end mark")


class _Archive(tarfile.TarFile):
    members: list[tarfile.TarInfo]

    def forget(self) -> None:
        """Do not keep what was listed: memory would grow with the archive."""
        self.members.clear()


class _Careful:
    """A stream of which nobody reads a long piece at once, as a header may ask for."""

    name = mode = ""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def write(self, data: bytes) -> int:
        raise tarfile.ReadError(f"{len(data)} bytes to write into what is read")

    def close(self) -> None:
        self._stream.close()

    def read(self, size: int) -> Any:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)
