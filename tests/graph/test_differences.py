import numpy as np
import onnx_ir as ir
import pytest
from deploy_graphs import deploy_graph

from deploykit.graph.cut import float_tensors
from deploykit.graph.differences import graph_differences
from deploykit.graph.fp16 import convert_to_fp16

NODES = """
    [conv] x = Conv <pads = [1, 1, 1, 1]> (input, filter, bias)
    [act] y = Relu(x)
    [scale] z = Mul(y, gain)
    [join] both = Concat <axis = 1> (y, z)
    [total] sum = ReduceMean <keepdims = 0> (both, axes)
    [head] logits = MatMul(sum, matrix)
"""
_RANDOM = np.random.default_rng(0)
FILTER = _RANDOM.normal(size=(3, 3, 3, 3)).astype(np.float32)
MATRIX = _RANDOM.normal(size=(6, 3)).astype(np.float32)


def text_of(name, values, kind="float"):
    shape = ", ".join(map(str, values.shape))
    return f"{kind}[{shape}] {name} = {{{', '.join(map(str, values.flatten().tolist()))}}}"


def graph(nodes=NODES, *, filters=FILTER, matrix=MATRIX, gain=2.0):
    weights = ", ".join(
        (
            text_of("filter", filters),
            text_of("bias", np.array([0.5, 0.25, 0.125])),
            text_of("gain", np.array([gain])),
            text_of("matrix", matrix),
            text_of("axes", np.array([2, 3]), "int64"),
        )
    )
    model = deploy_graph(nodes, weights)
    next(node for node in model.graph if node.name == "conv").metadata_props["module"] = "stem.0"
    return model


def differences(candidate, reference=None):
    """By tensor what differs, and whether it is certain."""
    reference = reference or graph()
    common = set(float_tensors(candidate)) & set(float_tensors(reference))
    found = graph_differences(candidate, reference, common)
    return {
        tensor: [(each.message, each.certain) for each in several]
        for tensor, several in found.items()
    }


def test_a_graph_does_not_differ_from_itself():
    assert differences(graph()) == {}


def test_another_precision_is_no_difference():
    for keep in ([], ["scale"], ["conv", "head"]):
        assert differences(convert_to_fp16(keep)(graph())[0]) == {}


def test_one_weight():
    filters = FILTER.copy()
    filters[2, 1, 0, 2] += 0.01
    ((message, certain),) = differences(graph(filters=filters))["x"]
    assert certain
    assert message.startswith("conv (module stem.0) takes filter with 1 of 81 values changed, by ")
    assert f"[2, 1, 0, 2] is {filters[2, 1, 0, 2]:.6g}" in message


def test_one_weight_that_fp16_still_tells_apart():
    filters = FILTER.copy()
    filters[0, 0, 0, 0] *= 1.01
    assert list(differences(convert_to_fp16()(graph(filters=filters))[0])) == ["x"]


def test_another_rounding_is_no_difference():
    assert differences(graph(filters=np.nextafter(FILTER, np.float32(9)))) == {}


def test_what_is_left_of_a_difference_may_round_otherwise():
    """A bias that a BatchNorm was folded into, on another CPU."""
    filters, again = FILTER.copy(), FILTER.copy()
    filters[0, 0, 0, 0], again[0, 0, 0, 0] = 1e-4, 1.01e-4
    assert differences(graph(filters=again), graph(filters=filters)) == {}
    again[0, 0, 0, 0] = 3e-4
    assert list(differences(graph(filters=again), graph(filters=filters))) == ["x"]


def test_a_small_constant_is_shown():
    assert differences(graph(gain=3.0)) == {
        "z": [("scale takes gain [3.0] instead of [2.0]", True)]
    }


def test_a_missing_node_may_be_none_the_worse():
    missing = NODES.replace("[act] y = Relu(x)", "").replace("(y, gain)", "(x, gain)")
    found = differences(graph(missing.replace("(y, z)", "(x, z)")))
    assert found == {
        "z": [("act is missing, a Relu", False)],
        "both": [("act is missing, a Relu", False)],
    }


def test_a_new_node():
    new = NODES.replace("[act] y = Relu(x)", "[floor] w = Floor(x) [act] y = Relu(w)")
    assert differences(graph(new)) == {"y": [("floor is new, a Floor", False)]}


def test_another_operator():
    found = differences(graph(NODES.replace("Relu", "Abs")))
    assert found == {"y": [("act is an Abs instead of a Relu", True)]}


def test_another_attribute():
    found = differences(graph(NODES.replace("<pads = [1, 1, 1, 1]>", "<pads = [2, 0, 2, 0]>")))
    assert found == {
        "x": [("conv (module stem.0) has pads (2, 0, 2, 0) instead of (1, 1, 1, 1)", True)]
    }


def test_an_attribute_that_is_not_set():
    found = differences(graph(NODES.replace("<pads = [1, 1, 1, 1]>", '<auto_pad = "SAME_UPPER">')))
    messages = [message for message, _ in found["x"]]
    assert messages == [
        "conv (module stem.0) has auto_pad SAME_UPPER instead of unset",
        "conv (module stem.0) has pads unset instead of (1, 1, 1, 1)",
    ]


def test_a_float_attribute_is_compared_as_a_file_holds_it():
    """Before it is written it may have more digits."""
    text = NODES.replace("[act] y = Relu(x)", "[act] y = LeakyRelu <alpha = 0.1> (x)")
    model = graph(text)
    again = ir.from_proto(ir.to_proto(graph(text)))
    node = next(node for node in model.graph if node.name == "act")
    node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.1)
    assert differences(model, again) == {}


@pytest.mark.parametrize(("node", "expected"), [("Concat <axis = 1>", True), ("Add", False)])
def test_operands_exchanged(node, expected):
    """What commutes may."""
    text = NODES.replace("Concat <axis = 1>", node)
    matrix = MATRIX if expected else MATRIX[:3]
    found = differences(
        graph(text.replace("(y, z)", "(z, y)"), matrix=matrix), graph(text, matrix=matrix)
    )
    message = ("join reads z, y instead of y, z", False)
    assert found == ({"both": [message]} if expected else {})


def test_a_tensor_from_elsewhere():
    found = differences(graph(NODES.replace("(y, gain)", "(x, gain)")))
    assert found == {"z": [("scale reads x instead of y", False)]}


def test_what_a_merged_node_takes_is_not_held_against_it():
    """A Pad that went into its Conv."""
    apart = NODES.replace(
        "[conv] x = Conv <pads = [1, 1, 1, 1]> (input,",
        "[pad] wide = Pad(input, pads) [conv] x = Conv(wide,",
    )
    reference = graph(apart)
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    value = ir.Value(name="pads", const_value=ir.tensor(pads, name="pads"))
    reference.graph.register_initializer(value)
    pad = next(node for node in reference.graph if node.name == "pad")
    pad.replace_input_with(1, value)
    assert not any(certain for _, certain in differences(graph(), reference)["x"])
