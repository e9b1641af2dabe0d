"""Files of ``torch.save``, zip archives and the older kind, as plain values and tensors.

Tensors are views of the mapped file: what a file claims is held against what it has before
anything is read, and until then the weights take no memory of their own.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipInfo

import torch
from torch import Tensor

from deploykit.models.file_kinds import pickle_member, zip_members
from deploykit.models.pickled import ClaimError, Name, Reader, TensorParts, Unusable

#: Storage classes of torch, and the type of what they hold.
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,  # of which torch counts the bytes
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
}
_INTEGERS = frozenset(
    {torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
    | {torch.int8, torch.int16, torch.int32, torch.int64}
)
#: Tensors may share their storage, or repeat a part of it: this often, and this much at least.
_MOST_SHARED = 4
_FREE_BYTES = 64 << 20
_LOCAL_HEADER_BYTES = 30
_ALIGNMENT = 16
_MOST_DIMENSIONS = 64


class DamagedFileError(ValueError):
    """A file that does not have what it says."""


def unusable_type(dtype: torch.dtype) -> str:
    """Why no network can be given tensors of a type; empty where it can."""
    name = str(dtype).removeprefix("torch.")
    if dtype.is_complex:
        return "complex"
    if name.startswith("q"):
        return "quantised"
    packed = name.startswith("float4")
    return "" if dtype in _INTEGERS or (dtype.is_floating_point and not packed) else f"of {name}"


@dataclass(frozen=True)
class _Storage:
    """Numbers of one type in a row.

    Attributes:
        buffer: Has them.
        start: Their first byte in it.
        count: How many there are.
        dtype: Their type.
    """

    buffer: mmap.mmap | bytearray
    start: int
    count: int
    dtype: torch.dtype


class _Tensors:
    """Makes tensors, as long as they are not far larger than their file."""

    def __init__(self, file_bytes: int) -> None:
        self._left = _MOST_SHARED * file_bytes + _FREE_BYTES

    def make(self, parts: TensorParts) -> Tensor | Unusable:
        """A view of a storage.

        Raises:
            DamagedFileError: It reaches out of its storage.
            ClaimError: The tensors are far larger than their file.
        """
        storage = parts.storage
        if not isinstance(storage, _Storage):
            raise DamagedFileError("a tensor in it has no storage")
        dtype = _dtype(parts.dtype) if parts.dtype else storage.dtype
        shape, stride = _sizes(parts.shape), _sizes(parts.stride)
        (offset,) = _sizes((parts.offset,))
        if len(shape) != len(stride) or len(shape) > _MOST_DIMENSIONS:
            raise DamagedFileError("a tensor in it has a wrong number of dimensions")
        if reason := unusable_type(dtype):
            return Unusable(reason)
        elements = math.prod(shape)
        if not elements:
            return torch.empty(shape, dtype=dtype)
        count = storage.count * storage.dtype.itemsize // dtype.itemsize
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        size = "x".join(map(str, shape)) or "1"
        if last >= count:
            raise DamagedFileError(f"a tensor of {size} in it has only {count} numbers")
        self._left -= elements * dtype.itemsize
        if self._left < 0:
            raise ClaimError(f"the file has {count:,} numbers for a tensor of {size}")
        row = torch.frombuffer(storage.buffer, dtype=dtype, count=count, offset=storage.start)
        view = row.as_strided(shape, stride, offset)
        return -view if parts.negated else view


def _sizes(values: object) -> tuple[int, ...]:
    """Shapes, strides and offsets of a file."""
    if not isinstance(values, (tuple, list)):
        raise DamagedFileError("a tensor in it has no shape")
    for value in values:
        if not isinstance(value, int) or value < 0:
            raise DamagedFileError(f"a size in it is {value!r:.40}")
    return tuple(values)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise DamagedFileError(f"a tensor in it has the type {name!r:.40}")
    return dtype


def _storage_facts(said: object) -> tuple[torch.dtype, str, int, object]:
    """Type, key, count and, in older files, view of a storage, as a file says them."""
    match said:
        case ("storage", Name(storage=kind), str(key) | int(key), _, int(count), *view) if (
            kind in _STORAGES and count >= 0
        ):
            return _STORAGES[kind], str(key), count, view[0] if view else None
    raise DamagedFileError("a storage in it is described wrongly")


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        # Copied on write: nothing is written, but torch wants memory that could be.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def read_zip(path: Path) -> tuple[object, tuple[str, ...]]:
    """Read a file of ``torch.save`` since torch 1.6.

    Returns:
        What it holds, and the names of the code that it asks for beside weights and data.

    Raises:
        CheckpointError: Its members are damaged.
        Exception: What damaged pickles and archives raise.
    """
    members = zip_members(path)
    whole = _map(path)
    pickled = pickle_member(members)
    root = pickled.removesuffix("data.pkl")
    if members.get(f"{root}byteorder"):
        order = bytes(_content(whole, members[f"{root}byteorder"]))
        _check_order(order == b"little")
    buffers: dict[str, _Storage] = {}

    def storage(said: object) -> _Storage:
        dtype, key, count, _ = _storage_facts(said)
        name = f"{root}data/{key}"
        if name not in members:
            raise DamagedFileError(f"it has no {name!r:.80}")
        if name not in buffers:
            buffers[name] = _stored(whole, members[name])
        found = buffers[name]
        if count * dtype.itemsize > found.count:
            raise DamagedFileError(f"{name!r:.80} has {found.count} bytes, too few")
        return _Storage(found.buffer, found.start, count, dtype)

    data = io.BytesIO(_content(whole, members[pickled]))
    reader = Reader(data, storage, _Tensors(len(whole)).make)
    return reader.read(), tuple(reader.code)


def _stored(whole: mmap.mmap, member: ZipInfo) -> _Storage:
    """Where the bytes of a member are."""
    if member.compress_type != ZIP_STORED:
        content = bytearray(_content(whole, member))
        return _Storage(content, 0, len(content), torch.uint8)
    return _aligned(_Storage(whole, _start(whole, member), member.file_size, torch.uint8))


def _aligned(storage: _Storage) -> _Storage:
    """A storage that begins where computing wants numbers to begin; older files do not care."""
    if storage.start % _ALIGNMENT == 0:
        return storage
    end = storage.start + storage.count * storage.dtype.itemsize
    return _Storage(bytearray(storage.buffer[storage.start : end]), 0, storage.count, storage.dtype)


def _content(whole: mmap.mmap, member: ZipInfo) -> bytes:
    start = _start(whole, member)
    data = whole[start : start + member.compress_size]
    if member.compress_type == ZIP_STORED:
        return data
    if member.compress_type != ZIP_DEFLATED:
        raise DamagedFileError(f"{member.filename!r:.80} is compressed as torch cannot read it")
    content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.file_size + 1)
    if len(content) != member.file_size:
        raise DamagedFileError(f"{member.filename!r:.80} has not the size that it says")
    return content


def _start(whole: mmap.mmap, member: ZipInfo) -> int:
    """The first byte of a member, behind its local header."""
    header = member.header_offset
    if whole[header : header + 4] != b"PK\x03\x04":
        raise DamagedFileError(f"{member.filename!r:.80} is not where it should be")
    name, extra = struct.unpack_from("<HH", whole, header + 26)
    start: int = header + _LOCAL_HEADER_BYTES + name + extra
    whole_size = member.compress_type != ZIP_STORED or member.compress_size == member.file_size
    if start + member.compress_size > len(whole) or not whole_size:
        raise DamagedFileError(f"{member.filename!r:.80} is not whole")
    return start


def _check_order(little: bool) -> None:
    if not little:
        raise DamagedFileError("it was saved by a big-endian machine; save it again on this one")


def read_legacy(path: Path) -> tuple[object, tuple[str, ...]]:
    """Read a file of ``torch.save`` from before torch 1.6; see :func:`read_zip`.

    Behind four pickles - magic number, version, system, content - comes one with the keys of the
    storages, and behind that each storage: its count, 8 bytes, and its numbers.
    """
    whole = _map(path)
    sizes: dict[str, tuple[torch.dtype, int]] = {}

    def note_size(said: object) -> None:
        dtype, key, count, _ = _storage_facts(said)
        if sizes.setdefault(key, (dtype, count)) != (dtype, count):
            raise DamagedFileError("a storage in it has two sizes")

    _read_pickles(whole, note_size, lambda _: None)
    keys = Reader(whole, note_size, lambda _: None).read()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(sizes):
        raise DamagedFileError("the list of its storages is another than what it uses")
    places: dict[str, _Storage] = {}
    position = whole.tell()
    for key in map(str, keys):
        dtype, count = sizes[key]
        (stored,) = struct.unpack_from("<q", whole, position)
        position += 8
        place = _Storage(whole, position, count, dtype)
        position += count * dtype.itemsize
        if stored != count or position > len(whole):
            raise DamagedFileError(f"its storage {key!r:.40} is not whole")
        places[key] = _aligned(place)

    def storage(said: object) -> _Storage:
        dtype, key, _, view = _storage_facts(said)
        found = places[key]
        if view is None:
            return found
        _, offset, count = view if isinstance(view, tuple) else ("", -1, -1)
        offset, count = _sizes((offset, count))
        if offset + count > found.count:
            raise DamagedFileError("a view of a storage in it reaches out of it")
        return _Storage(found.buffer, found.start + offset * dtype.itemsize, count, dtype)

    return _read_pickles(whole, storage, _Tensors(len(whole)).make)


def _read_pickles(
    whole: mmap.mmap,
    storage: Callable[[object], object],
    tensor: Callable[[TensorParts], object],
) -> tuple[object, tuple[str, ...]]:
    """What the fourth pickle of an older file holds, and the code that it asks for."""
    whole.seek(0)
    reader = Reader(whole, storage, tensor)
    _, _, system = reader.read(), reader.read(), reader.read()
    _check_order(not isinstance(system, dict) or system.get("little_endian", True) is True)
    return reader.read(), tuple(reader.code)
