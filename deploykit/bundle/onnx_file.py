"""Whether an ONNX file has its weights inside, and what it tells of itself, without onnx.

The weights are not read.

The hash of a graph covers nothing that lies beside it, and whoever makes a bundle makes its
manifest, too: so the graph itself is looked at. An ONNX file is a protobuf message
(https://protobuf.dev/programming-guides/encoding), which tells the length of each part before the
part, so that all but what leads to a tensor is skipped.
"""

from __future__ import annotations

import os
from io import BufferedReader
from pathlib import Path

from deploykit.errors import GraphError
from deploykit.system.files import open_file

#: A protobuf message has at most so many bytes.
MAX_GRAPH_BYTES = 2**31 - 1
#: Graphs have some tens of thousands; walking through these takes seconds.
_MAX_FIELDS = 5_000_000
#: By the kind of message, which of its fields lead to tensors, and their kind: the numbers are
#: those of onnx.proto, which tests/bundle/test_onnx_file.py compares.
FIELDS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
#: Of a ModelProto; then of a StringStringEntryProto.
_METADATA, _KEY, _VALUE = 14, 1, 2
#: A list of 22,000 labels has less than a megabyte.
_MOST_TEXT = 2**26
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_FIXED = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}
_VARINT_BITS = 64


def check_graph_file(path: Path) -> dict[str, str]:
    """Check that a file is laid out as an ONNX graph that has all its tensors inside.

    Returns:
        Its ``metadata_props``.

    Raises:
        GraphError: It is not, or has a tensor whose values are in another file.
        OSError: It cannot be read.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_GRAPH_BYTES:
            raise GraphError(
                f"{path} has {size} bytes; an ONNX graph has at most {MAX_GRAPH_BYTES}.",
                hint="Export the bundle again.",
            )
        try:
            metadata: dict[str, str] = {}
            external = _has_external(_Reader(file), size, metadata)
        except _DamagedError as exc:
            raise GraphError(
                f"{path} is no ONNX graph: {exc}.", hint="Export the bundle again."
            ) from exc
    if external:
        raise GraphError(
            f"{path} has weights in a file beside it, which no hash covers, so it is not opened.",
            hint="Export it again. A graph of your own: save it with its weights inside "
            "(onnx.save(onnx.load(old), new)).",
        )
    return metadata


class _DamagedError(Exception):
    """The bytes are no protobuf message."""


class _Reader:
    """A file that knows where it is without asking the system."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self.position = 0

    def varint(self) -> int:
        value = shift = 0
        while shift < _VARINT_BITS:
            byte = self._file.read(1)
            if not byte:
                break
            self.position += 1
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return value
            shift += 7
        raise _DamagedError(f"there is no number at byte {self.position}")

    def text(self, size: int) -> str:
        if size > _MOST_TEXT:
            raise _DamagedError(f"it has a text of {size} bytes at byte {self.position}")
        value = self._file.read(size)
        self.position += len(value)
        try:
            return value.decode()
        except UnicodeDecodeError as exc:
            raise _DamagedError(f"there is no text at byte {self.position}") from exc

    def skip_to(self, position: int) -> None:
        self._file.seek(position - self.position, os.SEEK_CUR)
        self.position = position


def _has_external(reader: _Reader, size: int, metadata: dict[str, str]) -> bool:
    """Whether a message has a tensor with external data, however deep it is.

    Whatever a parser might take for it counts: fields that come twice, and in any order.

    Args:
        reader: At the beginning.
        size: Of the message, in bytes.
        metadata: Takes up the model's ``metadata_props``.
    """
    within = [("ModelProto", size)]
    fields = 0
    while within:
        kind, end = within[-1]
        if reader.position == end:
            within.pop()
            continue
        fields += 1
        if fields > _MAX_FIELDS:
            raise _DamagedError(f"it has more than {_MAX_FIELDS} fields")
        tag = reader.varint()
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 2**29:
            raise _DamagedError(f"field {number} at byte {reader.position}")
        if wire == _VARINT:
            is_external = reader.varint() != 0 and number == _DATA_LOCATION
            stop = reader.position
        else:
            is_external = wire == _LENGTH and number == _EXTERNAL_DATA
            stop = reader.position + _FIXED[wire] if wire in _FIXED else _end(reader, wire)
        if is_external and kind == "TensorProto":
            return True
        if stop > end:
            raise _DamagedError(f"field {number} ends at byte {stop}, behind what it is in")
        if wire == _LENGTH and (kind, number) == ("ModelProto", _METADATA):
            _add_entry(reader, stop, metadata)
        elif wire == _LENGTH and number in FIELDS[kind]:
            within.append((FIELDS[kind][number], stop))
        else:
            reader.skip_to(stop)
    return False


def _add_entry(reader: _Reader, end: int, metadata: dict[str, str]) -> None:
    """Read a StringStringEntryProto; a key that comes twice may mean either of its values."""
    parts = {_KEY: "", _VALUE: ""}
    while reader.position < end:
        tag = reader.varint()
        number, wire = tag >> 3, tag & 7
        stop = _end(reader, wire)
        if stop > end or number not in parts:
            raise _DamagedError(f"field {number} of its metadata at byte {reader.position}")
        parts[number] = reader.text(stop - reader.position)
    if reader.position != end or parts[_KEY] in metadata:
        raise _DamagedError(f"its metadata has {parts[_KEY]!r} twice")
    metadata[parts[_KEY]] = parts[_VALUE]


def _end(reader: _Reader, wire: int) -> int:
    """Where a field with a length ends."""
    if wire != _LENGTH:
        raise _DamagedError(f"wire type {wire} at byte {reader.position}")
    length = reader.varint()
    return reader.position + length
