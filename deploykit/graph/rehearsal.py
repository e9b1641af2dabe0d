"""FP16 rehearsed in FP32: an FP16 deploy graph as one that any CPU runs at the speed of FP32.

Kernels compute in FP32, and every tensor that the FP16 graph holds in FP16 is rounded to it on its
way, beyond 65504 to infinity. That is what tensor cores usually do: they multiply FP16 operands and
add up in FP32. An engine may add up in FP16 too, or fuse nodes and skip a rounding: a rehearsal is
a model of the hardware, not a bound on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import numpy as np
import onnx_ir as ir

from deploykit.errors import GraphError
from deploykit.graph.values import PASS_THROUGH, all_values, computes, working_copy

#: The second input of a switchable rehearsal.
SWITCHES = "exact"

_Dimension: TypeAlias = int | ir.SymbolicDim
_FP32, _FP16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


def rehearsal_of(model: ir.Model) -> ir.Model:
    """Make the rehearsal of an FP16 deploy graph.

    Args:
        model: The deploy graph, of which some nodes may be in FP32; it stays as it is.

    Returns:
        A graph with the same inputs and outputs. The nodes and tensors keep their names, and a
        tensor has the value that it has in FP16.

    Raises:
        GraphError: The type of a value cannot be inferred.
    """
    rehearsal, held = _in_fp32(model)
    for tensor in held:
        _put_behind(rehearsal.graph, tensor, _rounding(tensor))
    return rehearsal


def switchable_rehearsal(model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """Make a rehearsal in which each rounding can be switched off, for each image of a batch.

    So the cost of every rounding is measured in a few runs of one session.

    Args:
        model: As for :func:`rehearsal_of`.

    Returns:
        The graph, and T names in the order of the graph: of the tensors that are rounded, as they
        are called in the FP32 graph. The graph has a second input, ``exact`` bool [N, T]: where
        ``exact[n, t]`` is true, tensor t of image n is not rounded. The rounding of the normalised
        image, and of what does not depend on the batch, cannot be switched off.

    Raises:
        GraphError: The type of a value cannot be inferred.
    """
    rehearsal, held = _in_fp32(model)
    graph = rehearsal.graph
    batch = _batch_dimension(graph)
    names = {tensor: name for tensor in held if (name := _switchable_name(tensor, batch))}
    flags = dict(zip(names, _flags(graph, list(names), batch), strict=True))
    for tensor in held:
        nodes = _rounding(tensor)
        if tensor in flags:
            rounded = nodes[-1].outputs[0]
            nodes.append(_node("Where", [flags[tensor], tensor, rounded], f"{tensor.name}/choice"))
        _put_behind(graph, tensor, nodes)
    return rehearsal, tuple(names.values())


def _in_fp32(model: ir.Model) -> tuple[ir.Model, tuple[ir.Value, ...]]:
    """A copy of a graph with all that is FP16 in FP32, and which of its tensors FP16 would round.

    What passes values on hands on rounded ones anyway.
    """
    copy = working_copy(model)
    held = [value for value in all_values(copy.graph) if value.dtype == _FP16]
    for value in held:
        value.type = ir.TensorType(_FP32)
        if value.const_value is not None:
            value.const_value = _widened(value.const_value)
    for node in copy.graph:
        for name, attribute in node.attributes.items():
            if node.op_type == "Cast" and name == "to" and attribute.as_int() == _FP16:
                node.attributes[name] = ir.AttrInt64(name, _FP32)
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FP16:
                node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
    return copy, tuple(
        value
        for value in held
        if (producer := value.producer()) and producer.op_type not in PASS_THROUGH
    )


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32))


def _batch_dimension(graph: ir.Graph) -> _Dimension:
    (images,) = graph.inputs
    if not images.shape:
        raise GraphError(f"The graph's input {images.name} has no batch dimension.")
    return images.shape[0]


def _switchable_name(tensor: ir.Value, batch: _Dimension) -> str | None:
    """What the FP32 graph calls a tensor that is rounded; None where that cannot be switched off.

    Behind an FP32 node the rounded tensor is the Cast's, and its name that of what is cast; before
    the graph's output it is the other way round.
    """
    producer, source = tensor.producer(), tensor
    wide = producer.inputs[0] if producer and producer.op_type == "Cast" else None
    if wide and wide.dtype == _FP32:
        producer, source = wide.producer(), wide
    if not producer or not computes(producer) or not source.shape or source.shape[0] != batch:
        return None
    casts = (node.outputs[0] for node in tensor.consumers() if node.op_type == "Cast")
    return next((value.name for value in casts if value.is_graph_output()), source.name)


def _flags(graph: ir.Graph, tensors: Sequence[ir.Value], batch: _Dimension) -> list[ir.Value]:
    """Add the input ``exact`` and cut it into columns, each of the rank of its tensor."""
    switches = ir.Value(
        name=SWITCHES, shape=ir.Shape([batch, len(tensors)]), type=ir.TensorType(ir.DataType.BOOL)
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
        _node("Reshape", [column, shapes[rank]], f"{tensor.name}/flag")
        for tensor, column, rank in zip(tensors, split.outputs, ranks, strict=True)
    ]
    graph.insert_before(graph[0], [split, *flags])
    return [flag.outputs[0] for flag in flags]


def _column_shape(graph: ir.Graph, rank: int) -> ir.Value:
    name = f"{SWITCHES}/shape_{rank}"
    shape = np.array([-1] + [1] * (rank - 1), np.int64)
    constant = ir.Value(
        name=name,
        shape=ir.Shape(shape.shape),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(shape, name=name),
    )
    graph.register_initializer(constant)
    return constant


def _rounding(tensor: ir.Value) -> list[ir.Node]:
    """To FP16 and back. ONNX Runtime leaves the two Casts alone, because they change values."""
    half = _node("Cast", [tensor], f"{tensor.name}/half", {"to": _FP16})
    return [half, _node("Cast", half.outputs, f"{tensor.name}/rounded", {"to": _FP32})]


def _put_behind(graph: ir.Graph, tensor: ir.Value, nodes: Sequence[ir.Node]) -> None:
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


def _node(
    operator: str,
    inputs: Sequence[ir.Value],
    name: str,
    attributes: Mapping[str, ir.DataType] | None = None,
) -> ir.Node:
    """A node whose output is called as the node is."""
    node = ir.node(operator, inputs, attributes, name=name)
    node.outputs[0].name = name
    return node
