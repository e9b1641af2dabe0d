import numpy as np
import onnx_ir as ir
import pytest
from deploy_graphs import IMAGES, OVERFLOW, deploy_graph, run

from deploykit.graph.cut import cut_graph, float_tensors, pieces
from deploykit.graph.fp16 import convert_to_fp16
from deploykit.graph.instruments import with_only, with_outputs
from deploykit.graph.rehearsal import rehearsal_of

BRANCHES = """
    [stem] x = Mul(input, three)
    [left] a = Relu(x)
    [right] b = Neg(x)
    [shape] size = Shape(a)
    [same] c = Reshape(b, size)
    [join] sum = Add(a, c)
    [pool] pooled = GlobalAveragePool(sum)
    [flatten] logits = Flatten(pooled)
"""


def tensors_of(model, images=IMAGES):
    """All float tensors of a graph."""
    names = float_tensors(model)
    values = run(with_outputs(model, names), images)
    return {name: values[name] for name in names}


def test_float_tensors_in_graph_order():
    names = float_tensors(deploy_graph(BRANCHES))
    assert names[-7:] == ("x", "a", "b", "c", "sum", "pooled", "logits")
    assert "size" not in names  # integers


def test_cut_graph_computes_each_piece_from_feeds():
    graph = deploy_graph(BRANCHES)
    values = tensors_of(graph)
    cut = cut_graph(graph, values)
    assert run(cut.model, **cut.feeds(values)).keys() == values.keys()
    for name, found in run(cut.model, **cut.feeds(values)).items():
        assert np.array_equal(found, values[name]), name
    found = run(cut.model, **cut.feeds({**values, "a": values["a"] + 1}))
    changed = [name for name in values if not np.allclose(found[name], values[name])]
    assert changed == ["sum"]


def test_cut_graph_adds_skipped_tensors_to_next_piece():
    graph = deploy_graph(BRANCHES)
    values = tensors_of(graph)
    cut = cut_graph(graph, ["x", "sum"])
    found = run(cut.model, **cut.feeds({**values, "x": 2 * values["x"]}))
    assert found["x"] == pytest.approx(values["x"])
    assert found["sum"] == pytest.approx(2 * values["sum"])
    assert found["logits"] == pytest.approx(values["logits"])


def test_pieces_by_node_names():
    found = pieces(deploy_graph(BRANCHES), ["x", "sum", "logits"])
    names = {tensor: [node.name for node in nodes] for tensor, nodes in found.items()}
    assert names["x"][-1] == "stem"
    assert names["sum"] == ["left", "right", "shape", "same", "join"]
    assert names["logits"] == ["pool", "flatten"]


def test_cut_graph_leaves_its_input_unchanged():
    graph = deploy_graph(BRANCHES)
    before = ir.to_proto(graph).SerializeToString()
    cut_graph(graph, float_tensors(graph))
    pieces(graph, float_tensors(graph))
    with_only(with_outputs(graph, ["x"]), ["x"])
    assert ir.to_proto(graph).SerializeToString() == before


def test_cut_graph_shows_overflow_only_at_its_origin():
    graph = deploy_graph(OVERFLOW)
    rehearsal = rehearsal_of(convert_to_fp16()(graph)[0])
    values = tensors_of(graph)
    cut = cut_graph(rehearsal, values)
    found = run(cut.model, **cut.feeds(values))
    overflown = [name for name in values if not np.isfinite(found[name]).all()]
    assert overflown == ["high"]


def test_cut_graph_feeds_in_own_type():
    half, _ = convert_to_fp16()(deploy_graph(OVERFLOW))
    cut = cut_graph(half, ["high"])
    with np.errstate(over="ignore"):
        (feed,) = cut.feeds({"high": np.array([1e6, 1.0], np.float32)}).values()
    assert feed.dtype == np.float16
    assert feed.tolist() == [np.inf, 1.0]


def test_with_only_some_outputs():
    graph = with_outputs(deploy_graph(BRANCHES), ["a", "sum"])
    part = with_only(graph, ["a"])
    assert [value.name for value in part.graph.outputs] == ["a"]
    assert {node.name for node in part.graph} & {"left", "right", "join"} == {"left"}
    assert np.array_equal(run(part)["a"], run(graph)["a"])
