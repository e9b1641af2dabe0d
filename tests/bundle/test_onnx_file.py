"""Graphs whose weights, or a part of them, lie in another file."""

import os
import struct

import onnx
import pytest
from onnx import TensorProto, helper

from deploykit.bundle.onnx_file import FIELDS, check_graph_file
from deploykit.errors import GraphError

INSIDE = helper.make_tensor("inside", TensorProto.FLOAT, [1], [1.0])


def outside(by="both"):
    """A tensor whose numbers are in another file, as far as one of its two fields says."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    if by != "data_location":
        tensor.external_data.add(key="location", value="weights.bin")
    if by != "external_data":
        tensor.data_location = TensorProto.EXTERNAL
    return tensor


def graph(nodes=(), initializer=(INSIDE,), **more):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_graph(list(nodes), "g", [value], [value], list(initializer), **more)


def node(**attributes):
    return helper.make_node("If", ["x"], ["y"], **attributes)


def sparse(tensor):
    return onnx.SparseTensorProto(values=tensor, indices=INSIDE, dims=[1])


def function(nodes=(), defaults=()):
    made = helper.make_function("d", "f", ["x"], ["y"], list(nodes), [])
    made.attribute_proto.extend(defaults)
    return made


def models(tensor):
    """A model for each place in which a tensor can be."""
    inner = graph(initializer=[tensor])
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    training = onnx.TrainingInfoProto(algorithm=inner)
    start = onnx.TrainingInfoProto(initialization=inner)
    places = {
        "initializer": graph(initializer=[INSIDE, tensor]),
        "constant": graph([constant]),
        "tensors": graph([node(values=[INSIDE, tensor])]),
        "subgraph": graph([node(then_branch=graph([node(body=inner)]))]),
        "subgraphs": graph([node(branches=[graph(), inner])]),
        "sparse initializer": graph(sparse_initializer=[sparse(tensor)]),
        "sparse constant": graph([node(value=sparse(tensor))]),
    }
    made = {place: helper.make_model(each) for place, each in places.items()}
    for place, each in {"algorithm": training, "initialization": start}.items():
        made[place] = helper.make_model(graph())
        made[place].training_info.append(each)
    default = helper.make_attribute("value", tensor)
    for place, each in {
        "function": function([constant]),
        "function's default": function(defaults=[default]),
    }.items():
        made[place] = helper.make_model(graph(), functions=[each])
    return made


def saved(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


@pytest.mark.parametrize("place", models(INSIDE))
@pytest.mark.parametrize("by", ["both", "external_data", "data_location"])
def test_check_graph_file_refuses_external_data(tmp_path, place, by):
    check_graph_file(saved(tmp_path, models(INSIDE)[place]))
    with pytest.raises(GraphError, match="weights in a file beside it"):
        check_graph_file(saved(tmp_path, models(outside(by))[place]))


def test_check_graph_file_knows_every_place():
    """Those of onnx's own description of the format, so that a new one fails here."""

    def leads_to_tensors(message, within=()):
        return message.name == "TensorProto" or any(
            field.message_type
            and field.message_type.name not in within
            and leads_to_tensors(field.message_type, (*within, message.name))
            for field in message.fields
        )

    found, todo = {"TensorProto": {}}, [onnx.ModelProto.DESCRIPTOR]
    while todo:
        message = todo.pop()
        if message.name in found:
            continue
        fields = [f for f in message.fields if f.message_type and leads_to_tensors(f.message_type)]
        found[message.name] = {field.number: field.message_type.name for field in fields}
        todo += [field.message_type for field in fields]
    assert found == FIELDS


def test_check_graph_file_reads_a_graph_that_comes_twice(tmp_path):
    """A parser merges the two, so the tensors of both count."""
    first, second = helper.make_model(graph()), helper.make_model(graph(initializer=[outside()]))
    content = second.SerializeToString() + first.SerializeToString()
    with pytest.raises(GraphError, match="weights in a file beside it"):
        check_graph_file(saved(tmp_path, content))


@pytest.mark.parametrize("location", [b"\x01", b"\x81\x80\x00", b"\x81\x80\x80\x80\x10"])
def test_check_graph_file_reads_numbers_as_parsers_do(tmp_path, location):
    """1, with zeros before it, and with bits that an int32 has no place for."""
    tensor = INSIDE.SerializeToString() + b"\x70" + location
    inner = b"\x2a" + bytes([len(tensor)]) + tensor
    content = b"\x3a" + bytes([len(inner)]) + inner
    if location != b"\x81\x80\x80\x80\x10":
        (parsed,) = onnx.ModelProto.FromString(content).graph.initializer
        assert parsed.data_location == TensorProto.EXTERNAL
    with pytest.raises(GraphError, match="weights in a file beside it"):
        check_graph_file(saved(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\x01",  # whole, and without a graph
        b"ORTM",
        b"\x10\x00\x00\x00ORTM",
        b"\x00\x00",
        b"\x3b\x3c",  # a group
        b"\x3a\x7f",  # longer than the file
        b"\x3a" + b"\xff" * 9 + b"\x01",
        b"\x08" + b"\xff" * 11,
        b"\x3a\x03\x2a\x7f\x00",  # longer than what it is in
        b"\xff\xff\xff\xff\xff\x01\x00",
    ],
)
def test_check_graph_file_of_what_is_no_graph(tmp_path, content):
    with pytest.raises(GraphError, match="is no ONNX graph"):
        check_graph_file(saved(tmp_path, content))


def test_check_graph_file_skips_weights(tmp_path):
    """A gigabyte of them costs nothing."""
    path = tmp_path / "model.onnx"
    size = 2**30
    raw = b"\x4a" + _varint(size)
    tensor = b"\x2a" + _varint(len(raw) + size) + raw
    path.write_bytes(b"\x3a" + _varint(len(tensor) + size) + tensor)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)
    check_graph_file(path)


def _varint(value):
    found = b""
    while value > 0x7F:
        found += struct.pack("B", value & 0x7F | 0x80)
        value >>= 7
    return found + struct.pack("B", value)


def test_check_graph_file_bounds_its_size(tmp_path):
    path = saved(tmp_path, b"")
    with path.open("r+b") as file:
        file.truncate(2**31)
    with pytest.raises(GraphError, match="at most 2147483647"):
        check_graph_file(path)


def test_check_graph_file_bounds_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr("deploykit.bundle.onnx_file._MAX_FIELDS", 100)
    with pytest.raises(GraphError, match="more than 100 fields"):
        check_graph_file(saved(tmp_path, b"\x08\x01" * 101))


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no pipes in folders")
def test_check_graph_file_of_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(OSError, match="not a file"):
        check_graph_file(tmp_path / "model.onnx")


def test_check_graph_file_reads_metadata(tmp_path):
    """Those of equal keys, too: which of them counts is the parser's choice."""
    model = helper.make_model(graph())
    for key, value in (("a", "1"), ("鹰", "é"), ("a", "2"), ("", "")):
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    assert check_graph_file(saved(tmp_path, content)) == [
        ("a", "1"),
        ("鹰", "é"),
        ("a", "2"),
        ("", ""),
    ]
    assert check_graph_file(saved(tmp_path, b"\x72\x05\x12\x01v\x18\x01" + content))[0] == ("", "v")


@pytest.mark.parametrize("entry", [b"\x72\x03\x0a\x7fx", b"\x72\x02\x0b\x00", b"\x72\x01\x0a"])
def test_check_graph_file_of_damaged_metadata(tmp_path, entry):
    content = helper.make_model(graph()).SerializeToString()
    with pytest.raises(GraphError, match="is no ONNX graph"):
        check_graph_file(saved(tmp_path, content + entry))


def test_check_graph_file_bounds_its_metadata(tmp_path):
    path = saved(tmp_path, b"\x72" + _varint(2**30))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 2**30)
    with pytest.raises(GraphError, match="metadata_props have more than 16777216 bytes"):
        check_graph_file(path)
