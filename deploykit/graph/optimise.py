"""Graph rules: the canonical graph computed with less memory traffic, and the same numbers.

Each is a pass that leaves alone what it is not made for, and has measured faster on some runtime
and slower on none: docs/graph.md has the table, benchmarks/graph_rules.py makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.graph.passes import Pass
from deploykit.graph.values import integers, named_node, never_negative, new_constant

_CHANNELS = 1
#: Vector units compute this many channels at once: a Conv of fewer takes as long.
_FEWEST_CHANNELS = 8
#: What runtimes compute along with the Conv or the Add before it, from each number alone.
_ACTIVATIONS = frozenset(
    {"Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"}
)


def split_sliced_convs(model: ir.Model) -> tuple[ir.Model, bool]:
    """Make several of a Conv of which only parts of the channels are used, each on its own.

    A dual-path block adds one part of a Conv's output and joins the other: the parts would be
    written twice. They keep their names. Each Conv is called after the one that it was a part of,
    with the channels from where up to where.
    """
    changed = False
    for node in model.graph:
        made: dict[tuple[int, int], ir.Value] = {}
        for part in _channels_used(node):
            span = part.start, part.stop
            if span not in made:
                made[span] = _conv_of(model.graph, node, part)
            part.value.replace_all_uses_with(made[span])
        changed |= bool(made)
    if changed:
        common.RemoveUnusedNodesPass()(model)
    return model, changed


def _channels_used(conv: ir.Node) -> tuple[_Cut, ...]:
    """The parts into which a Conv is to be split; nothing where it is to stay whole."""
    if conv.op_type != "Conv" or conv.domain:
        return ()
    # The weights must be constants, no other node's, and not of groups: a group computes from its
    # own part of the input, so that the input would be cut instead of the output.
    weight, group = conv.inputs[1], conv.attributes.get_int("group", 1)
    constants = [value for value in conv.inputs[1:] if value is not None]
    if (
        weight is None
        or len(weight.uses()) > 1
        or any(value.const_value is None or value.is_graph_input() for value in constants)
        or group > 1
    ):
        return ()
    (output,) = conv.outputs
    found = [_cuts_by(node, _CHANNELS) for node in output.consumers()]
    cuts = tuple(cut for cuts in found for cut in cuts) if all(found) else ()
    spans = sorted({(cut.start, cut.stop) for cut in cuts})
    overlap = any(start < stop for (_, stop), (start, _) in pairwise(spans))
    narrow = any(stop - start < _FEWEST_CHANNELS for start, stop in spans)
    handed_out = any(value.is_graph_output() for value in (output, *(cut.value for cut in cuts)))
    return () if overlap or narrow or handed_out else cuts


def _conv_of(graph: ir.Graph, conv: ir.Node, part: _Cut) -> ir.Value:
    """Put the Conv of one part before the whole one."""
    source, *weights = conv.inputs
    suffix = f"channels_{part.start}_{part.stop}"
    cut: list[ir.Value | None] = []
    for weight in weights:  # (out channels, ...), and the bias
        name = "" if weight is None else f"{weight.name}/{suffix}"
        if weight is None or weight.const_value is None:
            cut.append(None)
        elif name in graph.initializers:  # another Conv's part shares it
            cut.append(graph.initializers[name])
        else:
            numbers = weight.const_value.numpy()[part.start : part.stop]
            cut.append(new_constant(graph, name, numbers))
    name, given = f"{conv.name}/{suffix}", part.value
    inputs = [source, *cut]
    split = named_node(
        "Conv", inputs, name, conv.attributes, output=given.name, like=given, of=conv
    )
    graph.insert_before(conv, split)
    return split.outputs[0]


def move_activations_before_concats(model: ir.Model) -> tuple[ir.Model, bool]:
    """Apply an activation to what a Concat joins, not to the whole, where a runtime fuses it.

    The activated whole keeps its name. Each new node and its output are called after the activation
    and what it is applied to.
    """
    changed = False
    # From the end: what moves before one Concat may find another one there.
    for node in reversed(model.graph):
        if node.op_type not in _ACTIVATIONS or node.domain or not (concat := _concat_before(node)):
            continue
        (joined,), (activated,) = concat.outputs, node.outputs
        if joined.is_graph_output() or len(joined.uses()) > 1:
            continue
        for index, operand in enumerate(concat.inputs):
            if operand is None:
                continue
            moved = named_node(
                node.op_type,
                [operand, *node.inputs[1:]],
                f"{node.name}/{operand.name}",
                node.attributes,
                output=f"{activated.name}/{operand.name}",
                like=operand,
                of=node,
            )
            model.graph.insert_before(concat, moved)
            concat.replace_input_with(index, moved.outputs[0])
        activated.replace_all_uses_with(joined, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        joined.name = activated.name
        changed = True
    if changed:
        common.CommonSubexpressionEliminationPass()(model)
        common.TopologicalSortPass()(model)
    return model, changed


def drop_needless_relus(model: ir.Model) -> tuple[ir.Model, bool]:
    """Drop a Relu whose input cannot be negative, because of another Relu, or the like, before it.

    What took its output takes its input.
    """
    changed = False
    positive = never_negative(model.graph)
    for node in model.graph:
        if node.op_type != "Relu" or node.domain:
            continue
        (source,), (output,) = node.inputs, node.outputs
        if source is not None and source in positive and not output.is_graph_output():
            output.replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
            changed = True
    return model, changed


def forward_slices_of_concats(model: ir.Model) -> tuple[ir.Model, bool]:
    """Take what a Concat joins instead of the same part of what it gives.

    Where the part consists of several, a Concat joins those: it copies as much as the Slice did,
    and keeps the part's name.
    """
    changed = False
    for node in model.graph:
        concat = _concat_before(node)
        axis = None if concat is None else _axis_of(concat, concat.outputs[0])
        if concat is None or axis is None:
            continue
        operands = [value for value in concat.inputs if value is not None]
        sizes = [size for value in operands if (size := _size_along(value, axis))]
        if len(sizes) < len(concat.inputs):
            continue
        at = {border: index for index, border in enumerate(accumulate(sizes, initial=0))}
        cuts = _cuts_by(node, axis)
        if any(
            cut.value.is_graph_output() or not {cut.start, cut.stop} <= at.keys() for cut in cuts
        ):
            continue
        for cut in cuts:
            part = operands[at[cut.start] : at[cut.stop]]
            joined = part[0] if len(part) == 1 else _join(model.graph, node, cut, part, axis)
            cut.value.replace_all_uses_with(joined)
            changed = True
    if changed:
        common.RemoveUnusedNodesPass()(model)
    return model, changed


def _join(
    graph: ir.Graph, cutter: ir.Node, cut: _Cut, operands: Sequence[ir.Value], axis: int
) -> ir.Value:
    """Put a Concat of a part's operands where the part was cut out."""
    part, name = cut.value, f"{cutter.name}/{cut.value.name}"
    concat = named_node(
        "Concat", operands, name, {"axis": axis}, output=part.name, like=part, of=cutter
    )
    graph.insert_before(cutter, concat)
    return concat.outputs[0]


#: In their order: each makes room for the next.
DEPLOY_RULES: tuple[Pass, ...] = (
    split_sliced_convs,
    move_activations_before_concats,
    drop_needless_relus,
    forward_slices_of_concats,
)


@dataclass(frozen=True)
class _Cut:
    """A part of another value: its indices from start up to stop, without stop, along an axis."""

    value: ir.Value
    start: int
    stop: int


def _cuts_by(node: ir.Node, axis: int) -> tuple[_Cut, ...]:
    """The parts that a node cuts out of its first input along an axis, counted from the front.

    Returns:
        A part for each output of a Slice or a Split. Nothing for other nodes, and where a part is
        empty, reversed or with gaps, is cut along another axis, or is known only at run time.
    """
    if node.domain or node.op_type not in ("Slice", "Split"):
        return ()
    if node.op_type == "Split":
        sizes = [size for part in node.outputs if (size := _size_along(part, axis))]
        if _axis_of(node, node.outputs[0]) != axis or len(sizes) < len(node.outputs):
            return ()
        borders = pairwise(accumulate(sizes, initial=0))
        return tuple(_Cut(part, *span) for part, span in zip(node.outputs, borders, strict=True))
    source, (part,) = node.inputs[0], node.outputs
    size = _size_along(source, axis)
    starts, ends = integers(node, 1), integers(node, 2)
    # Without axes a Slice cuts as many of them, from the front, as it has starts.
    axes = integers(node, 3, default=tuple(range(len(starts))))
    steps = integers(node, 4, default=(1,))
    if source is None or source.shape is None or size is None:
        return ()
    if len(starts) != 1 or len(ends) != 1 or len(axes) != 1 or steps != (1,):
        return ()
    start, stop, _ = slice(starts[0], ends[0]).indices(size)
    along = axes[0] % len(source.shape) == axis
    return (_Cut(part, start, stop),) if along and start < stop else ()


def _concat_before(node: ir.Node) -> ir.Node | None:
    """The Concat that gives a node's first input."""
    source = node.inputs[0] if node.inputs else None
    concat = None if source is None else source.producer()
    return concat if concat and concat.op_type == "Concat" and not concat.domain else None


def _size_along(value: ir.Value | None, axis: int) -> int | None:
    """How long a value is along an axis; None where the graph does not fix it."""
    if value is None or value.shape is None or not axis < len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _axis_of(node: ir.Node, value: ir.Value) -> int | None:
    """The axis of a Concat or a Split, counted from the front; None where that is unknown.

    Args:
        node: The Concat or Split.
        value: What it gives or takes, for its rank.
    """
    axis = node.attributes.get_int("axis", 0)  # Split's default; a Concat has an axis
    if axis >= 0:
        return axis
    return None if value.shape is None else axis + len(value.shape)
