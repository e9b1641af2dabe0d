"""What the passes between precisions ask of a graph and put into it: types, constants, switches."""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.errors import GraphError
from deploykit.graph.passes import SCOPE
from deploykit.specs.model import Precision

#: Operators whose outputs are values of their inputs, their negatives or constants: what is in FP16
#: before them is exactly in FP16 behind them.
PASS_THROUGH = frozenset(
    {
        "Abs", "Clip", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather",
        "GatherElements", "GatherND", "GlobalMaxPool", "Identity", "Max", "MaxPool", "Min", "Neg",
        "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Slice", "SpaceToDepth", "Split",
        "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip

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


def computes(node: ir.Node) -> bool:
    """Whether a node makes new values, so that FP16 rounds its outputs."""
    return node.op_type not in PASS_THROUGH and not in_preprocessing(node)


def in_preprocessing(node: ir.Node) -> bool:
    """Whether a node belongs to the normalisation, which is in FP32 at every precision."""
    # By its name: a network may have a module called "preprocessing" too.
    return (node.name or "").startswith(f"{SCOPE}/")


def all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """The inputs, the initializers and what the nodes give, in the order of the graph."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def working_copy(model: ir.Model) -> ir.Model:
    """A copy, which shares the weights, with a type for every value and constants as initializers.

    Shapes are inferred only where a value is without: on a large network that takes a second.

    Raises:
        GraphError: The type of a value cannot be inferred.
    """
    copy = model.clone()
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    if any(value.dtype is None or value.shape is None for value in all_values(copy.graph)):
        common.ShapeInferencePass()(copy)
    for value in all_values(copy.graph):
        if value.dtype is None:
            raise GraphError(
                f"The graph does not tell the type of {value.name}, and it cannot be inferred.",
                hint="An operator that ONNX does not know stays in FP32: --precision fp32",
            )
    return copy


def check_node_names(model: ir.Model, keep: Collection[str], precision: Precision) -> None:
    """Check that the nodes of a graph can be told apart by their names.

    Args:
        model: An FP32 deploy graph.
        keep: The names of nodes that are to stay in FP32.
        precision: What it is to be converted to.

    Raises:
        GraphError: It has a subgraph, a node without a name of its own, or no node of such a name.
    """
    if any(node.graph is not model.graph for node in model.graph.all_nodes()):
        raise GraphError(
            f"The graph has a subgraph (If, Loop or Scan), which cannot be converted to "
            f"{precision.upper()}.",
            hint="Keep to FP32: --precision fp32",
        )
    names: set[str | None] = {None, ""}
    for node in model.graph:
        if node.name in names:
            raise GraphError(
                f"The {node.op_type} node {node.name!r} has no name of its own.",
                hint="Export the bundle again.",
            )
        names.add(node.name)
    unknown = sorted(set(keep).difference(names))
    if unknown:
        raise GraphError(
            f"The graph has no nodes {', '.join(unknown)} to keep in FP32.",
            hint="Name them as the FP32 graph does.",
        )


def constant_of(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """What a weight holds; None for what is computed, or is the graph's input."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def integers(node: ir.Node, index: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """A node's input that is a constant; nothing where a run may give another."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return default
    constant = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return () if constant is None else tuple(int(number) for number in constant.numpy().ravel())


def scalar(node: ir.Node, index: int, default: float) -> float | None:
    """A node's input that is one constant number; None where a run may give another.

    Args:
        node: The node.
        index: Which of its inputs.
        default: What the operator takes where the input is left out.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return default
    constant = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return None if constant is None or constant.size != 1 else float(constant.numpy().item())


def never_negative(graph: ir.Graph) -> set[ir.Value]:
    """The values of a graph that cannot be negative, whatever its input."""
    found: set[ir.Value] = set()
    for node in graph:
        if _gives_no_negative(node, found):
            found.update(node.outputs)
    return found


def _gives_no_negative(node: ir.Node, positive: Container[ir.Value | None]) -> bool:
    if node.domain:
        return False
    if node.op_type == "Clip":
        lowest = scalar(node, 1, -math.inf)
        return lowest is not None and lowest >= 0
    if node.op_type == "Pad":
        value = scalar(node, 2, 0.0)
        return node.inputs[0] in positive and value is not None and value >= 0
    if node.op_type in _FIRST_INPUT_COUNTS:
        return node.inputs[0] in positive
    if node.op_type in _ALL_INPUTS_COUNT:
        return all(value in positive for value in node.inputs)
    return node.op_type in _NEVER_NEGATIVE


def new_constant(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """Give a graph a weight."""
    constant = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(constant)
    return constant


#: The second input of a graph with switches: bool (N, T).
SWITCHES = "exact"

Dimension: TypeAlias = int | ir.SymbolicDim


class Switches:
    """Gives a graph the input ``exact``: where ``exact[n, t]``, tensor t of image n is not rounded.

    Args:
        graph: The graph, which is changed.
        tensors: T tensors whose first dimension is the batch's; of others the graph takes one
            image at a time.
    """

    def __init__(self, graph: ir.Graph, tensors: Sequence[ir.Value]) -> None:
        self._flags: dict[ir.Value, ir.Value] = {}
        switches = ir.Value(
            name=SWITCHES,
            shape=ir.Shape([batch_dimension(graph), len(tensors)]),
            type=ir.TensorType(ir.DataType.BOOL),
        )
        graph.inputs.append(switches)
        if not tensors:
            return
        split = ir.node(
            "Split",
            [switches],
            {"axis": 1, "num_outputs": len(tensors)},
            num_outputs=len(tensors),
            name=f"{SWITCHES}/Split",
        )
        # (N, 1) => (N, 1, 1, 1) for a tensor of four dimensions
        shapes = {
            rank: new_constant(
                graph, f"{SWITCHES}/shape_{rank}", np.array([-1] + [1] * (rank - 1), np.int64)
            )
            for rank in {len(tensor.shape or ()) for tensor in tensors}
        }
        flags = []
        for tensor, column in zip(tensors, split.outputs, strict=True):
            column.name = f"{tensor.name}/column"
            shape = shapes[len(tensor.shape or ())]
            flags.append(named_node("Reshape", [column, shape], f"{tensor.name}/flag"))
            self._flags[tensor] = flags[-1].outputs[0]
        graph.insert_before(graph[0], [split, *flags])

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
    insert_behind(graph, tensor, nodes)


def insert_behind(graph: ir.Graph, tensor: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Insert nodes where a tensor is there: behind what computes it, or first of all."""
    producer = tensor.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)


def named_node(
    operator: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    attributes: Mapping[str, Any] | None = None,
    *,
    output: str | None = None,
    like: ir.Value | None = None,
    dtype: ir.DataType | None = None,
    of: ir.Node | None = None,
) -> ir.Node:
    """Make a node of one output.

    Args:
        operator: ONNX's own.
        inputs: What it takes.
        name: The node's.
        attributes: Its attributes.
        output: Its output's name; None for the node's.
        like: What has its output's shape and type; None where they are left open.
        dtype: The type, where it is another.
        of: The node whose metadata it gets: the module that it belongs to.
    """
    kind = ir.TensorType(dtype) if dtype is not None else like.type if like is not None else None
    made = ir.val(output or name, type=kind, shape=None if like is None else like.shape)
    metadata = None if of is None else dict(of.metadata_props)
    return ir.node(operator, inputs, attributes, outputs=[made], name=name, metadata_props=metadata)
