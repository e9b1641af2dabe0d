"""The graph with two outputs: logits, and the tensor before the network's last layer."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from deploykit.errors import GraphError, UsageError
from deploykit.graph.passes import MODULE_PATH
from deploykit.graph.values import all_values, batch_dimension, named_node, new_constant
from deploykit.graph.values import working_copy as typed_copy
from deploykit.specs.embeddings import EMBEDDING_OUTPUT, Tap

_TAP = "Take another: --tap NAME, by the name of a module of the network or of a tensor of its ONNX"
#: Products of a tensor with weights.
_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
_SHOWN = 4
#: Of the network's modules, where none is nearly what the user wrote.
_NAMES = 8
_Side: TypeAlias = Literal["input", "output"]


def find_tap(canonical: ir.Model, wanted: str | None = None) -> Tap:
    """Find the tensor that is the embedding.

    Args:
        canonical: The canonical graph.
        wanted: The path of an ``nn.Module``, for what it gives; or the name of a tensor or a node;
            None for what the last Linear or 1x1 Conv takes.

    Raises:
        UsageError: There is none, or several, or it is no row of numbers for each image.
        GraphError: The type of a value cannot be inferred.
    """
    graph = typed_copy(canonical).graph
    value, module, side = _before_last_layer(graph) if wanted is None else _named(graph, wanted)
    pooled, size = _form(graph, value, module or value.name or "")
    return Tap(tensor=value.name or "", module=module, side=side, pooled=pooled, size=size)


def with_embedding(canonical: ir.Model, tap: Tap) -> ir.Model:
    """Let a canonical graph give the embedding, too, as its second output.

    Args:
        canonical: The graph; it stays as it is.
        tap: From :func:`find_tap`.

    Returns:
        A copy, which shares the weights, with the output ``embedding`` float32 [N, E].
    """
    copy = typed_copy(canonical)
    graph = copy.graph
    (value,) = (each for node in graph for each in node.outputs if each.name == tap.tensor)
    for other in [*all_values(graph)]:
        if other is not value and other.name == EMBEDDING_OUTPUT:
            other.name = f"{EMBEDDING_OUTPUT}/inner"
    if tap.pooled:
        axes = new_constant(graph, f"{EMBEDDING_OUTPUT}/axes", np.array([2, 3], np.int64))
        node = named_node(
            "ReduceMean", [value, axes], f"{EMBEDDING_OUTPUT}/ReduceMean", {"keepdims": 0}
        )
    else:
        node = named_node("Flatten", [value], f"{EMBEDDING_OUTPUT}/Flatten", {"axis": 1})
    (given,) = node.outputs
    given.name = EMBEDDING_OUTPUT
    given.type = ir.TensorType(ir.DataType.FLOAT)
    given.shape = ir.Shape([batch_dimension(graph), tap.size])
    graph.append(node)
    graph.outputs.append(given)
    return copy


def _before_last_layer(graph: ir.Graph) -> tuple[ir.Value, str, _Side]:
    """What the last Linear or 1x1 Conv takes, and the path of its module."""
    layers = [*_last_layers(graph)]
    inputs = {taken.name: taken for taken in map(_taken, layers) if taken is not None}
    if not inputs:
        raise UsageError(
            "The network has no last Linear or 1x1 Conv, whose input would be the embedding.",
            hint=_TAP,
        )
    if len(inputs) > 1:
        names = [_path(layer) or layer.name or "" for layer in layers]
        raise UsageError(
            f"The logits come from {len(layers)} last layers, {', '.join(names[:_SHOWN])}, which "
            "take different tensors, so there is no one embedding.",
            hint=f"Name the tensor: {' or '.join(f'--tap {name}' for name in [*inputs][:_SHOWN])}",
        )
    layer = layers[0]
    ((name, value),) = inputs.items()
    if layer.op_type == "Conv":
        weight = layer.inputs[1]
        kernel = tuple(weight.shape or ())[2:] if weight is not None else ()
        if any(side != 1 for side in kernel):
            raise UsageError(
                f"The last layer, {_path(layer) or layer.name}, is a convolution of "
                f"{'x'.join(map(str, kernel))}, no Linear and no 1x1 Conv.",
                hint=f"Take its input: --tap {name}",
            )
    return value, _path(layer), "input"


def _last_layers(graph: ir.Graph) -> Iterator[ir.Node]:
    """The first product with weights on each way from the logits back to the image."""
    pending = [graph.outputs[0].producer()]
    seen: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _taken(node) is not None:
            yield node
        else:
            pending += [value.producer() for value in node.inputs if value is not None]


def _taken(node: ir.Node) -> ir.Value | None:
    """The tensor that a product with weights takes; None of what is no such product."""
    if node.op_type not in _LAYERS or node.domain:
        return None
    computed = [value for value in node.inputs[:2] if value is not None and not _is_weight(value)]
    return computed[0] if len(computed) == 1 else None


def _is_weight(value: ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input()


def _path(node: ir.Node) -> str:
    return str(node.metadata_props.get(MODULE_PATH) or "")


def _named(graph: ir.Graph, wanted: str) -> tuple[ir.Value, str, _Side]:
    """What a module, a tensor or a node of this name gives, and whose tensor it is."""
    given = _given_by(graph, wanted)
    if len(given) > 1:
        names = [value.name or "" for value in given]
        raise UsageError(
            f"The module {wanted} gives {len(given)} tensors to the rest of the network.",
            hint=f"Name one: {' or '.join(f'--tap {name}' for name in names[:_SHOWN])}",
        )
    if given:
        return given[0], wanted, "output"
    outputs = {value.name: value for node in graph for value in node.outputs}
    nodes = {node.name: node.outputs[0] for node in graph}
    value = outputs.get(wanted) or nodes.get(wanted)
    if value is None:
        raise _unknown(graph, wanted)
    for node, _ in value.uses():
        if _path(node) and _taken(node) is value:
            return value, _path(node), "input"
    producer = value.producer()
    path = "" if producer is None else _path(producer)
    if path and _given_by(graph, path) == [value]:
        return value, path, "output"
    return value, "", "output"


def _given_by(graph: ir.Graph, module: str) -> list[ir.Value]:
    """The float tensors that the nodes of a module give to others."""
    inside = {
        node for node in graph if _path(node) == module or _path(node).startswith(f"{module}.")
    }
    return [
        value
        for node in graph
        if node in inside
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT
        and (value.is_graph_output() or any(user not in inside for user in value.consumers()))
    ]


def _unknown(graph: ir.Graph, wanted: str) -> UsageError:
    paths = [path for node in graph if (path := _path(node))]  # in the order of the network
    modules = dict.fromkeys(
        path.rsplit(".", up)[0] for path in paths for up in range(path.count("."), -1, -1)
    )
    tensors = dict.fromkeys(value.name for node in graph for value in node.outputs if value.name)
    close = difflib.get_close_matches(wanted, sorted({*modules, *tensors}), _SHOWN)
    some = sorted(modules, key=lambda path: path.count(".")) or [*tensors]
    meant = f"Did you mean {' or '.join(close)}? " if close else ""
    there = f": {', '.join(some[:_NAMES])}{', ...' if len(some) > _NAMES else ''}"
    return UsageError(
        f"The graph has no module, tensor or node {wanted!r}. A module that computes nothing at "
        "inference, such as Dropout, or that is folded into the layer before it, such as "
        "BatchNorm2d, leaves none.",
        hint=f"{meant}The names are those of the network's named_modules(){'' if close else there}",
    )


def _form(graph: ir.Graph, value: ir.Value, name: str) -> tuple[bool, int]:
    """Whether a tensor is a map to be averaged, and the number of its values an image."""
    if value.is_graph_input():
        raise UsageError(f"{name} is the network's input, no embedding.", hint=_TAP)
    if value.is_graph_output():
        raise UsageError(f"{name} gives the logits, which are there anyway.", hint=_TAP)
    shape = tuple(value.shape or ())
    told = f"[{', '.join(str(getattr(side, 'value', side)) for side in shape)}]"
    batch = batch_dimension(graph)
    if value.dtype != ir.DataType.FLOAT or not shape or shape[0] != batch:
        raise UsageError(
            f"{name} is a tensor {told} of {value.dtype}, which has no row of float32 for each "
            "image.",
            hint=_TAP,
        )
    sides = [side for side in shape[1:] if isinstance(side, int)]
    # A Linear multiplies the last dimension: what it takes is no map with its channels first.
    channels_last = len(shape) == 4 and any(
        node.op_type != "Conv" and _taken(node) is value for node, _ in value.uses()
    )
    if len(sides) + 1 < len(shape) or len(shape) not in (2, 4) or channels_last:
        kind = "channels last" if channels_last else f"{len(shape)} dimensions"
        raise UsageError(
            f"{name} is a tensor {told} ({kind}). An embedding is [N, E], or a map [N, E, H, W], "
            "which is averaged over its places.",
            hint=_TAP,
        )
    if len(sides) == 1:
        return False, sides[0]
    channels, height, width = sides
    if height * width == 0 or channels == 0:
        raise GraphError(f"{name} is a tensor {told}, which has no values.")
    return height * width > 1, channels
