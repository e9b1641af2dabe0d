"""Graphs taken apart: every node computes from given tensors, so that it shows its own error."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from deploykit.graph.passes import MODULE_PATH
from deploykit.graph.values import working_copy

#: A change of precision inserts these around a node.
_CARRIERS = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear"})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class Step:
    """How a tensor is computed.

    Attributes:
        node: The name of what computes it.
        operator: ``Conv``; torch's name for it in a traced module.
        module: The path of its ``nn.Module``; empty where none is known.
        inputs: The names of the tensors that it takes.
    """

    node: str
    operator: str
    module: str
    inputs: tuple[str, ...]


def steps_of(model: ir.Model) -> dict[str, Step]:
    """By the name of each tensor of a graph how it is computed, in the graph's order."""
    return {
        value.name or "": Step(
            node=node.name or "",
            operator=node.op_type,
            module=node.metadata_props.get(MODULE_PATH, ""),
            inputs=tuple(each.name or "" for each in node.inputs if each is not None),
        )
        for node in model.graph
        for value in node.outputs
    }


def computing_node(piece: Sequence[ir.Node]) -> ir.Node:
    """The node of a piece that its tensor is called after: the last but for inserted Casts."""
    computing = [node for node in piece if node.op_type not in _CARRIERS]
    return (computing or piece)[-1]


@dataclass(frozen=True, eq=False)
class CutGraph:
    """A graph that was cut at some of its tensors.

    Attributes:
        model: What a tensor's producer gives is an output under the tensor's name; all who take
            the tensor take an input instead.
        inputs: By the name of each such input the tensor, as the graph's nodes give it.
    """

    model: ir.Model
    inputs: Mapping[str, ir.Value]

    def feeds(self, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """What to run the graph on, beside the inputs that the whole graph has.

        Args:
            tensors: At least those that the graph was cut at, by name, of any shape and float
                type; a value that the graph's type cannot hold becomes infinite.
        """
        return {
            name: tensors[value.name or ""].astype(
                (value.dtype or ir.DataType.FLOAT).numpy(), copy=False
            )
            for name, value in self.inputs.items()
        }


def cut_graph(model: ir.Model, tensors: Collection[str]) -> CutGraph:
    """Cut a graph at tensors.

    Args:
        model: The graph; it stays as it is.
        tensors: Names of float tensors that its nodes compute.

    Returns:
        The graph in pieces. The shapes that it was declared with are gone: it is fed with what
        another graph gives.

    Raises:
        GraphError: The type of a value cannot be inferred.
    """
    graph = (copy := working_copy(model)).graph
    inputs: dict[str, ir.Value] = {}
    for value in [value for node in graph for value in node.outputs if value.name in tensors]:
        if uses := value.uses():
            name = f"{value.name}/reference"
            piece = ir.Value(name=name, type=value.type)
            graph.inputs.append(piece)
            inputs[name] = value
            for node, index in uses:
                node.replace_input_with(index, piece)
        if not value.is_graph_output():
            graph.outputs.append(value)
    for node in graph:
        for value in node.outputs:
            value.shape = None
    return CutGraph(copy, inputs)


def float_tensors(model: ir.Model) -> tuple[str, ...]:
    """The names of the float tensors that depend on the graph's input, in the graph's order.

    Raises:
        GraphError: The type of a value cannot be inferred.
    """
    graph = working_copy(model).graph
    dependent = set(graph.inputs)
    names = []
    for node in graph:
        if dependent.isdisjoint(node.inputs):
            continue
        dependent.update(node.outputs)
        names += [value.name or "" for value in node.outputs if value.dtype in _FLOATS]
    return tuple(names)


def pieces(model: ir.Model, tensors: Collection[str]) -> dict[str, tuple[ir.Node, ...]]:
    """The nodes of a graph that lie before each of some tensors and behind all others.

    Args:
        model: The graph.
        tensors: Names of tensors that its nodes compute.

    Returns:
        By the name of each tensor, in the order of the graph, the nodes of its piece in that
        order, its producer last. A node may be in several.
    """
    position = {node: index for index, node in enumerate(model.graph)}
    found: dict[str, tuple[ir.Node, ...]] = {}
    for node in model.graph:
        for output in node.outputs:
            if output.name is not None and output.name in tensors:
                piece = _piece(output, tensors)
                found[output.name] = tuple(sorted(piece, key=position.__getitem__))
    return found


def _piece(tensor: ir.Value, tensors: Collection[str]) -> set[ir.Node]:
    """A tensor's producer and what lies between it and the other tensors."""
    piece: set[ir.Node] = set()
    pending = [tensor.producer()]
    while pending:
        node = pending.pop()
        if node is None or node in piece:
            continue
        piece.add(node)
        pending += [
            value.producer()
            for value in node.inputs
            if value is not None and value.name not in tensors
        ]
    return piece
