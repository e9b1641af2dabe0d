"""Images in a ZIP archive, read where they lie.

Python's ``zipfile`` keeps 600 bytes of each entry in memory in each process that reads one; here
the directory is read entry by entry, and an image needs no more of it than where it begins.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

from deploykit.images.scan import IMAGE_EXTENSIONS
from deploykit.images.sources.containers import (
    DamagedError,
    Member,
    UnreadableError,
    check_size,
    read_range,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# The numbers are those of APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16.
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MOST_COMMENT = 2**16
_ABSENT = 0xFFFFFFFF
_EXTRA_64 = 1
_ENCRYPTED, _UTF_8 = 1, 0x800
_STORED, _DEFLATED = 0, 8
_OTHERS = {9: "Deflate64", 12: "BZip2", 14: "LZMA", 93: "Zstandard", 95: "XZ"}
_ENDINGS = tuple(IMAGE_EXTENSIONS)
_PIECE = 2**16


class Zip:
    """See :class:`~deploykit.images.sources.containers.Container`.

    ``at`` is where an image's header begins.
    """

    threads, before_names = 0, "/"

    def members(self, place: Path, count: Callable[[], None]) -> Iterator[Member]:
        """List the files that are images by their ending; links are none."""
        with place.open("rb") as stream:
            try:
                for name, at, size, is_file in _entries(stream):
                    if is_file and name.lower().endswith(_ENDINGS):
                        yield Member(name, at, size)
                    elif not name.endswith("/"):
                        count()
            except (struct.error, ValueError, OverflowError) as exc:
                raise DamagedError(str(exc)) from exc

    def read(self, place: Path, at: int, size: int | None) -> bytes:
        """See :class:`deploykit.images.sources.containers.Container`."""
        expected = size or 0
        check_size(expected)
        header = read_range(place, at, _LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
            raise UnreadableError("corrupt", "The archive has no file where its directory says.")
        _, _, flags, method, _, _, crc, packed, _, name, extra = _LOCAL.unpack(header)
        if flags & _ENCRYPTED:
            raise UnreadableError("unsupported", "It is encrypted; unpack it first.")
        start = at + _LOCAL.size + name + extra
        if method == _STORED:
            data = read_range(place, start, expected)
        else:
            if method != _DEFLATED:
                kind = _OTHERS.get(method, f"method {method}")
                raise UnreadableError(
                    "unsupported", f"It is compressed by {kind}; unpack it first."
                )
            data = _inflated(place, start, packed, expected)
        if len(data) < expected:
            reason = f"The archive has {len(data)} of the image's {expected} bytes."
            raise UnreadableError("truncated", reason)
        if crc and zlib.crc32(data) != crc:
            raise UnreadableError("corrupt", "The archive's checksum of it does not match.")
        return data

    def close(self) -> None:
        """Nothing is open."""


def _entries(stream: Any) -> Iterator[tuple[str, int, int, bool]]:
    """Name, place of the header, size, and whether it is a plain file, of each entry."""
    at, end, entries, shift = _directory(stream)
    for _ in range(entries):
        stream.seek(at)
        fixed = stream.read(_ENTRY.size)
        fields = _ENTRY.unpack(fixed)
        if fields[0] != b"PK\x01\x02" or at + _ENTRY.size > end:
            raise ValueError("its directory is damaged")
        flags, packed, size, header = fields[3], fields[8], fields[9], fields[16]
        name_size, extra_size, comment_size = fields[10:13]
        raw = stream.read(name_size)
        packed, size, header = _large(stream.read(extra_size), packed, size, header)
        mode = fields[15] >> 16  # of Unix; 0 where another system made it
        is_file = not mode & 0o170000 or mode & 0o170000 == 0o100000
        name = raw.decode("utf-8" if flags & _UTF_8 else "cp437", "surrogateescape")
        yield name, header + shift, size, is_file
        at += _ENTRY.size + name_size + extra_size + comment_size


def _large(extra: bytes, packed: int, size: int, header: int) -> tuple[int, int, int]:
    """Sizes and place, where 32 bits are too few for one of them."""
    values = [size, packed, header]
    while len(extra) >= 4 and _ABSENT in values:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == _EXTRA_64:
            field = extra[4 : 4 + length]
            for i, value in enumerate(values):
                if value == _ABSENT:
                    (values[i],) = struct.unpack_from("<Q", field)
                    field = field[8:]
            break
        extra = extra[4 + length :]
    return values[1], values[0], values[2]


def _directory(stream: Any) -> tuple[int, int, int, int]:
    """Where the directory begins and ends, its entries, and what stands before the archive."""
    total = stream.seek(0, 2)
    start = max(0, total - _END.size - _MOST_COMMENT)
    stream.seek(start)
    tail = stream.read(total - start)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0:
        raise ValueError("it has no directory")
    end = start + found
    _, _, _, _, entries, size, at, _ = _END.unpack_from(tail, found)
    if end >= _LOCATOR_64.size:
        stream.seek(end - _LOCATOR_64.size)
        mark, _, place, _ = _LOCATOR_64.unpack(stream.read(_LOCATOR_64.size))
        if mark == b"PK\x06\x07":
            stream.seek(place)
            fields = _END_64.unpack(stream.read(_END_64.size))
            entries, size, at, end = fields[7], fields[8], fields[9], place
    shift = end - size - at
    if shift < 0 or entries * _ENTRY.size > size:
        raise ValueError("its directory is damaged")
    return at + shift, end, entries, shift


def _inflated(place: Path, start: int, packed: int, size: int) -> bytes:
    """At most as many bytes as the directory promises, whatever is in there."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    parts, left = [], size
    # Where the sizes stand behind the data, the data says itself where it ends.
    piece = min(packed, size + _PIECE) if 0 < packed < _ABSENT else _PIECE
    try:
        while left > 0 and not unpacker.eof and (data := read_range(place, start, piece)):
            parts.append(unpacker.decompress(data, left))
            start += len(data)
            left -= len(parts[-1])
    except zlib.error as exc:
        raise UnreadableError("corrupt", f"It cannot be unpacked: {exc}.") from exc
    return b"".join(parts)
