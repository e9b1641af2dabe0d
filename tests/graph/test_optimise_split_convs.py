import numpy as np
import onnx_ir as ir
import pytest
from rewritten_graphs import check_rewrite, check_unchanged, names, network, node_named, operators

from deploykit.graph.optimise import split_sliced_convs

BIAS = {"w": (24, 8, 3, 3), "b": (24,)}
PLAIN = {"w": (24, 8, 3, 3)}
CONV = "[conv] x = Conv<pads=[1, 1, 1, 1]>(input, w{bias})"
#: The halves of a dual-path block: 16 channels are added, 8 joined.
SLICES = """
    [low] low = Slice(x, zero, sixteen, one, one)
    [high] high = Slice(x, sixteen, end, one)
    [double] doubled = Add(low, low)
"""
JOIN = "[join] logits = Concat<axis=1>(high, doubled)"


def conv(bias=False):
    return CONV.format(bias=", b" if bias else "")


@pytest.mark.parametrize("bias", [True, False])
def test_split_sliced_convs_into_parts(bias):
    model = network(conv(bias) + SLICES + JOIN, **(BIAS if bias else PLAIN))
    model = check_rewrite(model, split_sliced_convs)
    assert operators(model) == {"Conv": 2, "Add": 1, "Concat": 1}


def test_split_sliced_convs_names_modules_and_weights():
    model = network(conv(bias=True) + SLICES + JOIN, **BIAS)
    weight = model.graph.initializers["w"].const_value.numpy()
    model = check_rewrite(model, split_sliced_convs)
    low = node_named(model, "conv/channels_0_16")
    high = node_named(model, "conv/channels_16_24")
    assert low.metadata_props["module"] == high.metadata_props["module"] == "path.conv"
    assert [node.outputs[0].name for node in (low, high)] == ["low", "high"]
    assert str(low.outputs[0].shape) == "[N,16,5,5]"
    assert list(model.graph.initializers) == [
        "w/channels_0_16", "b/channels_0_16", "w/channels_16_24", "b/channels_16_24",
    ]  # fmt: skip
    assert np.array_equal(high.inputs[1].const_value.numpy(), weight[16:])


def test_split_sliced_convs_before_a_split():
    model = network(
        """
        [conv] x = Conv<strides=[2, 2], auto_pad="SAME_UPPER">(input, w, b)
        [split] first, second = Split<axis=-3>(x, halves)
        [act] active = Sigmoid(first)
        [mul] logits = Mul(active, second)
        """,
        gives="float[N, 8, 3, 3] logits", w=(16, 8, 3, 3), b=(16,),
    )  # fmt: skip
    model = check_rewrite(model, split_sliced_convs)
    assert operators(model) == {"Conv": 2, "Sigmoid": 1, "Mul": 1}
    assert names(model) == {"first", "second", "active", "logits"}


def test_split_sliced_convs_computes_equal_parts_once():
    model = network(
        conv()
        + """
        [a] a = Slice(x, from_eighth_last, end, third_last)
        [b] b = Slice(x, sixteen, twenty_four, one, one)
        [join] logits = Concat<axis=1>(a, b)
        """,
        gives="float[N, 16, 5, 5] logits", **PLAIN,
    )  # fmt: skip
    model = check_rewrite(model, split_sliced_convs)
    assert operators(model) == {"Conv": 1, "Concat": 1}
    assert model.graph[0].inputs[1].shape == (8, 8, 3, 3)


def test_split_sliced_convs_that_share_a_bias():
    model = network(
        """
        [one] x = Conv(input, v, b)
        [two] y = Conv(input, w, b)
        [x_low] p = Slice(x, zero, eight, one)
        [x_high] q = Slice(x, eight, end, one)
        [y_high] r = Slice(y, eight, end, one)
        [add] s = Add(q, r)
        [join] logits = Concat<axis=1>(p, s)
        """,
        gives="float[N, 16, 5, 5] logits", v=(16, 8, 1, 1), w=(16, 8, 1, 1), b=(16,),
    )  # fmt: skip
    model = check_rewrite(model, split_sliced_convs)
    assert operators(model) == {"Conv": 3, "Add": 1, "Concat": 1}
    biases = [node.inputs[2] for node in model.graph if node.op_type == "Conv"]
    assert len(set(biases)) == 2


WHOLE_USED_TOO = (
    conv() + SLICES + "[join] y = Concat<axis=1>(high, doubled) [all] logits = Add(x, y)"
)
OVERLAP = """
    [low] low = Slice(x, zero, sixteen, one)
    [high] high = Slice(x, eight, end, one)
    [add] logits = Add(low, high)
"""
NARROW = """
    [low] low = Slice(x, zero, twelve, one)
    [middle] middle = Slice(x, twelve, sixteen, one)
    [high] high = Slice(x, sixteen, end, one)
    [join] logits = Concat<axis=1>(low, high, middle)
"""
REVERSED = """
    [low] low = Slice(x, end, zero, one, backwards)
    [high] logits = Relu(low)
"""
GAPS = "[even] even = Slice(x, zero, end, one, two) [act] logits = Relu(even)"
TWO_AXES = "[low] low = Slice(x, zeros, corner, axes) [act] logits = Relu(low)"
SPLIT_ROWS = "[rows] p, q = Split<axis=2>(x, two_rows) [join] logits = Concat<axis=2>(q, p)"
ROWS = "[rows] rows = Slice(x, zero, two, two) [act] logits = Relu(rows)"
SUM_16 = "float[N, 16, 5, 5] logits"


@pytest.mark.parametrize(
    ("nodes", "gives"),
    [
        (WHOLE_USED_TOO, "float[N, 24, 5, 5] logits"),
        (conv() + OVERLAP, SUM_16),
        (conv() + NARROW, "float[N, 24, 5, 5] logits"),
        (conv() + REVERSED, "float[N, 23, 5, 5] logits"),
        (conv() + GAPS, "float[N, 12, 5, 5] logits"),
        (conv() + ROWS, "float[N, 24, 2, 5] logits"),
        (conv() + TWO_AXES, "float[N, 8, 2, 5] logits"),
        (conv() + SPLIT_ROWS, "float[N, 24, 5, 5] logits"),
        (conv() + SLICES + JOIN, "float[N, 24, 5, 5] logits, float[N, 24, 5, 5] x"),
        (conv() + SLICES + JOIN, "float[N, 24, 5, 5] logits, float[N, 8, 5, 5] high"),
    ],
    ids=[
        "whole",
        "overlap",
        "narrow",
        "reversed",
        "gaps",
        "rows",
        "two_axes",
        "split_rows",
        "output",
        "part",
    ],
)
def test_split_sliced_convs_leaves_other_uses(nodes, gives):
    check_unchanged(network(nodes, gives=gives, **PLAIN), split_sliced_convs)


def test_split_sliced_convs_leaves_grouped_convs():
    grouped = conv().replace("pads", "group=8, pads")
    check_unchanged(network(grouped + SLICES + JOIN, w=(24, 1, 3, 3)), split_sliced_convs)


def test_split_sliced_convs_leaves_a_shared_weight():
    model = network(
        conv() + SLICES + JOIN.replace("logits", "y") + "[again] z = Conv<pads=[1, 1, 1, 1]>"
        "(input, w) [sum] logits = Add(y, z)",
        **PLAIN,
    )
    check_unchanged(model, split_sliced_convs)


@pytest.mark.parametrize("name", ["w", "sixteen"])
def test_split_sliced_convs_leaves_weights_that_are_inputs(name):
    """An initializer that is also an input is a default only."""
    model = network(conv() + SLICES + JOIN, **PLAIN)
    model.graph.inputs.append(model.graph.initializers[name])
    check_unchanged(model, split_sliced_convs)


def test_split_sliced_convs_leaves_unknown_channels():
    model = network(conv() + SLICES + JOIN, **PLAIN)
    node_named(model, "conv").outputs[0].shape = ir.Shape(["N", "C", 5, 5])
    check_unchanged(model, split_sliced_convs)
