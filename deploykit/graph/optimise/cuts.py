"""What a Slice or a Split cuts out of a value along one axis, as far as the graph tells it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import onnx_ir as ir


@dataclass(frozen=True)
class Cut:
    """A part of another value: its indices from start up to stop, without stop, along an axis."""

    value: ir.Value
    start: int
    stop: int


def cuts_by(node: ir.Node, axis: int) -> tuple[Cut, ...]:
    """The parts that a node cuts out of its first input along an axis.

    Args:
        node: Of any operator.
        axis: Counted from the front.

    Returns:
        A part for each output of a Slice or a Split. Nothing for other nodes, and where a part is
        empty, reversed or with gaps, is cut along another axis, or is known only at run time.
    """
    if node.domain or node.op_type not in ("Slice", "Split"):
        return ()
    return _by_slice(node, axis) if node.op_type == "Slice" else _by_split(node, axis)


def cuts_of(value: ir.Value, axis: int) -> tuple[Cut, ...]:
    """The parts that are all that is used of a value; nothing where it is used otherwise too."""
    found = [cuts_by(node, axis) for node in value.consumers()]
    return tuple(cut for cuts in found for cut in cuts) if all(found) else ()


def size_along(value: ir.Value | None, axis: int) -> int | None:
    """How long a value is along an axis; None where the graph does not fix it."""
    if value is None or value.shape is None or not axis < len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def axis_of(node: ir.Node, value: ir.Value) -> int | None:
    """The axis of a Concat or a Split, counted from the front; None where that is unknown.

    Args:
        node: The Concat or Split.
        value: What it gives or takes, for its rank.
    """
    attribute = node.attributes.get("axis")
    axis = 0 if attribute is None else attribute.as_int()  # Split's default; a Concat has an axis
    if axis >= 0:
        return axis
    return None if value.shape is None else axis + len(value.shape)


def _by_slice(node: ir.Node, axis: int) -> tuple[Cut, ...]:
    source, (part,) = node.inputs[0], node.outputs
    size = size_along(source, axis)
    starts, ends = _integers(node, 1), _integers(node, 2)
    # Without axes a Slice cuts as many of them, from the front, as it has starts.
    axes = _integers(node, 3, default=tuple(range(len(starts))))
    steps = _integers(node, 4, default=(1,))
    if source is None or source.shape is None or size is None:
        return ()
    if len(starts) != 1 or len(ends) != 1 or len(axes) != 1 or steps != (1,):
        return ()
    start, stop, _ = slice(starts[0], ends[0]).indices(size)
    along = axes[0] % len(source.shape) == axis
    return (Cut(part, start, stop),) if along and start < stop else ()


def _by_split(node: ir.Node, axis: int) -> tuple[Cut, ...]:
    sizes = [size for part in node.outputs if (size := size_along(part, axis))]
    if axis_of(node, node.outputs[0]) != axis or len(sizes) < len(node.outputs):
        return ()
    borders = pairwise(accumulate(sizes, initial=0))
    return tuple(Cut(part, *border) for part, border in zip(node.outputs, borders, strict=True))


def _integers(node: ir.Node, index: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """An input that is a constant; nothing where a run may give another."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return default
    constant = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return () if constant is None else tuple(int(number) for number in constant.numpy().ravel())
