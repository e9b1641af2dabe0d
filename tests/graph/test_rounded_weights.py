"""Weights rounded by what that does to a layer's answers."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from deploy_graphs import declarations, deploy_graph, run

from deploykit.graph import rounded_weights
from deploykit.graph.instruments import with_outputs
from deploykit.graph.int8 import convert_to_int8, has_weight, integer_nodes, quantized_tensors
from deploykit.graph.rounded_weights import MomentsOfInputs, bias_of, layer_of, rounded_weight


def network(nodes, rng, **shapes):
    """A deploy graph with random weights of these shapes."""
    weights = {name: rng.normal(0, 1, shape) for name, shape in shapes.items()}
    return deploy_graph(nodes, declarations(weights))


def one_layer(nodes, **shapes):
    model = network(nodes, np.random.default_rng(0), **shapes)
    return next(layer for node in model.graph if (layer := layer_of(node)) and node.name == "it")


def correlated(rng, samples, inputs):
    """(samples, inputs): a few causes, seen by many inputs, whose mean is not 0."""
    causes = rng.normal(1, 1, (samples, max(inputs // 8, 1)))
    mixed = causes @ np.random.default_rng(5).normal(0, 1, (causes.shape[1], inputs))
    return (mixed + rng.normal(0, 0.1, (samples, inputs))).astype(np.float32)


def gathered(layer, rows):
    """The moments of a Gemm's or MatMul's inputs."""
    inputs = MomentsOfInputs([layer.node], len(rows))
    inputs.add({layer.node.inputs[0].name: rows}, len(rows))
    return inputs.moments[layer.node.name]


GEMM = "[it] logits = Gemm <transB = 1> (input, weight)"
CONV = (
    "[it] a = Conv <group = 3, pads = [1, 0, 2, 1], strides = [2, 1], dilations = [1, 2]>"
    "(input, weight) [mean] b = GlobalAveragePool(a) [flat] logits = Flatten(b)"
)


@pytest.mark.parametrize("bits", [8, 7, 4])
def test_rounded_weight_errs_less_than_the_nearest(bits):
    layer = one_layer(GEMM, weight=(12, 32))
    rng = np.random.default_rng(1)
    largest, others = 2 ** (bits - 1) - 1, correlated(rng, 500, 32)
    found = rounded_weight(layer, gathered(layer, correlated(rng, 2000, 32)), largest)
    nearest = rounded_weight(layer, None, largest)

    def error(weight):
        rounded = weight.integers * weight.scales[:, None].astype(float)
        return np.sqrt(np.square(others @ (layer.weight - rounded).T - weight.bias).mean())

    assert np.abs(found.integers).max() == largest
    assert error(found) < 0.5 * error(nearest)


def test_rounded_weight_bias_makes_good_the_mean():
    layer = one_layer(GEMM, weight=(5, 24))
    rows = correlated(np.random.default_rng(2), 60, 24)  # fewer than are looked at: all of them
    found = rounded_weight(layer, gathered(layer, rows), 127)
    rounded = found.integers * found.scales[:, None].astype(float)
    lost = (rows.astype(float) @ (layer.weight - rounded).T).mean(axis=0)
    assert np.abs(lost).max() > 1e-3
    np.testing.assert_allclose(found.bias, lost, atol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        (GEMM, (4, 6)),
        (GEMM.replace("<transB = 1>", ""), (6, 4)),
        ("[it] logits = MatMul(input, weight)", (6, 4)),
    ],
)
def test_layer_matrix_and_back(nodes, shape):
    layer = one_layer(nodes, weight=shape)
    matrix = layer.matrix(layer.weight)
    assert (matrix.shape, layer.inputs) == ((1, 4, 6), 6)
    np.testing.assert_array_equal(layer.weight_of(matrix), layer.weight)


def test_layer_sample_is_what_a_conv_sums_up():
    layer = one_layer(CONV, weight=(6, 1, 3, 2))
    model = with_outputs(
        network(CONV, np.random.default_rng(0), weight=(6, 1, 3, 2)), ["a", "preprocessing/Add"]
    )
    values = run(model)
    rows = layer.sample(values["preprocessing/Add"], 10**6, np.random.default_rng(0))
    # (G, O / G, I) x (G, P, I) => (P, O)
    found = np.einsum("goi,gpi->pgo", layer.matrix(layer.weight), rows).reshape(rows.shape[1], -1)
    wanted = values["a"].transpose(0, 2, 3, 1).reshape(-1, 6)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    some = layer.sample(values["preprocessing/Add"], 7, np.random.default_rng(0))
    assert some.shape == (3, 7, 6)
    assert {*map(bytes, some[0])} <= {*map(bytes, rows[0])}


def test_rounded_weight_without_moments_is_the_nearest(monkeypatch):
    """Of a Conv that pads by itself nothing is known; of too many inputs only the mean."""
    layer = one_layer(
        CONV.replace("pads = [1, 0, 2, 1]", 'auto_pad = "SAME_UPPER"'), weight=(6, 1, 3, 2)
    )
    assert layer.sample(np.ones((1, 3, 9, 9), np.float32), 5, np.random.default_rng(0)) is None
    found = rounded_weight(layer, MomentsOfInputs([layer.node], 1).moments["it"], 127)
    scales = np.abs(layer.weight).max(axis=(1, 2, 3), keepdims=True) / 127
    np.testing.assert_array_equal(found.integers, np.rint(layer.weight / scales))
    assert not found.bias.any()

    monkeypatch.setattr(rounded_weights, "_MOST_BYTES", 1000)
    layer = one_layer(GEMM, weight=(5, 24))
    found = rounded_weight(
        layer, gathered(layer, correlated(np.random.default_rng(2), 60, 24)), 127
    )
    np.testing.assert_array_equal(found.integers, rounded_weight(layer, None, 127).integers)
    assert found.bias.any()


@pytest.mark.parametrize("spread", [1e-2, 1e-4])
def test_rounded_weight_of_inputs_that_hardly_vary(spread):
    """Their covariance is a thousandth of a millionth of their products."""
    layer = one_layer(GEMM, weight=(12, 64))
    rng = np.random.default_rng(4)
    rows, others = (
        (1 + spread * correlated(rng, count, 64)).astype(np.float32) for count in (1200, 300)
    )

    def error(weight):
        lost = layer.weight - weight.integers * weight.scales[:, None].astype(float)
        errors = others.astype(float) @ lost.T - weight.bias
        return np.sqrt(np.square(errors - errors.mean(axis=0)).mean())

    found = rounded_weight(layer, gathered(layer, rows), 127)
    assert error(found) < 0.7 * error(rounded_weight(layer, None, 127))


def test_rounded_weight_by_few_samples_errs_no_more_than_the_nearest():
    """Of 64 samples of 512 inputs that are not correlated, all of the covariance is chance."""
    layer = one_layer(GEMM, weight=(12, 512))
    rng = np.random.default_rng(4)
    rows, others = (rng.normal(0, 1, (count, 512)).astype(np.float32) for count in (64, 500))

    def error(weight):
        lost = layer.weight - weight.integers * weight.scales[:, None].astype(float)
        return np.sqrt(np.square(others @ lost.T).mean())

    found = rounded_weight(layer, gathered(layer, rows), 127)
    assert error(found) < 1.05 * error(rounded_weight(layer, None, 127))


def test_rounded_weight_of_a_covariance_that_is_none():
    layer = one_layer(GEMM, weight=(5, 24))
    moments = gathered(layer, correlated(np.random.default_rng(2), 60, 24))
    moments.products[:] = -moments.products
    found = rounded_weight(layer, moments, 127)
    np.testing.assert_array_equal(found.integers, rounded_weight(layer, None, 127).integers)


def test_rounded_weight_of_inputs_whose_products_overflow():
    layer = one_layer(GEMM, weight=(5, 24))
    rows = 1e25 * correlated(np.random.default_rng(2), 60, 24)
    found = rounded_weight(layer, gathered(layer, rows), 127)
    np.testing.assert_array_equal(found.integers, rounded_weight(layer, None, 127).integers)
    assert np.isfinite(found.bias).all()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_rounded_weight_of_inputs_that_never_vary(value):
    layer = one_layer(GEMM, weight=(5, 24))
    found = rounded_weight(layer, gathered(layer, np.full((90, 24), value, np.float32)), 127)
    np.testing.assert_array_equal(found.integers, rounded_weight(layer, None, 127).integers)


def test_moments_skip_what_is_not_finite():
    layer = one_layer(GEMM, weight=(5, 24))
    rows = correlated(np.random.default_rng(2), 60, 24)
    inputs = MomentsOfInputs([layer.node], 60)
    for each in (rows, np.full_like(rows, np.inf)):
        inputs.add({"input": each, "preprocessing/Add": each}, 60)
    assert inputs.moments["it"].samples == 60


NODES = """
    [wide] a = Conv <pads = [1, 1, 1, 1]> (input, wide_weight, wide_bias)
    [act] b = Relu(a)
    [deep] c = Conv <group = 16, pads = [1, 1, 1, 1]> (b, deep_weight)
    [act2] d = Relu(c)
    [narrow] e = Conv(d, narrow_weight)
    [mean] f = GlobalAveragePool(e)
    [flatten] g = Flatten(f)
    [head] logits = Gemm <transB = 1> (g, head_weight, head_bias)
"""
SHAPES = {
    "wide_weight": (16, 3, 3, 3),
    "wide_bias": (16,),
    "deep_weight": (16, 1, 3, 3),
    "narrow_weight": (8, 16, 1, 1),
    "head_weight": (3, 8),
    "head_bias": (3,),
}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [7, 5])  # of 8, the tensors are most of the error
def test_convert_to_int8_with_rounded_weights_errs_less(bits, symmetric):
    model = network(NODES, np.random.default_rng(3), **SHAPES)
    names = list(quantized_tensors(model))
    values = run(with_outputs(model, names))
    ranges = {name: (min(values[name].min(), 0), max(values[name].max(), 0)) for name in names}
    layers = [node for node in integer_nodes(model) if has_weight(node)]
    inputs = MomentsOfInputs(layers, len(values["b"]))
    inputs.add(values, len(values["b"]))
    weights = dict(inputs.rounded_weights(2 ** (bits - 1) - 1))
    nearest = {
        each.name: rounded_weight(layer_of(each), None, 2 ** (bits - 1) - 1) for each in layers
    }

    def error(weights):
        converted, _ = convert_to_int8(ranges, symmetric=symmetric, weights=weights)(model)
        return np.sqrt(np.square(run(converted)["logits"] - run(model)["logits"]).mean()), converted

    (less, converted), (more, _) = error(weights), error(nearest)
    assert less < 0.9 * more
    (deep,) = (node for node in converted.graph if node.name == "deep")
    # The node had no bias; it has one now, for what rounding lost.
    assert len(deep.inputs) == 3
    assert isinstance(deep.inputs[2], ir.Value)


MATMULS = {
    "an Add": ("[it] a = MatMul(input, weight) [add] logits = Add(a, offset)", True),
    "an Add from the left": ("[it] a = MatMul(input, weight) [add] logits = Add(offset, a)", True),
    "no Add": ("[it] logits = MatMul(input, weight)", False),
    "two takers": (
        "[it] a = MatMul(input, weight) [add] b = Add(a, offset) [sum] logits = Add(a, b)",
        False,
    ),
    "a factor": ("[it] logits = Gemm <alpha = 0.5> (input, weight, offset)", False),
    "another shape": ("[it] logits = Gemm(input, weight, row)", False),
}


@pytest.mark.parametrize("kind", MATMULS)
def test_rounded_weight_with_and_without_a_bias(kind):
    """Where nothing takes the mean of the error, the rounding itself has to."""
    nodes, has_bias = MATMULS[kind]
    layer = one_layer(nodes, weight=(24, 5), offset=(5,), row=(1, 5))
    found = bias_of(layer)
    assert (found is not None) == has_bias
    rng = np.random.default_rng(2)
    rows, others = (3 + correlated(rng, count, 24) for count in (3000, 500))
    weight = rounded_weight(layer, gathered(layer, rows), 127)
    assert weight.bias.any() == has_bias

    def error(weight):
        errors = others @ (layer.weight - weight.integers * weight.scales.astype(float))
        return np.sqrt(np.square(errors - weight.bias).mean())

    assert error(weight) < 0.5 * error(rounded_weight(layer, None, 127))


def test_convert_to_int8_corrects_the_add_behind_a_matmul():
    nodes = "[flat] f = Flatten(input) [it] a = MatMul(f, weight) [add] logits = Add(a, offset)"
    model = network(nodes, np.random.default_rng(3), weight=(48, 3), offset=(3,))
    (node,) = integer_nodes(model)
    taken = node.inputs[0].name
    values = run(with_outputs(model, [taken]))
    inputs = MomentsOfInputs([node], len(values[taken]))
    inputs.add(values, len(values[taken]))
    weights = dict(inputs.rounded_weights(7))
    ranges = {taken: (min(values[taken].min(), 0), values[taken].max())}
    off = {}
    for name, given in ("with", weights), ("without", {"it": replace(weights["it"], bias=0.0)}):
        converted, _ = convert_to_int8(ranges, weights=given)(model)
        off[name] = (run(converted)["logits"] - values["logits"]).mean(axis=0)
    assert np.abs(off["with"]).max() < 0.2 * np.abs(off["without"]).max()
