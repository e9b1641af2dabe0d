"""The shared libraries that a Linux library links, read from its file.

The format: "Tool Interface Standard (TIS) Executable and Linking Format", and the ELF-64 object
file format that extends it.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from deploykit.errors import InputError

_MAGIC_64_BIT_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
_HEADER = struct.Struct("<16s2HI3QI6H")
_SEGMENT = struct.Struct("<2I6Q")
_DYNAMIC_ENTRY = struct.Struct("<2Q")
_LOADED, _DYNAMIC = 1, 2  # p_type
_END, _NEEDED, _STRINGS = 0, 1, 5  # d_tag


def linked_libraries(path: Path) -> tuple[str, ...]:
    """The libraries that the system loads before this one, ``libcudart.so.13``, in that order.

    Args:
        path: A 64-bit little-endian ELF file, which is what x86-64 and ARM64 Linux have.

    Raises:
        InputError: It is no such file, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _read_needed(file)
    except (OSError, ValueError, KeyError, OverflowError, struct.error) as exc:
        raise InputError(
            f"{path} is not a shared library of 64-bit Linux that can be read: {exc}",
            hint="Install the package that it belongs to again.",
        ) from exc


def _read_needed(file: BinaryIO) -> tuple[str, ...]:
    header = file.read(_HEADER.size)
    if not header.startswith(_MAGIC_64_BIT_LITTLE_ENDIAN):
        raise ValueError(f"it begins with {header[:6]!r}")
    *_, table, _, _, _, size, count, _, _, _ = _HEADER.unpack(header)
    segments = [_unpack_at(file, _SEGMENT, table + i * size) for i in range(count)]
    # Of a segment: its type, flags, offset in the file, address, physical address, size in the
    # file, size in memory, alignment.
    dynamic = next((s for s in segments if s[0] == _DYNAMIC), None)
    if dynamic is None:
        raise ValueError("it links nothing dynamically")
    entries = _dynamic_entries(file, start=dynamic[2], size=dynamic[5])
    strings = _offset_of(dict(entries)[_STRINGS], segments) if entries else 0
    return tuple(_string_at(file, strings + value) for tag, value in entries if tag == _NEEDED)


def _dynamic_entries(file: BinaryIO, *, start: int, size: int) -> list[tuple[int, int]]:
    """Tags and values up to the end mark."""
    entries = []
    for offset in range(start, start + size, _DYNAMIC_ENTRY.size):
        tag, value = _unpack_at(file, _DYNAMIC_ENTRY, offset)
        if tag == _END:
            break
        entries.append((tag, value))
    return entries


def _offset_of(address: int, segments: list[tuple[int, ...]]) -> int:
    """Where in the file stands what is loaded at an address."""
    for kind, _, offset, start, _, size, *_ in segments:
        if kind == _LOADED and start <= address < start + size:
            return offset + address - start
    raise ValueError(f"nothing is loaded at {address:#x}")


def _unpack_at(file: BinaryIO, layout: struct.Struct, offset: int) -> tuple[int, ...]:
    file.seek(offset)
    return layout.unpack(file.read(layout.size))


def _string_at(file: BinaryIO, offset: int) -> str:
    file.seek(offset)
    longest_name = 4096
    text, end, _ = file.read(longest_name).partition(b"\0")
    if not end:
        raise ValueError(f"the name at byte {offset} has no end")
    return text.decode()
