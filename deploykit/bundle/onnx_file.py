"""Whether an ONNX file is what its bundle says, told without onnx and without its weights' values.

The hash of a graph covers nothing that lies beside it, and whoever makes a bundle makes its
manifest, too: so the graph itself is looked at. An ONNX file is a protobuf message
(https://protobuf.dev/programming-guides/encoding), which tells the length of each part before the
part, so that all but what leads to a tensor is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import NamedTuple

from deploykit.errors import GraphError
from deploykit.specs.model import HEAD_KEY, LABELS_KEY, Labels
from deploykit.specs.preprocessing import PREPROCESSING_KEY, Preprocessing
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
#: Of ModelProto, and of each of its ``metadata_props``.
_METADATA = 14
_KEY, _VALUE = 1, 2
#: What no graph says of itself: a head that is not told is this one.
_SINGLE_LABEL = "single-label"
#: Of all ``metadata_props``: labels take some kilobytes.
_MAX_METADATA_BYTES = 2**24
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_FIXED = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}
_VARINT_BITS = 64


def check_graph_file(path: Path) -> list[tuple[str, str]]:
    """Check that a file is laid out as an ONNX graph that has all its tensors inside.

    Returns:
        Keys and values of its ``metadata_props``, those of equal keys, too.

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
            external, metadata = _walked(_Reader(file), size)
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


def check_meaning(
    name: str, metadata: Iterable[tuple[str, str]], labels: Labels, preprocessing: Preprocessing
) -> None:
    """Check that a graph which tells its labels, head and preprocessing tells the manifest's.

    Args:
        name: What the error calls the graph.
        metadata: Its ``metadata_props``.
        labels: The manifest's.
        preprocessing: The manifest's.

    Raises:
        GraphError: It tells others.
    """
    meant = {**labels.metadata, PREPROCESSING_KEY: preprocessing.to_metadata()}
    told = [*metadata]
    if any(key == LABELS_KEY for key, _ in told) and all(key != HEAD_KEY for key, _ in told):
        told.append((HEAD_KEY, _SINGLE_LABEL))  # what labels without a head mean
    for key, value in told:
        means = meant.get(key, _SINGLE_LABEL if key == HEAD_KEY else value)
        if means != value:
            raise GraphError(
                f"{name} was exported with {key} {value}, but the manifest says {means}.",
                hint="One of the two was changed afterwards. Export the bundle again.",
            )


class _DamagedError(Exception):
    """The bytes are no protobuf message."""


class _Reader:
    """A file that knows where it is without asking the system."""

    def __init__(self, file: BufferedReader | BytesIO) -> None:
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

    def skip_to(self, position: int) -> None:
        self._file.seek(position - self.position, os.SEEK_CUR)
        self.position = position

    def read_to(self, position: int) -> bytes:
        content = self._file.read(position - self.position)
        self.position += len(content)
        return content


class _Field(NamedTuple):
    """What stands before a field's content: its number, how it is written, and where it ends."""

    number: int
    wire: int
    stop: int
    value: int = 0
    """That of a field that is one number; such a field has ended already."""

    @property
    def is_external(self) -> bool:
        """Whether it says of a tensor that its numbers are in another file."""
        if self.wire == _VARINT:
            return self.number == _DATA_LOCATION and self.value != 0
        return self.number == _EXTERNAL_DATA and self.wire == _LENGTH


def _next_field(reader: _Reader) -> _Field:
    tag = reader.varint()
    number, wire = tag >> 3, tag & 7
    if not 0 < number < 2**29:
        raise _DamagedError(f"field {number} at byte {reader.position}")
    if wire == _VARINT:
        value = reader.varint()
        return _Field(number, wire, reader.position, value)
    if wire in _FIXED:
        return _Field(number, wire, reader.position + _FIXED[wire])
    if wire != _LENGTH:
        raise _DamagedError(f"wire type {wire} at byte {reader.position}")
    length = reader.varint()
    return _Field(number, wire, reader.position + length)


class _Metadata(list[tuple[str, str]]):
    """The keys and values of a model's ``metadata_props``."""

    size = 0

    def read(self, reader: _Reader, stop: int) -> None:
        """Read one of them, which ends at a byte."""
        self.size += stop - reader.position
        if self.size > _MAX_METADATA_BYTES:
            raise _DamagedError(f"its metadata_props have more than {_MAX_METADATA_BYTES} bytes")
        found = {_KEY: b"", _VALUE: b""}
        while reader.position < stop:
            field = _next_field(reader)
            if field.stop > stop:
                raise _DamagedError(f"field {field.number} ends behind its metadata_props")
            content = reader.read_to(field.stop)
            if field.wire == _LENGTH:
                found[field.number] = content
        self.append((found[_KEY].decode(errors="replace"), found[_VALUE].decode(errors="replace")))


def _walked(reader: _Reader, size: int) -> tuple[bool, _Metadata]:
    """Whether a model has a tensor with external data, however deep it is; and its metadata.

    Whatever a parser might take for it counts: fields that come twice, and in any order.
    """
    within = [("ModelProto", size)]
    fields, metadata, has_graph = 0, _Metadata(), False
    while within:
        kind, end = within[-1]
        if reader.position == end:
            within.pop()
            continue
        fields += 1
        if fields > _MAX_FIELDS:
            raise _DamagedError(f"it has more than {_MAX_FIELDS} fields")
        field = _next_field(reader)
        if kind == "TensorProto" and field.is_external:
            return True, metadata
        if field.stop > end:
            raise _DamagedError(
                f"field {field.number} ends at byte {field.stop}, behind what it is in"
            )
        inner = FIELDS[kind].get(field.number) if field.wire == _LENGTH else None
        if inner is not None:
            has_graph = has_graph or inner == "GraphProto"
            within.append((inner, field.stop))
        elif (kind, field.number, field.wire) == ("ModelProto", _METADATA, _LENGTH):
            metadata.read(reader, field.stop)
        else:
            reader.skip_to(field.stop)
    if not has_graph:
        raise _DamagedError("no graph is in it" if size else "it is empty")
    return False, metadata
