"""FP16 rehearsed in FP32: an FP16 deploy graph as one that any CPU runs at the speed of FP32.

Kernels compute in FP32, and every tensor that the FP16 graph holds in FP16 is rounded to it on its
way, beyond 65504 to infinity. That is what tensor cores usually do: they multiply FP16 operands and
add up in FP32. An engine may add up in FP16 too, or fuse nodes and skip a rounding: a rehearsal is
a model of the hardware, not a bound on it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploykit.graph.values import (
    PASS_THROUGH,
    Dimension,
    Switches,
    all_values,
    batch_dimension,
    computes,
    named_node,
    put_behind,
    working_copy,
)

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
        put_behind(rehearsal.graph, tensor, _rounding(tensor))
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
    batch = batch_dimension(rehearsal.graph)
    names = {tensor: name for tensor in held if (name := _switchable_name(tensor, batch))}
    switches = Switches(rehearsal.graph, list(names))
    for tensor in held:
        nodes = _rounding(tensor)
        put_behind(rehearsal.graph, tensor, switches.chosen(tensor, nodes))
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


def _switchable_name(tensor: ir.Value, batch: Dimension) -> str | None:
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


def _rounding(tensor: ir.Value) -> list[ir.Node]:
    """To FP16 and back. ONNX Runtime leaves the two Casts alone, because they change values."""
    half = named_node("Cast", [tensor], f"{tensor.name}/half", {"to": _FP16})
    return [half, named_node("Cast", half.outputs, f"{tensor.name}/rounded", {"to": _FP32})]
