import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from deploy_graphs import (
    OVERFLOW,
    SENSITIVE_SUM,
    UNDERFLOW,
    deploy_graph,
    run,
)
from onnxruntime.transformers.float16 import convert_np_to_float16

from deploykit.errors import GraphError
from deploykit.graph.deploy import fuse_preprocessing
from deploykit.graph.export import onnx_from_module
from deploykit.graph.fp16 import convert_to_fp16, fp32_nodes, guardians, weight_losses
from deploykit.graph.instruments import model_bytes
from deploykit.graph.passes import MODULE_PATH
from deploykit.graph.rehearsal import rehearsal_of
from deploykit.runtime._base import normalised
from deploykit.specs.preprocessing import Preprocessing

SHARED = """
    [first] a = Mul(input, w)
    [second] b = Mul(a, w)
    [pool] pooled = GlobalAveragePool(b)
    [flatten] logits = Flatten(pooled)
"""
MINMAX = """
    [stem] x = Mul(input, w)
    [low] y = Max(x, w)
    [high] z = Mul(y, w)
    [pool] pooled = GlobalAveragePool(z)
    [flatten] logits = Flatten(pooled)
"""
BRANCHES = """
    [stem] x = Mul(input, w)
    [act] positive = Relu(x)
    [left] l = Mul(positive, w)
    [join] both = Concat<axis = 1>(positive, l)
    [right] r = Add(both, w)
    [pool] pooled = ReduceMean<keepdims = 0>(r, axes)
    [cut] logits = Slice(pooled, zero, classes, one)
"""
IMAGENET = Preprocessing(resize=(64, 64))
BRANCH_WEIGHTS = """
    float[1] w = {0.1}, int64[2] axes = {2, 3}, int64[1] zero = {0}, int64[1] classes = {3},
    int64[1] one = {1}
"""
W = "float[1] w = {0.1}"


def converted(model, keep=()):
    model, changed = convert_to_fp16(keep)(model)
    assert changed
    onnx.checker.check_model(model_bytes(model), full_check=True)
    return model


def types(model):
    """The type of every tensor that a node gives."""
    return {value.name: value.dtype.name for node in model.graph for value in node.outputs}


def casts(model):
    return {node.name: node for node in model.graph if node.op_type == "Cast"}


def test_convert_to_fp16_all_but_preprocessing():
    model = converted(deploy_graph(OVERFLOW))
    assert types(model) == {
        "preprocessing/Cast": "FLOAT",
        "preprocessing/Transpose": "FLOAT",
        "preprocessing/Mul": "FLOAT",
        "preprocessing/Add": "FLOAT",
        "preprocessing/Add/fp16": "FLOAT16",
        "x": "FLOAT16",
        "high": "FLOAT16",
        "back": "FLOAT16",
        "pooled": "FLOAT16",
        "logits/fp16": "FLOAT16",
        "logits": "FLOAT",
    }
    weights = {name: value.dtype.name for name, value in model.graph.initializers.items()}
    assert weights["preprocessing.factor"] == weights["preprocessing.offset"] == "FLOAT"
    assert weights["thousand"] == "FLOAT16"


def test_convert_to_fp16_keeps_signature_and_metadata():
    model = deploy_graph(OVERFLOW)
    model.metadata_props["deploykit.labels"] = '["a", "b", "c"]'
    model.graph.node("gain").metadata_props[MODULE_PATH] = "features.1"
    half = converted(model, ["gain"])
    assert (half.graph.inputs[0].name, half.graph.inputs[0].dtype) == ("images", ir.DataType.UINT8)
    assert (half.graph.outputs[0].name, str(half.graph.outputs[0].shape)) == ("logits", "[N,3]")
    assert dict(half.metadata_props) == dict(model.metadata_props)
    kept = [node for node in half.graph if node.name in {each.name for each in model.graph}]
    assert [(node.name, dict(node.metadata_props)) for node in kept] == [
        (node.name, dict(node.metadata_props)) for node in model.graph
    ]


def test_convert_to_fp16_leaves_its_input_unchanged():
    model = deploy_graph(OVERFLOW)
    before = model_bytes(model)
    first = model_bytes(converted(model))
    converted(model, ["gain", "undo"])
    assert model_bytes(model) == before
    assert model_bytes(converted(model)) == first


def test_convert_to_fp16_twice():
    model = converted(deploy_graph(OVERFLOW))
    again, changed = convert_to_fp16()(model)
    assert again is model
    assert not changed


def test_convert_to_fp16_no_cast_between_fp32_nodes():
    model = converted(deploy_graph(OVERFLOW), ["gain", "undo"])
    assert types(model)["high"] == types(model)["back"] == "FLOAT"
    assert set(casts(model)) == {
        "preprocessing/Cast",
        "preprocessing/Add/fp16",
        "x/fp32",
        "back/fp16",
        "logits/fp32",
    }
    assert [node.name for node in fp32_nodes(model)] == ["gain", "undo"]


def test_convert_to_fp16_casts_an_fp32_tensor_once():
    model = deploy_graph(BRANCHES, BRANCH_WEIGHTS)
    half = converted(model, ["act"])
    (cast,) = [node for node in half.graph if node.name == "positive/fp16"]
    assert {node.name for node in cast.outputs[0].consumers()} == {"left", "join"}


def test_convert_to_fp16_casts_have_modules():
    model = deploy_graph(OVERFLOW)
    for node in ("stem", "gain", "undo"):
        model.graph.node(node).metadata_props[MODULE_PATH] = f"net.{node}"
    found = {
        name: node.metadata_props.get(MODULE_PATH)
        for name, node in casts(converted(model, ["gain"])).items()
    }
    assert found["preprocessing/Add/fp16"] == "preprocessing"
    assert found["x/fp32"] == found["high/fp16"] == "net.gain"


def test_convert_to_fp16_kept_last_node():
    model = converted(deploy_graph(OVERFLOW), ["pool", "flatten"])
    assert types(model)["logits"] == "FLOAT"
    assert "logits/fp16" not in types(model)


def test_convert_to_fp16_shared_weight():
    model = converted(deploy_graph(SHARED, W), ["second"])
    first, second = (model.graph.node(name).inputs[1] for name in ("first", "second"))
    assert first.dtype == ir.DataType.FLOAT16
    assert second.dtype == ir.DataType.FLOAT
    assert second.const_value.numpy() == np.float32(0.1)
    assert first.const_value.numpy() == np.float16(0.1)
    assert len(casts(model)) == 5  # none of them on a weight


def test_fp32_nodes_of_operators_without_fp16():
    model = converted(deploy_graph(MINMAX, W))
    assert [(node.name, node.op_type) for node in fp32_nodes(model)] == [("low", "Max")]
    assert model.graph.node("low").inputs[1].dtype == ir.DataType.FLOAT


def test_convert_to_fp16_of_a_user_module_preprocessing():
    model = deploy_graph(OVERFLOW)
    model.graph.node("stem").metadata_props[MODULE_PATH] = "preprocessing"
    assert types(converted(model))["x"] == "FLOAT16"
    assert "x" in guardians(model)


def test_fp32_nodes_of_a_converted_graph():
    assert fp32_nodes(converted(deploy_graph(SENSITIVE_SUM))) == ()


def test_convert_to_fp16_rounds_weights_as_onnxruntime():
    values = "1e-9, -1e-9, 0, 5.9e-8, 70000, -1e9, 0.1, 65519, 3e-5"
    size = len(values.split(","))
    model = deploy_graph(
        "[mean] x = ReduceMean(w) [add] y = Add(input, x) [pool] p = GlobalAveragePool(y) "
        "[flatten] logits = Flatten(p)",
        f"float[{size}] w = {{{values}}}",
    )
    rounded = converted(model).graph.initializers["w"].const_value.numpy()
    expected = convert_np_to_float16(np.array(values.split(","), np.float32))
    assert np.array_equal(rounded, expected)
    assert np.isfinite(rounded).all()
    assert ((rounded == 0) == (expected == 0)).all()


def test_convert_to_fp16_shares_casts_to_fp32():
    model = deploy_graph(BRANCHES, BRANCH_WEIGHTS)
    half = converted(model, ["left", "join"])
    (cast,) = [node for node in half.graph if node.name == "positive/fp32"]
    assert {node.name for node in cast.outputs[0].consumers()} == {"left", "join"}


@pytest.mark.parametrize("kept", [(), ["grow"]], ids=["fp16", "fp32"])
def test_convert_to_fp16_inputs_that_must_be_fp32(kept):
    model = deploy_graph(
        '[grow] x = Resize<mode = "linear">(input, , scales) [pool] p = GlobalAveragePool(x) '
        "[flatten] logits = Flatten(p)",
        "float[4] scales = {1, 1, 2, 2}",
    )
    half = converted(model, kept)
    assert half.graph.initializers["scales"].dtype == ir.DataType.FLOAT
    assert [node.name for node in fp32_nodes(half)] == list(kept)
    assert len(casts(half)) == 3 if not kept else 4


@pytest.mark.parametrize("to", ["", "<to = 1>"])
def test_convert_to_fp16_constants_and_casts(to):
    constant = "[c] s = Cast<to = 1>(one)" if to else "[c] s = Constant<value_float = 0.3>()"
    model = deploy_graph(
        f"{constant} [scale] x = Mul(input, s) [pool] p = GlobalAveragePool(x) "
        "[flatten] logits = Flatten(p)",
        "int64[1] one = {1}",
    )
    half = converted(model)
    assert half.graph.node("scale").inputs[1].dtype == ir.DataType.FLOAT16
    exact, rehearsed = (run(each)["logits"] for each in (model, rehearsal_of(half)))
    assert np.abs(rehearsed - exact).max() <= 2e-3


def test_convert_to_fp16_refuses_unknown_nodes():
    with pytest.raises(GraphError, match="no nodes gian to keep"):
        convert_to_fp16(["gain", "gian"])(deploy_graph(OVERFLOW))


def test_convert_to_fp16_refuses_repeated_names():
    model = deploy_graph(OVERFLOW)
    model.graph.node("undo").name = "gain"
    with pytest.raises(GraphError, match="Mul node 'gain' has no name of its own"):
        convert_to_fp16()(model)


def test_convert_to_fp16_refuses_subgraphs():
    branch = "net () => (float[N, 3] {0}) {{ {0} = Flatten(pooled) }}"
    model = deploy_graph(
        "[pool] pooled = GlobalAveragePool(input) [flag] yes = ReduceMax<keepdims = 0>(w) "
        "[truth] b = Cast<to = 9>(yes) "
        f"[choose] logits = If (b) <then_branch = {branch.format('p')}, "
        f"else_branch = {branch.format('q')}>",
        W,
    )
    with pytest.raises(GraphError, match="subgraph"):
        convert_to_fp16()(model)


def test_guardians_are_producer_and_consumers():
    found = guardians(deploy_graph(BRANCHES, BRANCH_WEIGHTS))
    assert found == {
        "x": ("stem", "act", "left", "join", "right"),
        "l": ("left", "join", "right"),
        "r": ("right", "pool"),
        "pooled": ("pool", "cut"),
    }


def test_guardians_keep_a_tensor_in_fp32():
    model = deploy_graph(BRANCHES, BRANCH_WEIGHTS)
    found = types(converted(model, guardians(model)["x"]))
    assert {found[name] for name in ("x", "positive", "both")} == {"FLOAT"}
    assert found["r/fp16"] == found["pooled"] == "FLOAT16"


def test_weight_losses_of_what_fp16_cannot_hold():
    model = deploy_graph(
        "[fine] a = Mul(input, good) [small] b = Mul(a, low) [huge] c = Mul(b, high) "
        "[none] d = Add(c, zero) [pool] p = GlobalAveragePool(d) [flatten] logits = Flatten(p)",
        "float[3, 1, 1] good = {0.1, 7, 1}, float[3, 1, 1] low = {3e-8, 4e-8, 0}, "
        "float[1] high = {65505}, float[1] zero = {0}",
    )
    losses = weight_losses(model)
    assert list(losses) == ["fine", "small", "huge", "none"]
    assert 0 < losses["fine"] < 2**-11
    # Both values become FP16's smallest number, 2^-24.
    error = np.array([2**-24 - 3e-8, 2**-24 - 4e-8])
    assert losses["small"] == pytest.approx(np.linalg.norm(error) / 5e-8, rel=1e-5)
    assert losses["huge"] == np.inf
    assert losses["none"] == 0


@pytest.mark.parametrize(
    ("nodes", "keep"),
    [(OVERFLOW, "high"), (UNDERFLOW, "low"), (SENSITIVE_SUM, "high")],
    ids=["overflow", "underflow", "sum"],
)
def test_convert_to_fp16_with_two_kept_nodes(nodes, keep):
    model = deploy_graph(nodes)
    expected = run(model)["logits"]
    scale = np.abs(expected).max()
    guards = guardians(model)[keep]
    assert len(guards) == 2
    blanket, mended = (run(rehearsal_of(converted(model, kept)))["logits"] for kept in ((), guards))
    assert not np.abs(blanket - expected).max() <= 0.02 * scale
    assert np.abs(mended - expected).max() <= 0.002 * scale


def test_rehearsal_shows_overflow_that_cpu_hides():
    model = converted(deploy_graph(OVERFLOW))
    assert np.isfinite(run(model)["logits"]).all()
    assert np.isinf(run(rehearsal_of(model))["logits"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_b0", "densenet121", "mobilenet_v3_small"])
def test_convert_to_fp16_of_torchvision_networks(name):
    import torchvision

    torch.manual_seed(0)
    module = getattr(torchvision.models, name)(num_classes=5)
    # One pass of training gives BatchNorm its statistics; without them the logits vanish.
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    images = np.random.default_rng(1).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    batch = torch.from_numpy(normalised(images, IMAGENET))
    module.train()(batch)
    module.eval()
    model, _ = fuse_preprocessing(IMAGENET)(onnx_from_module(module, (64, 64)))
    rehearsal = rehearsal_of(converted(model))
    onnx.checker.check_model(model_bytes(rehearsal), full_check=True)
    exact, rehearsed = (run(each, images)["logits"] for each in (model, rehearsal))
    with torch.inference_mode():
        half = module.half()(batch.half()).float().numpy()
    # Such networks amplify rounding; so they do in torch, which rounds BatchNorm's output too.
    assert 0 < np.abs(rehearsed - exact).max() <= 2 * np.abs(half - exact).max()
