"""Images in a tar archive, a WebDataset shard among them, read where they lie."""

from __future__ import annotations

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
        """List the files that are images by their ending; links and devices are none."""
        with place.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            try:
                # Which unpacks nothing: of what is compressed, each image would be unpacked
                # from the archive's beginning.
                archive = _Archive(fileobj=_Careful(stream))
                yield from _members(archive, size, count)
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


def _members(archive: _Archive, size: int, count: Callable[[], None]) -> Iterator[Member]:
    before = -1
    while (member := archive.next()) is not None:
        archive.forget()
        if archive.offset <= before:
            raise tarfile.ReadError("it leads in a circle")
        before = archive.offset
        name = member.name
        if member.isfile() and not member.issparse() and name.lower().endswith(_ENDINGS):
            yield Member(name, member.offset_data, member.size)
        elif not member.isdir():
            count()
        if member.offset_data + member.size > size:
            raise tarfile.ReadError("it ends too early")


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
