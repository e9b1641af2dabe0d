"""What the passes between precisions ask of a graph: types, what computes, what rounding loses."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.errors import GraphError
from deploykit.graph.preprocessing import SCOPE
from deploykit.specs.precision import Precision

_FP16 = np.finfo(np.float16)

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
    """Refuse a graph whose nodes cannot be told apart by their names.

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


def new_constant(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """Give a graph a weight."""
    constant = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(constant)
    return constant


def fp16_weight(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Round a weight to FP16: nothing finite becomes infinite, and nothing becomes zero.

    As ONNX Runtime's converter does it: what is out of range becomes the nearest FP16 number with
    the same sign, so that an epsilon still keeps a division from zero.
    """
    magnitude = np.abs(weight)
    with np.errstate(over="ignore"):
        rounded = weight.astype(np.float16)
    lost = (magnitude < _FP16.smallest_subnormal) & (weight != 0)
    rounded[lost] = np.copysign(_FP16.smallest_subnormal, weight[lost])
    beyond = (magnitude > _FP16.max) & np.isfinite(weight)
    rounded[beyond] = np.copysign(_FP16.max, weight[beyond])
    return rounded


def fp16_weight_loss(weight: npt.NDArray[np.float32]) -> float:
    """The L2 norm of a weight's rounding error relative to the weight's; 0 for a weight of zeros.

    Infinite where a value is beyond FP16's range.
    """
    if not np.abs(weight).max(initial=0.0) <= _FP16.max:
        return float("inf")
    error = np.linalg.norm(weight.astype(np.float64) - fp16_weight(weight))
    return float(error / np.linalg.norm(weight.astype(np.float64))) if error else 0.0
