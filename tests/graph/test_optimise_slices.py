import onnx_ir as ir
import pytest
from rewritten_graphs import check_rewrite, check_unchanged, names, network, node_named, operators

from deploykit.graph.optimise import forward_slices_of_concats

JOIN = """
    [a] a = Relu(input)
    [b] b = Neg(input)
    [c] c = Tanh(input)
    [join] x = Concat<axis=1>(a, b, c)
"""
EIGHT, SIXTEEN = "float[N, 8, 5, 5] logits", "float[N, 16, 5, 5] logits"


def test_forward_slices_of_one_operand():
    model = network(
        JOIN + "[cut] part = Slice(x, eight, sixteen, one) [last] logits = Abs(part)", gives=EIGHT
    )
    model = check_rewrite(model, forward_slices_of_concats, exact=True)
    assert operators(model) == {"Neg": 1, "Abs": 1}
    assert names(model) == {"b", "logits"}


def test_forward_slices_of_several_operands():
    model = network(
        JOIN + "[cut] part = Slice(x, eight, end, one) [last] logits = Abs(part)", gives=SIXTEEN
    )
    model = check_rewrite(model, forward_slices_of_concats, exact=True)
    assert operators(model) == {"Neg": 1, "Tanh": 1, "Concat": 1, "Abs": 1}
    join = node_named(model, "cut/part")
    assert join.outputs[0].name == "part"
    assert str(join.outputs[0].shape) == "[N,16,5,5]"
    assert join.metadata_props["module"] == "path.cut"


def test_forward_slices_of_a_split():
    model = network(
        JOIN + "[cut] p, q, r = Split<axis=1, num_outputs=3>(x) [s] s = Sub(p, q) "
        "[last] logits = Add(s, r)",
        gives=EIGHT,
    )  # fmt: skip
    model = check_rewrite(model, forward_slices_of_concats, exact=True)
    assert operators(model) == {"Relu": 1, "Neg": 1, "Tanh": 1, "Sub": 1, "Add": 1}


def test_forward_slices_of_rows():
    model = network(
        JOIN.replace("axis=1", "axis=-2")
        + "[cut] part = Slice(x, five, end, two) [last] logits = Abs(part)",
        gives="float[N, 8, 10, 5] logits",
    )
    model = check_rewrite(model, forward_slices_of_concats, exact=True)
    assert operators(model) == {"Neg": 1, "Tanh": 1, "Concat": 1, "Abs": 1}


def test_forward_slices_of_slices():
    model = network(
        JOIN + """
        [first] p = Slice(x, eight, end, one)
        [inner] y = Concat<axis=1>(input, p)
        [second] q = Slice(y, eight, end, one)
        [third] r = Slice(q, eight, end, one)
        [last] logits = Abs(r)
        """,
        gives=EIGHT,
    )  # fmt: skip
    model = check_rewrite(model, forward_slices_of_concats, exact=True)
    assert operators(model) == {"Tanh": 1, "Abs": 1}


def test_forward_slices_keeps_a_used_concat():
    model = network(
        JOIN + """
        [cut] part = Slice(x, zero, eight, one)
        [again] again = Concat<axis=1>(part, part, part)
        [sum] logits = Add(x, again)
        """
    )  # fmt: skip
    model = check_rewrite(model, forward_slices_of_concats, exact=True)
    assert operators(model) == {"Relu": 1, "Neg": 1, "Tanh": 1, "Concat": 2, "Add": 1}
    assert [value.name for value in node_named(model, "again").inputs] == ["a", "a", "a"]


@pytest.mark.parametrize(
    ("cut", "gives"),
    [
        ("[cut] p = Slice(x, zero, twelve, one)", "float[N, 12, 5, 5] logits"),
        ("[cut] p = Slice(x, twelve, sixteen, one)", "float[N, 4, 5, 5] logits"),
        ("[cut] p = Slice(x, eight, eight, one)", "float[N, 0, 5, 5] logits"),
        ("[cut] p = Slice(x, zero, eight, one, two)", "float[N, 4, 5, 5] logits"),
        ("[cut] p = Slice(x, sixteen, eight, one, backwards)", EIGHT),
        ("[cut] p = Slice(x, zero, two, two)", "float[N, 24, 2, 5] logits"),
        ("[cut] p = Slice(x, zero, eight)", "float[M, 24, 5, 5] logits"),
        ("[n] n = Size(a) [to] to = Unsqueeze(n, zero) [cut] p = Slice(x, zero, to, one)",
         "float[N, C, 5, 5] logits"),
    ],
    ids=["to_a_middle", "from_a_middle", "empty", "gaps", "reversed", "rows", "images", "run"],
)  # fmt: skip
def test_forward_slices_leaves_partial_operands(cut, gives):
    check_unchanged(
        network(f"{JOIN} {cut} [last] logits = Abs(p)", gives=gives), forward_slices_of_concats
    )


def test_forward_slices_leaves_a_slice_without_axes():
    model = network(
        "[join] x = Concat<axis=0>(u, v) [cut] p = Slice(x, zeros, corner) "
        "[mean] mean = ReduceMean<keepdims=1>(p) [last] logits = Add(input, mean)",
        gives=EIGHT,
        u=(8, 5, 5),
        v=(8, 5, 5),
    )
    check_unchanged(model, forward_slices_of_concats)


def test_forward_slices_leaves_a_slice_as_output():
    check_unchanged(
        network(JOIN + "[cut] logits = Slice(x, zero, eight, one)", gives=EIGHT),
        forward_slices_of_concats,
    )


def test_forward_slices_leaves_operands_of_unknown_size():
    model = network(
        JOIN + "[cut] p = Slice(x, zero, eight, one) [last] logits = Abs(p)", gives=EIGHT
    )
    node_named(model, "c").outputs[0].shape = ir.Shape(["N", "C", 5, 5])
    check_unchanged(model, forward_slices_of_concats)


def test_forward_slices_leaves_other_domains():
    model = network(
        JOIN + "[cut] p = Slice(x, zero, eight, one) [last] logits = Abs(p)", gives=EIGHT
    )
    node_named(model, "cut").domain = "some.runtime"
    check_unchanged(model, forward_slices_of_concats)
