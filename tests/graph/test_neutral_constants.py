"""A rule drops a constant that changes nothing, and none that is only close to one."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from deploykit.graph.simplify import simplify

#: What a network may have between two layers: zeros, the smallest and the largest numbers.
NUMBERS = np.array(
    [[0.0, -0.0, 1e-45, -1e-38, 1e-8], [-1e-8, 0.5, -1.0, 3.0, 65504.0], [1e30, -1e38, 1, 2, 6]],
    np.float32,
)
ONE_ABOVE, ONE_BELOW = (float(np.nextafter(np.float32(1), np.float32(to))) for to in (2, 0))
NEAR_ZERO = [1e-8, 1e-9, -1e-8, 1e-20, 1.2e-38, 1e-45]
NEAR_ONE = [ONE_ABOVE, ONE_BELOW, 1.000005, 0.999995, 1 + 1e-5]


def graph(nodes, **constants):
    """A graph from float[N, 5] x to y, with scalars as initializers."""
    declared = ", ".join(f"float {name} = {{0}}" for name in constants)
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> '
        f"net (float[N, 5] x) => (float[N, 5] y) <{declared}> {{{nodes}}}"
    )
    for name, value in constants.items():  # ONNX text has no room for all digits
        number = ir.tensor(np.array(value, np.float32), name=name)
        model.graph.initializers[name].const_value = number
    return model


def run(model):
    """All outputs, computed node by node as the graph says."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": NUMBERS})[0]


def simplified(nodes, **constants):
    """The answers before and after, and how many nodes are left."""
    before = run(graph(nodes, **constants))
    model = simplify(graph(nodes, **constants))
    return before, run(model), [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [(f"y = {operator}(x, c)", NEAR_ZERO) for operator in ("Add", "Sub")]
    + [(f"y = {operator}(x, c)", NEAR_ONE) for operator in ("Mul", "Div")]
    + [
        ("t = Relu(x) u = Add(t, c) y = Div(t, u)", NEAR_ZERO),
        ("t = Relu(x) u = Add(t, c) y = Log(u)", NEAR_ZERO),
        ("t = Relu(x) u = Add(t, c) s = Sqrt(u) y = Div(t, s)", NEAR_ZERO),
        ("t = Relu(x) u = Sub(c, t) y = Reciprocal(u)", NEAR_ZERO),
        ("t = Mul(x, c) u = Sub(t, x) y = Sign(u)", NEAR_ONE),
        ("t = Clip(x, c) y = Relu(t)", NEAR_ZERO),
        ("t = Relu(x) y = Clip(t, c)", NEAR_ZERO),
        ("t = Clip(x, c) y = Clip(t, , six)", NEAR_ZERO),
        ("t = Max(x, c) y = Max(t, zero)", NEAR_ZERO),
        ("t = Min(x, six) y = Max(t, c)", NEAR_ZERO),
        ("t = Max(x, c) y = Min(t, six)", NEAR_ONE),
    ],
)
def test_simplify_close_to_neutral(nodes, constants):
    for constant in constants:
        used = {"c": constant, "six": 6.0, "zero": 0.0}
        before, after, _ = simplified(
            nodes, **{name: value for name, value in used.items() if name in nodes}
        )
        np.testing.assert_array_equal(after, before, err_msg=f"{nodes} with {constant!r}")


@pytest.mark.parametrize(
    ("operator", "neutral"), [("Add", 0.0), ("Sub", 0.0), ("Mul", 1.0), ("Div", 1.0)]
)
def test_simplify_neutral(operator, neutral):
    before, after, left = simplified(f"t = {operator}(x, c) y = Neg(t)", c=neutral)
    assert left == ["Neg"]
    np.testing.assert_array_equal(after, before)


def test_simplify_neutral_that_widens():
    """Adding zeros of another shape makes the answer larger."""
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> '
        "net (float[N, 5] x) => (float[1, N, 5] y) <float[1, 1, 1] c = {0}> {y = Add(x, c)}"
    )
    model = simplify(model)
    assert [node.op_type for node in model.graph] == ["Add"]
    assert run(model).shape == (1, 3, 5)


def test_simplify_neutral_that_is_an_input():
    model = graph("y = Add(x, c)", c=0.0)
    model.graph.inputs.append(model.graph.initializers["c"])
    model = simplify(model)
    assert [node.op_type for node in model.graph] == ["Add"]


def test_simplify_cast_through_fp16_rounds():
    before, after, left = simplified("t = Cast<to = 10>(x) y = Cast<to = 1>(t)")
    assert left == ["Cast", "Cast"]
    np.testing.assert_array_equal(after, before)


def test_simplify_padding_close_to_zero_stays():
    """A Conv pads with zeros only."""
    for value, operators in ((1e-8, ["Pad", "Conv"]), (0.0, ["Conv"])):
        model = ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 20]> '
            "net (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) "
            "<float[1, 1, 3, 3] w = {1, 1, 1, 1, 1, 1, 1, 1, 1}, float c = {0}, "
            "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}> {t = Pad(x, p, c) y = Conv(t, w)}"
        )
        model.graph.initializers["c"].const_value = ir.tensor(np.array(value, np.float32), name="c")
        model = simplify(model)
        assert [node.op_type for node in model.graph] == operators


def test_simplify_bias_close_to_zero_stays():
    for value, inputs in ((1e-30, 3), (0.0, 2)):
        model = ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 20]> '
            "net (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) "
            "<float[1, 1, 1, 1] w = {1}, float[1] b = {0}> {y = Conv(x, w, b)}"
        )
        model.graph.initializers["b"].const_value = ir.tensor(
            np.array([value], np.float32), name="b"
        )
        model = simplify(model)
        assert len([each for each in model.graph[0].inputs if each is not None]) == inputs
