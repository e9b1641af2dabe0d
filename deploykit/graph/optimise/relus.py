"""The rule that drops a Relu of what is not negative anyway."""

from __future__ import annotations

from collections.abc import Container

import onnx_ir as ir

#: What gives no negative number, whatever it takes.
_NEVER_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus"})
#: What gives no negative number if it takes none.
_ALL_INPUTS_COUNT = frozenset({"Add", "Concat", "Max", "Mul"})
#: What gives no negative number if its first input has none; others are shapes and indices.
_FIRST_INPUT_COUNTS = frozenset(
    {
        "AveragePool", "Dropout", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool",
        "Identity", "MaxPool", "ReduceMax", "ReduceMean", "Reshape", "Slice", "Split", "Squeeze",
        "Transpose", "Unsqueeze",
    }
)  # fmt: skip


def drop_needless_relus(model: ir.Model) -> tuple[ir.Model, bool]:
    """Drop a Relu whose input cannot be negative, because of another Relu, or the like, before it.

    What took its output takes its input.
    """
    changed = False
    positive: set[ir.Value] = set()
    for node in model.graph:
        if _gives_no_negative(node, positive):
            positive.update(node.outputs)
        if node.op_type != "Relu" or node.domain:
            continue
        (source,), (output,) = node.inputs, node.outputs
        if source is not None and source in positive and not output.is_graph_output():
            output.replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
            changed = True
    return model, changed


def _gives_no_negative(node: ir.Node, positive: Container[ir.Value | None]) -> bool:
    if node.domain:
        return False
    if node.op_type in _FIRST_INPUT_COUNTS:
        return node.inputs[0] in positive
    if node.op_type in _ALL_INPUTS_COUNT:
        return all(value in positive for value in node.inputs)
    return node.op_type in _NEVER_NEGATIVE
