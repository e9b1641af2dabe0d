"""Roundings that can be switched off, for each image of a batch, while a graph runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import numpy as np
import onnx_ir as ir

from deploykit.errors import GraphError
from deploykit.graph.values import new_constant

#: The second input of a graph with switches: bool (N, T).
SWITCHES = "exact"

Dimension: TypeAlias = int | ir.SymbolicDim


class Switches:
    """Gives a graph the input ``exact``: where ``exact[n, t]``, tensor t of image n is not rounded.

    Args:
        graph: The graph, which is changed.
        tensors: T tensors whose first dimension is the batch's.
    """

    def __init__(self, graph: ir.Graph, tensors: Sequence[ir.Value]) -> None:
        self._flags = dict(zip(tensors, _flags(graph, tensors), strict=True))

    def chosen(self, tensor: ir.Value, rounding: Sequence[ir.Node]) -> list[ir.Node]:
        """A tensor's rounding, with the choice behind it where there is a switch.

        Args:
            tensor: Any tensor.
            rounding: The nodes that round it, the last one's output rounded.
        """
        flag = self._flags.get(tensor)
        if flag is None:
            return [*rounding]
        rounded = rounding[-1].outputs[0]
        return [*rounding, named_node("Where", [flag, tensor, rounded], f"{tensor.name}/choice")]


def batch_dimension(graph: ir.Graph) -> Dimension:
    """The first dimension of a graph's input.

    Raises:
        GraphError: It has none.
    """
    (images,) = graph.inputs
    if not images.shape:
        raise GraphError(f"The graph's input {images.name} has no batch dimension.")
    return images.shape[0]


def put_behind(graph: ir.Graph, tensor: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Insert nodes behind a tensor; the last one's output gets its name and all who take it."""
    result = nodes[-1].outputs[0]
    for node, index in tensor.uses():
        if node not in nodes:
            node.replace_input_with(index, result)
    for index, output in enumerate(graph.outputs):
        if output is tensor:
            graph.outputs[index] = result
    tensor.name, result.name = f"{tensor.name}/exact", tensor.name
    result.type, result.shape = tensor.type, tensor.shape
    graph.insert_after(cast("ir.Node", tensor.producer()), nodes)  # only nodes' outputs are rounded


def named_node(
    operator: str,
    inputs: Sequence[ir.Value],
    name: str,
    attributes: Mapping[str, int] | None = None,
) -> ir.Node:
    """A node whose output is called as the node is."""
    node = ir.node(operator, inputs, attributes, name=name)
    node.outputs[0].name = name
    return node


def _flags(graph: ir.Graph, tensors: Sequence[ir.Value]) -> list[ir.Value]:
    """Add the input ``exact`` and cut it into columns, each of the rank of its tensor."""
    switches = ir.Value(
        name=SWITCHES,
        shape=ir.Shape([batch_dimension(graph), len(tensors)]),
        type=ir.TensorType(ir.DataType.BOOL),
    )
    graph.inputs.append(switches)
    if not tensors:
        return []
    split = ir.node(
        "Split",
        [switches],
        {"axis": 1, "num_outputs": len(tensors)},
        num_outputs=len(tensors),
        name=f"{SWITCHES}/Split",
    )
    for tensor, column in zip(tensors, split.outputs, strict=True):
        column.name = f"{tensor.name}/column"
    # (N, 1) => (N, 1, 1, 1) for a tensor of four dimensions
    ranks = [len(tensor.shape or ()) for tensor in tensors]
    shapes = {rank: _column_shape(graph, rank) for rank in set(ranks)}
    flags = [
        named_node("Reshape", [column, shapes[rank]], f"{tensor.name}/flag")
        for tensor, column, rank in zip(tensors, split.outputs, ranks, strict=True)
    ]
    graph.insert_before(graph[0], [split, *flags])
    return [flag.outputs[0] for flag in flags]


def _column_shape(graph: ir.Graph, rank: int) -> ir.Value:
    shape = np.array([-1] + [1] * (rank - 1), np.int64)
    return new_constant(graph, f"{SWITCHES}/shape_{rank}", shape)
