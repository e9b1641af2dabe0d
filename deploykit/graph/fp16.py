"""The pass from an FP32 deploy graph to FP16, and what a search for its FP32 nodes asks.

ONNX Runtime's converter says which types each operator takes in FP16. Where a value changes its
type is decided here, because the converter rounds between two FP32 neighbours too, and gives an
FP32 node the rounded weight where it shares one with an FP16 node.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from deploykit.errors import GraphError
from deploykit.graph.passes import Pass
from deploykit.graph.values import (
    PASS_THROUGH,
    all_values,
    check_node_names,
    computes,
    in_preprocessing,
    insert_behind,
    named_node,
    working_copy,
)

_FP32, _FP16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
_RANGE = np.finfo(np.float16)


def convert_to_fp16(keep: Collection[str] = frozenset()) -> Pass:
    """Make the pass from an FP32 deploy graph to one that computes in FP16.

    Inputs, outputs and the preprocessing stay as they are, and every node keeps its name. A value
    changes its type in one Cast, and only for those who take it in the other type: between two FP32
    nodes nothing is rounded.

    The pass leaves the model that it is given as it is, for other conversions; the FP32 weights are
    shared with the one that comes out. A graph with FP16 in it comes back unchanged.

    Args:
        keep: The names of nodes that stay in FP32, weights included.

    Raises:
        GraphError: By the pass: the graph has no node of such a name, nodes without a name of their
            own, a subgraph, or a value whose type cannot be inferred.
    """

    def convert(model: ir.Model) -> tuple[ir.Model, bool]:
        if any(value.dtype == _FP16 for value in all_values(model.graph)):
            return model, False
        check_node_names(model, keep, "fp16")
        converted = working_copy(model)
        _retype(converted.graph, _converters_graph(converted, keep))
        return converted, True

    return convert


def fp32_nodes(model: ir.Model) -> tuple[ir.Node, ...]:
    """The nodes of a converted graph that compute in FP32, but for Casts and the preprocessing.

    They are those that were kept, and those whose operator the converter does not convert.
    """
    return tuple(
        node
        for node in model.graph
        if node.op_type != "Cast"
        and not in_preprocessing(node)
        and any(
            value is not None and value.dtype == _FP32
            for value in (*node.inputs[:1], *node.outputs)
        )
    )


def guardians(model: ir.Model) -> dict[str, tuple[str, ...]]:
    """For each tensor of an FP32 deploy graph the nodes that keep it from being rounded to FP16.

    A single FP32 node between FP16 ones still hands on a rounded tensor, so a search protects
    tensors, not nodes.

    Returns:
        By the name of each tensor that a node computes: its producer first, then all that compute
        with it and what passes it on to them, in the order of the graph.
    """
    graph = working_copy(model).graph
    position = {node: index for index, node in enumerate(graph)}
    return {
        tensor.name or "": (
            node.name or "",
            *(each.name or "" for each in sorted(_readers(tensor), key=position.__getitem__)),
        )
        for node in graph
        if computes(node)
        for tensor in node.outputs
        if tensor.dtype == _FP32
    }


def convertible_nodes(model: ir.Model) -> frozenset[str]:
    """The names of the nodes of an FP32 deploy graph that could be in FP16."""
    return frozenset(
        node.name or ""
        for node in working_copy(model).graph
        if not in_preprocessing(node) and any(value.dtype == _FP32 for value in node.outputs)
    )


def weight_losses(model: ir.Model) -> dict[str, float]:
    """What the weights of an FP32 deploy graph lose by being rounded to FP16.

    Returns:
        For each node with weights, but for the preprocessing: the L2 norm of the rounding error
        relative to the weight's, of the weight that loses most; infinite where a value is beyond
        FP16's range.
    """
    losses = {
        value: _loss(value.const_value.numpy())
        for value in model.graph.initializers.values()
        if value.dtype == _FP32 and value.const_value is not None
    }
    return {
        node.name or "": max(found)
        for node in model.graph
        if not in_preprocessing(node)
        and (found := [losses[value] for value in node.inputs if value in losses])
    }


def _readers(tensor: ir.Value) -> set[ir.Node]:
    """All that compute with a tensor, and what passes it on to them."""
    readers: set[ir.Node] = set()
    tensors = [tensor]
    while tensors:
        found = set(tensors.pop().consumers()) - readers
        readers |= found
        tensors += [out for node in found if node.op_type in PASS_THROUGH for out in node.outputs]
    return readers


def _converters_graph(model: ir.Model, keep: Collection[str]) -> onnx.GraphProto:
    """What ONNX Runtime's converter makes of the graph without its weights, for the types in it.

    It need not be a valid graph: two FP32 nodes that share an FP16 tensor each get a Cast of the
    same name. Its rounding of the weights takes two seconds for a large network, and a search
    converts many times.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    skeleton = model.clone()
    for weight in skeleton.graph.initializers.values():
        if weight.dtype == _FP32:
            weight.const_value = ir.tensor(np.zeros(0, np.float32))
    fp32 = [node.name for node in skeleton.graph if in_preprocessing(node)]
    proto: onnx.ModelProto = convert_float_to_float16(
        ir.to_proto(skeleton),
        keep_io_types=True,
        disable_shape_infer=True,
        node_block_list=[*fp32, *keep],
    )
    return proto.graph


def _retype(graph: ir.Graph, like: onnx.GraphProto) -> None:
    """Give each node the types that its namesake in another graph takes and gives."""
    namesakes = {node.name: node for node in like.node}
    types = {info.name: info.type.tensor_type.elem_type for info in like.value_info}
    types |= {weight.name: weight.data_type for weight in like.initializer}
    values = [value for value in all_values(graph) if value.dtype == _FP32]
    for node in graph:
        namesake = namesakes[node.name or ""]
        # What a Cast casts to is an attribute.
        node.attributes.update({each.name: ir.from_proto(each) for each in namesake.attribute})
        for value, name in zip(node.outputs, namesake.output, strict=True):
            if value.dtype == _FP32:
                value.type = ir.TensorType(ir.DataType(types[name]))
    for value in values:
        uses = [
            (node, index)
            for node, index in value.uses()
            if types[namesakes[node.name or ""].input[index]] != value.dtype
        ]
        handed_out = value.is_graph_output() and value.dtype == _FP16
        if not uses and not handed_out:
            continue
        if value.is_initializer():
            other = _weight_in_fp16(graph, value, shared=len(uses) < len(value.uses()))
        else:
            other = _cast(graph, value, [node for node, _ in uses])
        for node, index in uses:
            node.replace_input_with(index, other)
        if handed_out:
            _hand_out(graph, value, other)


def _weight_in_fp16(graph: ir.Graph, weight: ir.Value, *, shared: bool) -> ir.Value:
    """Round a weight; one that FP32 nodes take too stays, and gets a rounded twin."""
    if weight.const_value is None:
        raise GraphError(f"The graph does not tell the values of its weight {weight.name}.")
    rounded = ir.Value(name=f"{weight.name}/fp16", shape=weight.shape) if shared else weight
    rounded.const_value = ir.tensor(_rounded(weight.const_value.numpy()))
    rounded.type = ir.TensorType(_FP16)
    if shared:
        graph.register_initializer(rounded)
    return rounded


def _cast(graph: ir.Graph, value: ir.Value, readers: Sequence[ir.Node]) -> ir.Value:
    """Cast a value to the other type where it comes from; the Cast is of the FP32 side's module."""
    dtype, suffix = (_FP16, "fp16") if value.dtype == _FP32 else (_FP32, "fp32")
    producer = value.producer()
    served = next(iter(readers), producer) if dtype == _FP32 else producer or readers[0]
    name = f"{value.name}/{suffix}"
    cast = named_node("Cast", [value], name, {"to": dtype}, like=value, dtype=dtype, of=served)
    insert_behind(graph, value, [cast])
    return cast.outputs[0]


def _hand_out(graph: ir.Graph, value: ir.Value, cast: ir.Value) -> None:
    """Put an FP32 Cast, under the name that it is known by, in place of a graph's FP16 output."""
    value.name, cast.name = f"{value.name}/fp16", value.name
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = cast


def _rounded(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Round a weight to FP16: nothing finite becomes infinite, and nothing becomes zero.

    As ONNX Runtime's converter does it: what is out of range becomes the nearest FP16 number with
    the same sign, so that an epsilon still keeps a division from zero.
    """
    magnitude = np.abs(weight)
    with np.errstate(over="ignore"):
        rounded = weight.astype(np.float16)
    lost = (magnitude < _RANGE.smallest_subnormal) & (weight != 0)
    rounded[lost] = np.copysign(_RANGE.smallest_subnormal, weight[lost])
    beyond = (magnitude > _RANGE.max) & np.isfinite(weight)
    rounded[beyond] = np.copysign(_RANGE.max, weight[beyond])
    return rounded


def _loss(weight: npt.NDArray[np.float32]) -> float:
    """The L2 norm of a weight's rounding error relative to the weight's; 0 for a weight of zeros.

    Infinite where a value is beyond FP16's range.
    """
    if not np.abs(weight).max(initial=0.0) <= _RANGE.max:
        return float("inf")
    error = np.linalg.norm(weight.astype(np.float64) - _rounded(weight))
    return float(error / np.linalg.norm(weight.astype(np.float64))) if error else 0.0
