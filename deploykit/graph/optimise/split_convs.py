"""The rule that cuts a Conv's weights instead of its output."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.graph.optimise.cuts import Cut, cuts_of

_CHANNELS = 1
#: Vector units compute this many channels at once: a Conv of fewer takes as long.
_FEWEST_CHANNELS = 8


def split_sliced_convs(model: ir.Model) -> tuple[ir.Model, bool]:
    """Make several of a Conv of which only parts of the channels are used, each on its own.

    A dual-path block adds one part of a Conv's output and joins the other: the parts would be
    written twice. They keep their names. Each Conv is called after the one that it was a part of,
    with the channels from where up to where.
    """
    changed = False
    for node in model.graph:
        if parts := _parts(node):
            _split(model.graph, node, parts)
            changed = True
    if changed:
        common.RemoveUnusedNodesPass()(model)
    return model, changed


def _parts(conv: ir.Node) -> tuple[Cut, ...]:
    """The parts into which a Conv is to be split; nothing where it is to stay whole."""
    if conv.op_type != "Conv" or conv.domain or not _can_be_cut(conv):
        return ()
    (output,) = conv.outputs
    cuts = cuts_of(output, _CHANNELS)
    spans = sorted({(cut.start, cut.stop) for cut in cuts})
    overlap = any(start < stop for (_, stop), (start, _) in pairwise(spans))
    narrow = any(stop - start < _FEWEST_CHANNELS for start, stop in spans)
    handed_out = any(value.is_graph_output() for value in (output, *(cut.value for cut in cuts)))
    return () if overlap or narrow or handed_out else cuts


def _can_be_cut(conv: ir.Node) -> bool:
    """Whether the weights are constants and no other node's, and not of groups.

    A group computes from its own part of the input: split on their borders, the input would be cut
    instead of the output.
    """
    weight, group = conv.inputs[1], conv.attributes.get("group")
    constants = [value for value in conv.inputs[1:] if value is not None]
    return (
        weight is not None
        and len(weight.uses()) == 1
        and all(value.is_initializer() and not value.is_graph_input() for value in constants)
        and (group is None or group.as_int() == 1)
    )


def _split(graph: ir.Graph, conv: ir.Node, parts: Sequence[Cut]) -> None:
    made: dict[tuple[int, int], ir.Value] = {}
    for part in parts:
        span = part.start, part.stop
        if span not in made:
            made[span] = _conv_of(graph, conv, part)
        part.value.replace_all_uses_with(made[span])


def _conv_of(graph: ir.Graph, conv: ir.Node, part: Cut) -> ir.Value:
    """Put the Conv of one part before the whole one."""
    source, *weights = conv.inputs
    suffix = f"channels_{part.start}_{part.stop}"
    cut = [None if weight is None else _cut(graph, weight, part, suffix) for weight in weights]
    split = ir.node(
        "Conv",
        [source, *cut],
        conv.attributes,
        name=f"{conv.name}/{suffix}",
        metadata_props=dict(conv.metadata_props),
    )
    (output,) = split.outputs
    output.name, output.type, output.shape = part.value.name, conv.outputs[0].type, part.value.shape
    graph.insert_before(conv, split)
    return output


def _cut(graph: ir.Graph, weight: ir.Value, part: Cut, suffix: str) -> ir.Value:
    """The part's weights (of out channels, ...), which it may share with another Conv's part."""
    name = f"{weight.name}/{suffix}"
    if name in graph.initializers or weight.const_value is None:
        return graph.initializers[name]
    numbers = weight.const_value.numpy()[part.start : part.stop]
    cut = ir.Value(
        name=name,
        type=weight.type,
        shape=ir.Shape(numbers.shape),
        const_value=ir.tensor(numbers, name=name),
    )
    graph.register_initializer(cut)
    return cut
