"""Pairs of a QuantizeLinear and a DequantizeLinear: what INT8 is made of in ONNX."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from deploykit.errors import GraphError
from deploykit.graph.passes import MODULE_PATH
from deploykit.graph.switches import named_node
from deploykit.graph.values import new_constant

#: Weights and symmetric tensors leave out -128, so that 0 is in the middle.
LARGEST = 127
#: The smallest scale: below it float32 loses its bits one by one, and some CPUs flush to 0.
SMALLEST = float(np.finfo(np.float32).tiny)
_LEVELS = 255


class Pairs:
    """Makes the pairs that round a graph's tensors.

    Args:
        graph: The graph, which gets their scales and zero points.
        ranges: By the name of each tensor its lowest and its highest value.
        symmetric: Whether tensors become int8 around 0; else uint8 with a zero point.
    """

    def __init__(
        self, graph: ir.Graph, ranges: Mapping[str, tuple[float, float]], *, symmetric: bool
    ) -> None:
        self._graph = graph
        self._ranges = ranges
        self._symmetric = symmetric

    def rounding(self, tensor: ir.Value) -> list[ir.Node]:
        """The pair that rounds a tensor, not in the graph yet.

        Raises:
            GraphError: The tensor's range is not known.
        """
        scale, zero = self._scale(tensor)
        inputs = [
            new_constant(self._graph, f"{tensor.name}/scale", scale),
            new_constant(self._graph, f"{tensor.name}/zero_point", zero),
        ]
        quantize = named_node("QuantizeLinear", [tensor, *inputs], f"{tensor.name}/quantized")
        integers = quantize.outputs[0]
        integers.type = ir.TensorType(ir.DataType.from_numpy(zero.dtype))
        integers.shape = tensor.shape
        pair = [quantize, _dequantized([integers, *inputs], f"{tensor.name}/dequantized", None)]
        pair[1].outputs[0].shape = tensor.shape
        if (producer := tensor.producer()) is not None:
            _copy_module(producer, *pair)
        return pair

    def _scale(self, tensor: ir.Value) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.generic]]:
        """A tensor's step, and the integer that stands for 0: scalars."""
        low, high = self._range(tensor)
        if self._symmetric:
            step = _step(max(-low, high), LARGEST)
            return np.array(step, np.float32), np.array(0, np.int8)
        step = _step(high - low, _LEVELS)
        return np.array(step, np.float32), np.array(round(-low / step), np.uint8)

    def _range(self, tensor: ir.Value) -> tuple[float, float]:
        """A tensor's range; what a MaxPool gives has its input's, so that integers pass through."""
        producer = tensor.producer()
        if producer is not None and producer.op_type == "MaxPool":
            source = _before_pair(producer.inputs[0])
            if source.name in self._ranges:
                return self._range(source)
        found = self._ranges.get(tensor.name or "")
        if found is None:
            raise GraphError(
                f"No range is known for the tensor {tensor.name}.",
                hint="The ranges are another graph's: calibrate this one.",
            )
        return found


def _step(width: float, levels: int) -> float:
    """The scale with which so many levels span a range; of a tensor of zeros any one does."""
    return max(width / levels, SMALLEST) if width > 0 else 1.0


def scale_of(rounded: ir.Value) -> np.float32:
    """The scale of what a DequantizeLinear gives."""
    node = rounded.producer()
    scale = None if node is None else node.inputs[1]
    if scale is None or scale.const_value is None:
        raise GraphError(f"{rounded.name} is not what a DequantizeLinear gives.")
    return np.float32(scale.const_value.numpy())


def constant_pair(
    node: ir.Node,
    name: str,
    integers: npt.NDArray[np.integer],
    scales: npt.NDArray[np.float32],
    axis: int,
) -> ir.Value:
    """Integers as a weight, and the DequantizeLinear through which a node takes them.

    Args:
        node: The node, in its graph.
        name: What the names of the weight and of the DequantizeLinear begin with.
        integers: The weight.
        scales: One for each index of the dimension ``axis``.
        axis: That dimension.
    """
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise GraphError(f"{node.name} is in no graph.")
    inputs = [
        new_constant(graph, f"{name}/integers", integers),
        new_constant(graph, f"{name}/scale", scales),
        new_constant(graph, f"{name}/zero_point", np.zeros(scales.shape, integers.dtype)),
    ]
    pair = _dequantized(inputs, f"{name}/dequantized", axis)
    pair.outputs[0].shape = ir.Shape(integers.shape)
    _copy_module(node, pair)
    graph.insert_before(node, pair)
    return pair.outputs[0]


def _dequantized(inputs: list[ir.Value], name: str, axis: int | None) -> ir.Node:
    node = named_node("DequantizeLinear", inputs, name, None if axis is None else {"axis": axis})
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node


def _before_pair(value: ir.Value | None) -> ir.Value:
    """The tensor that a pair's output was rounded from; any other value itself."""
    if value is None:
        raise GraphError("A MaxPool has no input.")
    producer = value.producer()
    if producer is None or producer.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
        return value
    return _before_pair(producer.inputs[0])


def _copy_module(source: ir.Node, *nodes: ir.Node) -> None:
    if MODULE_PATH in source.metadata_props:
        for node in nodes:
            node.metadata_props[MODULE_PATH] = source.metadata_props[MODULE_PATH]
