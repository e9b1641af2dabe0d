"""Graphs to look into: with other outputs, and as bytes for a runtime."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.errors import GraphError


def with_outputs(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """Let a graph hand out tensors from its inside as well.

    Args:
        model: The graph; it stays as it is.
        names: Of tensors that its nodes compute.

    Returns:
        A copy, which shares the weights, with the tensors as outputs behind those that it had.

    Raises:
        GraphError: The graph has no tensor of such a name.
    """
    copy = model.clone()
    tensors = {value.name: value for node in copy.graph for value in node.outputs}
    wanted = dict.fromkeys(names)
    unknown = [name for name in wanted if name not in tensors]
    if unknown:
        raise GraphError(
            f"The graph computes no tensor {', '.join(unknown)}.",
            hint="Weights and inputs are not computed; the other names are the graph's own.",
        )
    copy.graph.outputs.extend(
        tensors[name] for name in wanted if not tensors[name].is_graph_output()
    )
    return copy


def with_only(model: ir.Model, names: Collection[str]) -> ir.Model:
    """Let a graph hand out some of its outputs only.

    Args:
        model: The graph; it stays as it is.
        names: Of outputs.

    Returns:
        A copy, which shares the weights, without the nodes that no one needs now. It has all
        inputs still.
    """
    copy = model.clone()
    for value in [value for value in copy.graph.outputs if value.name not in names]:
        copy.graph.outputs.remove(value)
    common.RemoveUnusedNodesPass()(copy)
    return copy


def model_bytes(model: ir.Model) -> bytes:
    """What the graph's file would hold; at most 2 GB, as a file."""
    content: bytes = ir.to_proto(model).SerializeToString()
    return content
