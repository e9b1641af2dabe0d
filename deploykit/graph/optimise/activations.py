"""The rule that moves an activation to where a runtime fuses it."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

#: What runtimes compute along with the Conv or the Add before it, from each number alone.
_ACTIVATIONS = frozenset(
    {"Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"}
)


def move_activations_before_concats(model: ir.Model) -> tuple[ir.Model, bool]:
    """Apply an activation to what a Concat joins, not to the whole.

    The activated whole keeps its name. Each new node and its output are called after the activation
    and what it is applied to.
    """
    changed = False
    # From the end: what moves before one Concat may find another one there.
    for node in reversed(model.graph):
        if node.op_type in _ACTIVATIONS and not node.domain and (concat := _concat_before(node)):
            _move(model.graph, node, concat)
            changed = True
    if changed:
        common.CommonSubexpressionEliminationPass()(model)
        common.TopologicalSortPass()(model)
    return model, changed


def _concat_before(activation: ir.Node) -> ir.Node | None:
    """The Concat whose output goes nowhere but into an activation."""
    joined = activation.inputs[0]
    concat = joined.producer() if joined is not None else None
    if joined is None or concat is None or concat.op_type != "Concat" or concat.domain:
        return None
    return None if joined.is_graph_output() or len(joined.uses()) > 1 else concat


def _move(graph: ir.Graph, activation: ir.Node, concat: ir.Node) -> None:
    (joined,), (activated,) = concat.outputs, activation.outputs
    for index, operand in enumerate(concat.inputs):
        if operand is None:
            continue
        moved = ir.node(
            activation.op_type,
            [operand, *activation.inputs[1:]],
            activation.attributes,
            name=f"{activation.name}/{operand.name}",
            metadata_props=dict(activation.metadata_props),
        )
        (output,) = moved.outputs
        output.name = f"{activated.name}/{operand.name}"
        output.type, output.shape = operand.type, operand.shape
        graph.insert_before(concat, moved)
        concat.replace_input_with(index, output)
    activated.replace_all_uses_with(joined, replace_graph_outputs=True)
    graph.remove(activation, safe=True)
    joined.name = activated.name
