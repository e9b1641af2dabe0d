"""The pass from an FP32 deploy graph to INT8, on small graphs."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from deploy_graphs import IMAGES, declarations, deploy_graph, run
from int8_cpu import needs_exact_int8

from deploykit.errors import GraphError
from deploykit.graph.instruments import model_bytes, with_outputs
from deploykit.graph.int8 import convert_to_int8, integer_nodes, quantized_tensors, switchable_int8
from deploykit.system.cpu import read_cpu, saturates_int8

#: Two Convs, one behind a Relu, joined and pooled; with a sum, and a head.
NODES = """
    [left] a = Conv(input, left_weight, left_bias)
    [act] b = Relu(a)
    [right] c = Conv <group = 3> (input, right_weight)
    [sum] d = Add(b, c)
    [join] e = Concat <axis = 1> (d, b)
    [pool] f = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (e)
    [narrow] g = Conv(f, narrow_weight)
    [shift] h = Add(g, offset)
    [mean] i = GlobalAveragePool(h)
    [flatten] j = Flatten(i)
    [head] logits = Gemm <transB = 1> (j, head_weight, head_bias)
"""
INTEGERS = ("left", "right", "sum", "join", "pool", "narrow", "head")


def weights():
    rng = np.random.default_rng(0)
    shapes = {
        "left_weight": (3, 3, 1, 1),
        "left_bias": (3,),
        "right_weight": (3, 1, 3, 3),
        "narrow_weight": (4, 6, 1, 1),
        "offset": (1, 4, 1, 1),
        "head_weight": (3, 4),
        "head_bias": (3,),
    }
    return {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def graph():
    nodes = NODES.replace("<group = 3>", "<group = 3, pads = [1, 1, 1, 1]>")
    model = deploy_graph(nodes, declarations(weights()))
    model.graph.node("left").metadata_props["module"] = "stem.left"
    return model


@pytest.fixture
def ranges(graph):
    names = list(quantized_tensors(graph))
    values = run(with_outputs(graph, names))
    return {name: (min(values[name].min(), 0), max(values[name].max(), 0)) for name in names}


def converted(graph, ranges, keep=(), **options):
    model, changed = convert_to_int8(ranges, keep, **options)(graph)
    assert changed
    onnx.checker.check_model(model_bytes(model), full_check=True)
    return model


def test_integer_nodes_and_quantized_tensors(graph):
    assert [node.name for node in integer_nodes(graph)] == list(INTEGERS)
    assert quantized_tensors(graph) == {
        "preprocessing/Add": ("left", "right"),
        "b": ("sum", "join"),
        "c": ("sum",),
        "d": ("join",),
        "e": ("pool",),
        "f": ("narrow",),
        "j": ("head",),
    }


@pytest.mark.parametrize("symmetric", [pytest.param(False, marks=needs_exact_int8), True])
def test_convert_to_int8_is_close_and_keeps_signature(graph, ranges, symmetric):
    model = converted(graph, ranges, symmetric=symmetric)
    wanted, found = run(graph)["logits"], run(model)["logits"]
    scale = np.abs(wanted).max()
    assert 0 < np.abs(found - wanted).max() < 0.05 * scale
    assert [str(value) for value in model.graph.inputs] == [str(v) for v in graph.graph.inputs]
    assert [value.name for value in model.graph.outputs] == ["logits"]


def test_convert_to_int8_keeps_names_and_modules(graph, ranges):
    model = converted(graph, ranges)
    names = [node.name for node in model.graph]
    assert [name for name in names if "/" not in name] == [
        node.name for node in graph.graph if "/" not in node.name
    ]
    for name in ("left", "left/weight/dequantized", "left/bias/dequantized"):
        assert model.graph.node(name).metadata_props["module"] == "stem.left"


def test_convert_to_int8_keeps_relu_with_conv(graph, ranges):
    model = converted(graph, ranges)
    assert model.graph.node("act").inputs[0].producer().name == "left"
    assert model.graph.node("b/quantized").inputs[0].producer().name == "act"


@pytest.mark.parametrize(
    ("symmetric", "activations", "biases"),
    [(False, ir.DataType.UINT8, {ir.DataType.INT32}), (True, ir.DataType.INT8, set())],
)
def test_convert_to_int8_types(graph, ranges, symmetric, activations, biases):
    model = converted(graph, ranges, symmetric=symmetric)
    rounded = [node.outputs[0].dtype for node in model.graph if node.op_type == "QuantizeLinear"]
    assert set(rounded) == {activations}
    constants = model.graph.initializers
    assert {v.dtype for n, v in constants.items() if n.endswith("bias/integers")} == biases
    assert {v.dtype for n, v in constants.items() if n.endswith("weight/integers")} == {
        ir.DataType.INT8
    }
    zeros = [v.const_value.numpy() for n, v in constants.items() if n.endswith("/zero_point")]
    assert not (symmetric and any(zero.any() for zero in zeros))


def test_convert_to_int8_scales_by_output_channel(graph, ranges):
    constants = converted(graph, ranges).graph.initializers
    for name in ("left", "right", "narrow", "head"):
        weight = weights()[f"{name}_weight"]
        scales = constants[f"{name}/weight/scale"].const_value.numpy()
        largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
        np.testing.assert_allclose(scales, largest / 127, rtol=1e-6)
        assert np.abs(constants[f"{name}/weight/integers"].const_value.numpy()).max() == 127
    assert not set(weights()) - {"offset"} & set(constants)


def test_convert_to_int8_max_pool_shares_scale(graph, ranges):
    constants = converted(graph, ranges).graph.initializers
    for what in ("scale", "zero_point"):
        before, behind = (constants[f"{name}/{what}"].const_value.numpy() for name in "ef")
        assert before == behind


def test_convert_to_int8_kept_node_is_unrounded(graph, ranges):
    model = converted(graph, ranges, keep=["narrow", "sum"])
    kept = model.graph.node("narrow")
    assert [value.name for value in kept.inputs] == ["f", "narrow_weight"]
    assert [value.name for value in model.graph.node("sum").inputs] == ["b", "c"]
    assert model.graph.node("join").inputs[1].name == "b/dequantized"
    assert {"f/quantized", "c/quantized"}.isdisjoint(node.name for node in model.graph)


def test_convert_to_int8_with_all_nodes_kept(graph, ranges):
    model = converted(graph, ranges, keep=INTEGERS)
    np.testing.assert_array_equal(run(model)["logits"], run(graph)["logits"])


def test_convert_to_int8_without_joins(graph, ranges):
    model = converted(graph, ranges, joins=False)
    for name in ("sum", "join"):
        assert not any("dequantized" in value.name for value in model.graph.node(name).inputs)
    names = ("left", "right", "pool", "narrow", "head")
    assert tuple(node.name for node in integer_nodes(graph, joins=False)) == names
    assert set(quantized_tensors(graph, joins=False)) == {"preprocessing/Add", "e", "f", "j"}


def test_convert_to_int8_leaves_its_input_unchanged(graph, ranges):
    before = model_bytes(graph)
    model = converted(graph, ranges)
    assert model_bytes(graph) == before
    assert convert_to_int8(ranges)(model) == (model, False)


def one_conv(nodes, weights=""):
    """A graph with the weight ``one``, a 1x1 Conv that gives what it takes, and a head."""
    one = ", ".join(map(str, np.eye(3).ravel()))
    head = "[mean] pooled = GlobalAveragePool(z) [flatten] logits = Flatten(pooled)"
    return deploy_graph(nodes + head, f"float[3, 3, 1, 1] one = {{{one}}} {weights}")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("largest", [0.0, 1e-42, 1e-38])
def test_convert_to_int8_of_a_tiny_tensor(symmetric, largest):
    nodes = "[dead] x = Mul(input, factor) [conv] z = Conv(x, one)"
    graph = one_conv(nodes, f", float[1] factor = {{{largest}}}")
    model = converted(graph, {"x": (-largest, largest)}, symmetric=symmetric)
    scale = model.graph.initializers["x/scale"].const_value.numpy()
    assert scale >= np.finfo(np.float32).tiny
    rounded = run(with_outputs(model, ["x/dequantized"]))["x/dequantized"]
    assert np.abs(rounded).max() <= 2 * largest


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("factor", [0.0, 1e-42, 1e-38, 1e-12, 1e-5])
def test_convert_to_int8_of_a_tiny_channel_keeps_bias(graph, ranges, factor, symmetric):
    weight, bias = weights()["left_weight"], np.float32([1.0, -0.3, 0.0])
    weight[:] *= np.float32(factor)
    for name, array in (("left_weight", weight), ("left_bias", bias)):
        graph.graph.initializers[name].const_value = ir.tensor(array, name=name)
    with np.errstate(all="raise", under="ignore"):
        model = converted(graph, ranges, symmetric=symmetric)
    found = run(with_outputs(model, ["a"]))["a"]
    wanted = np.broadcast_to(bias[:, None, None], found.shape[1:])
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), atol=1e-4)


@pytest.mark.parametrize("joins", [False, True])
def test_convert_to_int8_shortcut_with_and_without_joins(joins):
    graph = one_conv("[stem] x = Conv(input, one) [body] y = Conv(x, one) [sum] z = Add(x, y)")
    held = dict.fromkeys(quantized_tensors(graph), (0.0, 1.0))
    model = converted(graph, held, joins=joins)
    assert model.graph.node("body").inputs[0].name == "x/dequantized"
    taken = [value.name for value in model.graph.node("sum").inputs]
    assert taken == (["x/dequantized", "y/dequantized"] if joins else ["x", "y"])
    switchable, tensors, _ = switchable_int8(graph, held, joins=joins)
    shortcut = switchable.graph.node("sum").inputs[0].name
    assert shortcut == ("x/choice" if joins else "x")
    assert ("y" in tensors) == joins


def test_convert_to_int8_refuses_unknown_ranges_and_nodes(graph, ranges):
    del ranges["d"]
    with pytest.raises(GraphError, match="No range is known for the tensor d"):
        convert_to_int8(ranges)(graph)
    with pytest.raises(GraphError, match="no nodes nobody to keep"):
        convert_to_int8(ranges, ["nobody"])(graph)


def test_switchable_int8_by_image_and_tensor(graph, ranges):
    model, tensors, by_image = switchable_int8(graph, ranges)
    assert tensors == tuple(quantized_tensors(graph))
    assert by_image
    pool, join = (model.graph.initializers[f"{each}/scale"].const_value.numpy() for each in "fe")
    assert pool == join  # as in the converted graph, where a MaxPool passes integers on
    count = len(tensors)
    exact = run(model, exact=np.ones((len(IMAGES), count), np.bool_))["logits"]
    np.testing.assert_allclose(exact, run(graph)["logits"], rtol=1e-5, atol=1e-5)
    same = np.repeat(IMAGES[:1], count, axis=0)
    alone = run(model, same, exact=~np.eye(count, dtype=np.bool_))["logits"]
    moved = np.abs(alone - exact[0]).max(axis=1)
    assert (moved > 0).all()
    assert moved.max() < 0.1 * np.abs(exact).max()


#: Every form of a layer, behind and before what makes it one of the network's.
LAYERS = {
    "Gemm": "[flat] f = Flatten(input) [it] logits = Gemm(f, tall, bias)",
    "Gemm transposed": "[flat] f = Flatten(input) [it] logits = Gemm <transB = 1> (f, flat_weight)",
    "Gemm with factors": (
        "[flat] f = Flatten(input) [it] logits = Gemm <alpha = 0.5, beta = 2.0> (f, tall, bias)"
    ),
    "Gemm with a row": "[flat] f = Flatten(input) [it] logits = Gemm(f, tall, row)",
    "MatMul": "[flat] f = Flatten(input) [it] logits = MatMul(f, tall)",
    "MatMul and Add": (
        "[flat] f = Flatten(input) [it] a = MatMul(f, tall) [add] logits = Add(bias, a)"
    ),
    "MatMul by the left": (
        "[by] f = MatMul(square, input) [flat] g = Flatten(f) [it] logits = MatMul(g, tall)"
    ),
    "Conv 1-D": (
        "[row] r = Reshape(input, three) [it] a = Conv(r, narrow) [flat] logits = Flatten(a)"
    ),
    "a layer twice": (
        "[first] a = Conv(input, mix) [second] b = Conv(a, mix) [flat] f = Flatten(b) "
        "[it] logits = Gemm(f, tall, bias)"
    ),
}


@pytest.mark.parametrize("symmetric", [pytest.param(False, marks=needs_exact_int8), True])
@pytest.mark.parametrize("kind", LAYERS)
def test_convert_to_int8_of_every_layer(kind, symmetric):
    rng = np.random.default_rng(1)
    values = int(np.prod(IMAGES.shape[1:]))
    side = IMAGES.shape[1]
    arrays = {
        "tall": rng.normal(0, 1, (values, 3)),
        "flat_weight": rng.normal(0, 1, (3, values)),
        "bias": rng.normal(0, 1, (3,)),
        "row": rng.normal(0, 1, (1, 3)),
        "square": rng.normal(0, 1, (side, side)),
        "mix": rng.normal(0, 1, (3, 3, 1, 1)),
        "narrow": rng.normal(0, 1, (3, 3, side * side)),
    }
    floats = declarations(arrays)
    graph = deploy_graph(LAYERS[kind], f"{floats}, int64[3] three = {{-1, 3, {side * side}}}")
    names = list(quantized_tensors(graph))
    found = run(with_outputs(graph, names))
    held = {name: (min(found[name].min(), 0), max(found[name].max(), 0)) for name in names}
    model = converted(graph, held, symmetric=symmetric)
    assert model.graph.node("it").inputs[1].name == "it/weight/dequantized"
    wanted = found["logits"]
    assert 0 < np.abs(run(model)["logits"] - wanted).max() < 0.05 * np.abs(wanted).max()


def dense(model):
    """(O, C, ...) the weight of the Conv "it" without groups: with zeros between them."""
    conv = model.graph.node("it")
    weight = conv.inputs[1].producer().inputs[0].const_value.numpy()
    groups, inputs = conv.attributes.get_int("group"), weight.shape[1]
    found = np.zeros((len(weight), groups * inputs, *weight.shape[2:]), weight.dtype)
    for group, own in enumerate(np.split(np.arange(len(weight)), groups)):
        found[own, group * inputs : (group + 1) * inputs] = weight[own]
    return found


@pytest.mark.parametrize("kernel", [(3,), (1, 3), (1, 3, 1)])
@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "wider"),
    [
        pytest.param(8, 3, 3, 2, id="to a multiple of 4"),
        pytest.param(4, 4, 4, 2, id="to 8 channels"),
        pytest.param(16, 1, 2, 2, id="more outputs than inputs"),
        pytest.param(2, 12, 4, 1, id="fewer outputs than inputs"),
        pytest.param(8, 1, 1, 8, id="depthwise"),
        pytest.param(2, 9, 9, 2, id="wide enough"),
        pytest.param(3, 2, 2, 3, id="no number of groups fits"),
        pytest.param(11, 4, 4, 11, id="only too many fit"),
    ],
)
def test_convert_to_int8_groups_of_few_channels_become_wider(
    groups, inputs, outputs, wider, kernel
):
    rng = np.random.default_rng(1)
    channels, given, values = groups * inputs, groups * outputs, int(np.prod(IMAGES.shape[1:3]))
    arrays = {
        "mix": rng.normal(0, 1, (channels, 3, 1, 1)),
        "weight": rng.normal(0, 1, (given, inputs, *kernel)),
        "bias": rng.normal(0, 1, (given,)),
        "tall": rng.normal(0, 1, (given * values, 3)),
    }
    pads = [size // 2 for size in kernel]
    nodes = f"""
        [first] a = Conv(input, mix)
        [rows] r = Reshape(a, shape)
        [it] b = Conv <group = {groups}, pads = {pads + pads}> (r, weight, bias)
        [flat] f = Flatten(b)
        [head] logits = Gemm(f, tall)
    """
    shape = f"-1, {channels}, {values}{', 1' * (len(kernel) - 1)}"
    weights = f"{declarations(arrays)}, int64[{len(kernel) + 2}] shape = {{{shape}}}"
    graph = deploy_graph(nodes, weights)
    names = list(quantized_tensors(graph))
    found = run(with_outputs(graph, [*names, "b"]))
    held = {name: (min(found[name].min(), 0), max(found[name].max(), 0)) for name in names}
    model, for_gpu = converted(graph, held), converted(graph, held, symmetric=True)
    assert model.graph.node("it").attributes.get_int("group") == wider
    assert for_gpu.graph.node("it").attributes.get_int("group") == groups
    assert np.array_equal(dense(model), dense(for_gpu))
    if not saturates_int8(read_cpu()):
        answers = run(with_outputs(model, ["b"]))["b"]
        assert 0 < np.abs(answers - found["b"]).max() < 0.05 * np.abs(found["b"]).max()


def test_switchable_int8_of_tokens_takes_an_image_at_a_time():
    """The first dimension of what the MatMul takes is not the batch's."""
    nodes = """
        [tokens] t = Transpose <perm = [2, 0, 1, 3]> (input)
        [mix] m = MatMul(t, square)
        [back] b = Transpose <perm = [1, 2, 0, 3]> (m)
        [flat] f = Flatten(b)
        [head] logits = MatMul(f, tall)
    """
    rng, side = np.random.default_rng(1), IMAGES.shape[1]
    arrays = {"square": rng.normal(0, 1, (side, side)), "tall": rng.normal(0, 1, (3 * side**2, 3))}
    graph = deploy_graph(nodes, declarations(arrays))
    names = list(quantized_tensors(graph))
    found = run(with_outputs(graph, names))
    held = {name: (min(found[name].min(), 0), max(found[name].max(), 0)) for name in names}
    model, tensors, by_image = switchable_int8(graph, held)
    assert (tensors, by_image) == (("t", "f"), False)
    for flags in [True, True], [False, True], [True, False]:
        answer = run(model, IMAGES[:1], exact=np.array([flags]))["logits"]
        assert np.array_equal(answer, found["logits"][:1]) == all(flags)
