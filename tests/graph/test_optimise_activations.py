import numpy as np
import pytest
from rewritten_graphs import check_rewrite, check_unchanged, names, network, node_named, operators

from deploykit.graph.optimise import move_activations_before_concats

CONVS = "[a] a = Conv(input, w) [b] b = Add(input, input)"
BOUNDS = "[from] low = Constant<value_float=-0.5>() [to] high = Constant<value_float=0.5>()"
WEIGHTS = {"w": (16, 8, 1, 1)}
ACTIVATIONS = [
    "Relu(joined)", "Sigmoid(joined)", "Tanh(joined)", "LeakyRelu<alpha=0.2>(joined)",
    "Elu<alpha=0.7>(joined)", "HardSwish(joined)", "HardSigmoid<alpha=0.3>(joined)",
    "Clip(joined, low, high)",
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_move_activations_before_a_concat(activation):
    nodes = f"{CONVS} [join] joined = Concat<axis=1>(a, b) [act] logits = {activation}"
    model = network(BOUNDS + nodes, **WEIGHTS) if "low" in activation else network(nodes, **WEIGHTS)
    model = check_rewrite(model, move_activations_before_concats, exact=True)
    assert [node.op_type for node in model.graph][-1] == "Concat"
    assert operators(model)[node_named(model, "act/a").op_type] == 2


def test_move_activations_keeps_names_and_module():
    nodes = f"{CONVS} [join] joined = Concat<axis=1>(a, b) [act] y = Relu(joined)"
    model = network(f"{nodes} [last] logits = Neg(y)", **WEIGHTS)
    model = check_rewrite(model, move_activations_before_concats, exact=True)
    assert names(model) == {"a", "b", "y/a", "y/b", "y", "logits"}
    moved = node_named(model, "act/a")
    assert moved.metadata_props["module"] == "path.act"
    assert node_named(model, "join").outputs[0].name == "y"
    assert str(moved.outputs[0].shape) == "[N,16,5,5]"


def test_move_activations_through_nested_concats():
    model = network(
        f"""{CONVS}
        [inner] ab = Concat<axis=1>(a, b)
        [outer] joined = Concat<axis=-3>(ab, b)
        [act] logits = Relu(joined)
        """,
        gives="float[N, 32, 5, 5] logits", **WEIGHTS,
    )  # fmt: skip
    model = check_rewrite(model, move_activations_before_concats, exact=True)
    # b is joined twice and activated once.
    assert operators(model) == {"Conv": 1, "Add": 1, "Relu": 2, "Concat": 2}


def test_move_activations_of_joined_rows():
    model = network(
        "[join] joined = Concat<axis=2>(input, input) [act] logits = Relu(joined)",
        gives="float[N, 8, 10, 5] logits",
    )
    model = check_rewrite(model, move_activations_before_concats, exact=True)
    assert operators(model) == {"Relu": 1, "Concat": 1}


@pytest.mark.parametrize(
    ("nodes", "gives"),
    [
        ("[act] y = Relu(joined) [sum] logits = Add(y, joined)", ""),
        ("[act] logits = Relu(joined)", ", float[N, 24, 5, 5] joined"),
        ("[act] logits = Softmax<axis=1>(joined)", ""),
        ("[act] logits = PRelu(joined, slope)", ""),
        ("[pool] y = MaxPool<kernel_shape=[1, 1]>(joined) [act] logits = Relu(y)", ""),
    ],
    ids=["others_take_it", "output", "softmax", "slope_by_channel", "not_next"],
)
def test_move_activations_leaves_other_nodes(nodes, gives):
    weights = {"slope": (24, 1, 1)} if "slope" in nodes else {}
    model = network(
        f"{CONVS} [join] joined = Concat<axis=1>(a, b) {nodes}",
        gives=f"float[N, 24, 5, 5] logits{gives}",
        **WEIGHTS,
        **weights,
    )
    check_unchanged(model, move_activations_before_concats)


def test_move_activations_with_computed_bounds():
    model = network(
        f"""{CONVS}
        [join] joined = Concat<axis=1>(a, b)
        [bound] low = ReduceMin<keepdims=0>(input)
        [act] logits = Clip(joined, low)
        """,
        **WEIGHTS,
    )
    model = check_rewrite(model, move_activations_before_concats, exact=True)
    order = [node.name for node in model.graph]
    assert order.index("bound") < order.index("act/a")
    assert np.all([node_named(model, f"act/{part}").inputs[1].name == "low" for part in "ab"])
