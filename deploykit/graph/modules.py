"""Which tensors of a canonical graph are the outputs of which modules."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from deploykit.graph._weight_changes import is_rescaled
from deploykit.graph.passes import MODULE_PATH


class Call(Protocol):
    """One call of a module, as :mod:`deploykit.runtime` records it."""

    @property
    def path(self) -> str:
        """The module's path; empty for the whole."""
        ...

    @property
    def source(self) -> int | None:
        """The number of the call whose output this one takes."""
        ...

    @property
    def weight(self) -> npt.NDArray[np.float32] | None:
        """The module's weight."""
        ...

    @property
    def output(self) -> npt.NDArray[np.float32]:
        """What it gave."""
        ...


def module_tensors(model: ir.Model, calls: Sequence[Call]) -> dict[str, int]:
    """Find the tensors that are modules' outputs.

    The last node of a module gives its output. A module without a node was folded into the one
    before, as a BatchNorm into its Conv, or does nothing: that one's tensor is its output then.
    What has nodes, but other weights than its module, has something folded into it.

    Args:
        model: The graph, each node with its module's path.
        calls: All calls of one run of the whole module, in their order, the whole last.

    Returns:
        By the name of each tensor the number of the call that gave it.
    """
    ends = _last_nodes(model, calls)
    tensors: dict[int, ir.Value] = {}
    numbers: dict[str, int] = {}
    for number, call in enumerate(calls):
        node = ends.get(number)
        if node is not None:
            tensors[number] = node.outputs[0]
            if _is_folded(node, call):
                continue
        elif call.source in tensors:
            tensors[number] = tensors[call.source]
        else:
            continue
        if _fits(tensors[number], call.output):
            numbers[tensors[number].name or ""] = number
    (logits,) = model.graph.outputs
    return {**numbers, logits.name or "": len(calls) - 1}


def holds_weights_of(model: ir.Model, weights: Mapping[str, npt.NDArray[np.float32]]) -> bool:
    """Whether a canonical graph's weights are known to be a module's.

    Args:
        model: The graph, whose weights have the names that they have in the module.
        weights: The module's parameters and buffers.

    Returns:
        True where each is the module's, up to what folding a BatchNorm does to it. Not told are
        vectors that folding made: they are in every value of a tensor. False where any other weight
        is not in the module under its name.
    """
    for name, value in model.graph.initializers.items():
        if value.dtype != ir.DataType.FLOAT or value.const_value is None:
            continue
        values = value.const_value.numpy()
        wanted = weights.get(name)
        if wanted is not None and wanted.shape == values.shape:
            if not is_rescaled(values, wanted):
                return False
        elif values.size > max(values.shape, default=1):
            return False
    return True


def _last_nodes(model: ir.Model, calls: Sequence[Call]) -> dict[int, ir.Node]:
    """By the number of each call its last node; without those that cannot be told apart."""
    nodes: dict[str, list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        nodes[node.metadata_props.get(MODULE_PATH, "")].append(node)
    times = Counter(call.path for call in calls)
    seen: Counter[str] = Counter()
    ends = {}
    for number, call in enumerate(calls):
        seen[call.path] += 1
        length, rest = divmod(len(nodes.get(call.path, ())), times[call.path])
        if call.path and length and not rest:
            ends[number] = nodes[call.path][seen[call.path] * length - 1]
    return ends


def _is_folded(node: ir.Node, call: Call) -> bool:
    """Whether a node computes with other weights than its module."""
    weights: list[npt.NDArray[Any]] = [
        value.const_value.numpy()
        for value in node.inputs
        if value is not None and value.const_value is not None
    ]
    return call.weight is not None and any(
        weight.shape == call.weight.shape and not np.array_equal(weight, call.weight)
        for weight in weights
    )


def _fits(tensor: ir.Value, output: npt.NDArray[np.float32]) -> bool:
    """Whether a module's output has the shape that the graph declares; N may be any."""
    if tensor.shape is None:
        return True
    return len(tensor.shape) == output.ndim and all(
        not isinstance(declared, int) or declared == size
        for declared, size in zip(tensor.shape, output.shape, strict=True)
    )
