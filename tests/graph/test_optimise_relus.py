import pytest
from rewritten_graphs import check_rewrite, check_unchanged, network, node_named, operators

from deploykit.graph.optimise import drop_needless_relus

NO_NEGATIVE = {
    "Relu": "[a] y = Relu(input)",
    "Sigmoid": "[a] y = Sigmoid(input)",
    "Exp": "[s] small = Tanh(input) [a] y = Exp(small)",
    "Abs": "[a] y = Abs(input)",
    "MaxPool": "[a] x = Relu(input) [b] y = MaxPool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x)",
    "AveragePool": "[a] x = Relu(input) [b] y = AveragePool<kernel_shape=[1, 1]>(x)",
    "Add": "[a] x = Relu(input) [b] v = Sigmoid(input) [c] y = Add(x, v)",
    "Mul": "[a] x = Relu(input) [b] v = Sigmoid(input) [c] y = Mul(x, v)",
    "Reshape": "[a] x = Relu(input) [s] as_is = Shape(x) [b] y = Reshape(x, as_is)",
    "parts": """
        [a] x = Relu(input)
        [b] low = Slice(x, zero, two, one)
        [c] high = Slice(x, two, end, one)
        [d] y = Concat<axis=1>(high, low)
    """,
    "Split": "[a] x = Relu(input) [b] p, q = Split<axis=1, num_outputs=2>(x) "
    "[c] y = Concat<axis=1>(q, p)",
}
MAY_BE_NEGATIVE = {
    "input": "[a] y = Identity(input)",
    "Tanh": "[a] y = Tanh(input)",
    "Neg": "[a] x = Relu(input) [b] y = Neg(x)",
    "Sub": "[a] x = Relu(input) [b] v = Sigmoid(input) [c] y = Sub(x, v)",
    "Add": "[a] x = Relu(input) [b] y = Add(x, input)",
    "Concat": "[a] x = Relu(input) [b] y = Concat<axis=0>(x, input)",
    "Conv": "[a] x = Relu(input) [b] y = Conv(x, weight)",
    "factor": "[a] x = Relu(input) [b] y = Mul(x, factor)",
    "LeakyRelu": "[a] y = LeakyRelu(input)",
}
SAME = "float[N, 8, 5, 5] logits"


@pytest.mark.parametrize("kind", NO_NEGATIVE)
def test_drop_needless_relus_after_non_negative_values(kind):
    model = network(f"{NO_NEGATIVE[kind]} [act] z = Relu(y) [last] logits = Neg(z)", gives=SAME)
    count = len(model.graph)
    model = check_rewrite(model, drop_needless_relus, exact=True)
    assert len(model.graph) == count - 1
    assert node_named(model, "last").inputs[0].name == "y"


@pytest.mark.parametrize("kind", MAY_BE_NEGATIVE)
def test_drop_needless_relus_keeps_those_after_negative_values(kind):
    gives = SAME if kind != "Concat" else "float[M, 8, 5, 5] logits"
    model = network(
        f"{MAY_BE_NEGATIVE[kind]} [act] z = Relu(y) [last] logits = Neg(z)",
        gives=gives,
        weight=(8, 8, 1, 1),
        factor=(1,),
    )
    check_unchanged(model, drop_needless_relus)


def test_drop_needless_relus_in_a_chain():
    nodes = "[a] x = Relu(input) [b] y = Relu(x) [c] z = Relu(y) [last] logits = Neg(z)"
    model = check_rewrite(network(nodes, gives=SAME), drop_needless_relus, exact=True)
    assert operators(model) == {"Relu": 1, "Neg": 1}


def test_drop_needless_relus_keeps_the_output():
    check_unchanged(
        network("[a] y = Relu(input) [act] logits = Relu(y)", gives=SAME), drop_needless_relus
    )
