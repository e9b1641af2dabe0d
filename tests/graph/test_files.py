"""Graphs that cannot be read: each ends in one error, whichever library finds fault with it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import GraphError
from deploykit.graph.files import load_graph


def model():
    """``y = x * w``."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy")
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    node = helper.make_node("Mul", ["x", "w"], ["y"], name="scale")
    node.metadata_props.add(key="module", value="head.scale")
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def saved(tmp_path, content, name="model.onnx"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def change(**changes):
    """The model with other fields in its weight."""
    made = model()
    for name, value in changes.items():
        setattr(made.graph.initializer[0], name, value)
    return made


def test_load_graph(tmp_path):
    (node,) = load_graph(saved(tmp_path, model())).graph
    assert node.metadata_props == {"module": "head.scale"}


def without_an_input():
    made = model()
    del made.graph.node[0].input[1]
    return made


def of_an_unknown_operator():
    made = model()
    made.graph.node[0].op_type = "Nothing"
    return made


ODD = {
    "numbers that do not fit the shape": change(raw_data=b"\0\0\0"),
    "no numbers": change(raw_data=b""),
    "an unknown type": change(data_type=99),
    "weights that are texts": change(data_type=TensorProto.STRING),
    "no input": without_an_input(),
    "an unknown operator": of_an_unknown_operator(),
    "no graph": onnx.ModelProto(),
    "nothing": b"",
    "a text that is no UTF-8": model().SerializeToString().replace(b"head.scale", b"head.sc\xe5le"),
    "a name that is no UTF-8": model().SerializeToString().replace(b"scale", b"sc\xe5le"),
    "half of it": model().SerializeToString()[:50],
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_load_graph_refuses_an_odd_graph(tmp_path, content, capsys):
    path = saved(tmp_path, content)
    with pytest.raises(GraphError, match="is no ONNX graph: ") as caught:
        load_graph(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["model.json", "model.onnxtxt", "model.txt"])
def test_load_graph_reads_one_format(tmp_path, name):
    """onnx takes a file for another format if its name ends so, and the check would be another."""
    assert load_graph(saved(tmp_path, model(), name)).graph.name == "g"
