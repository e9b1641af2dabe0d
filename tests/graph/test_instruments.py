import numpy as np
import onnx
import pytest
from deploy_graphs import IMAGES, OVERFLOW, deploy_graph, run

from deploykit.errors import GraphError
from deploykit.graph.fp16 import convert_to_fp16
from deploykit.graph.instruments import model_bytes, with_outputs


def test_with_outputs_adds_tensors():
    model = deploy_graph(OVERFLOW)
    before = model_bytes(model)
    probed = with_outputs(model, ["high", "x"])
    assert [output.name for output in probed.graph.outputs] == ["logits", "high", "x"]
    found = run(probed)
    assert np.array_equal(found["logits"], run(model)["logits"])
    expected = IMAGES.transpose(0, 3, 1, 2) / 255 * 1000
    assert found["x"] == pytest.approx(expected, rel=1e-5)
    assert found["high"] == pytest.approx(300 * expected, rel=1e-5)
    assert model_bytes(model) == before


def test_with_outputs_of_existing_outputs():
    probed = with_outputs(deploy_graph(OVERFLOW), ["logits", "x", "x"])
    assert [output.name for output in probed.graph.outputs] == ["logits", "x"]


def test_with_outputs_keeps_fp16():
    half, _ = convert_to_fp16()(deploy_graph(OVERFLOW))
    assert run(with_outputs(half, ["x"]))["x"].dtype == np.float16


@pytest.mark.parametrize("name", ["nowhere", "thousand", "images"])
def test_with_outputs_refuses_unknown_tensors(name):
    with pytest.raises(GraphError, match=f"computes no tensor {name}"):
        with_outputs(deploy_graph(OVERFLOW), ["x", name])


def test_model_bytes_is_a_readable_file():
    model = deploy_graph(OVERFLOW)
    model.metadata_props["labels"] = "mésange"
    read = onnx.load_from_string(model_bytes(model))
    assert [node.name for node in read.graph.node] == [node.name for node in model.graph]
    assert {prop.key: prop.value for prop in read.metadata_props} == {"labels": "mésange"}
