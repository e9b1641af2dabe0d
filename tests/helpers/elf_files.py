"""Shared libraries of Linux, made of what a loader reads first and nothing else."""

from __future__ import annotations

import struct

HEADER_SIZE, SEGMENT_SIZE = 64, 56
LOAD_ADDRESS = 0x400000


def shared_library(*needed: str) -> bytes:
    """A 64-bit little-endian ELF file that links these libraries."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    strings_at = HEADER_SIZE + 2 * SEGMENT_SIZE
    dynamic_at = strings_at + len(strings)
    entries = [(1, strings.index(name.encode() + b"\0")) for name in needed]
    entries += [(5, LOAD_ADDRESS + strings_at - HEADER_SIZE), (0, 0)]
    dynamic = b"".join(struct.pack("<2Q", *entry) for entry in entries)
    size = dynamic_at + len(dynamic)
    header = struct.pack(
        "<16s2HI3QI6H",
        *(b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, HEADER_SIZE, 0, 0),
        *(HEADER_SIZE, SEGMENT_SIZE, 2, 0, 0, 0),
    )
    body = size - HEADER_SIZE  # all but the header is loaded, so that addresses are no offsets
    loaded = struct.pack("<2I6Q", 1, 4, HEADER_SIZE, LOAD_ADDRESS, LOAD_ADDRESS, body, body, 4096)
    address = LOAD_ADDRESS + dynamic_at - HEADER_SIZE
    linked = struct.pack("<2I6Q", 2, 4, dynamic_at, address, address, len(dynamic), len(dynamic), 8)
    return header + loaded + linked + strings + dynamic
