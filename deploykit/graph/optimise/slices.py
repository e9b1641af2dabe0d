"""The rule that does not cut apart what a Concat has just joined."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeAlias

import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.graph.optimise.cuts import Cut, axis_of, cuts_by, size_along

#: A part of what a Concat gives, and the operands that it consists of.
_Part: TypeAlias = tuple[Cut, Sequence[ir.Value]]


def forward_slices_of_concats(model: ir.Model) -> tuple[ir.Model, bool]:
    """Take what a Concat joins instead of the same part of what it gives.

    Where the part consists of several, a Concat joins those: it copies as much as the Slice did,
    and keeps the part's name.
    """
    changed = False
    for node in model.graph:
        if (found := _concat_before(node)) and (parts := _parts(node, *found)):
            _forward(model.graph, node, parts, found[1])
            changed = True
    if changed:
        common.RemoveUnusedNodesPass()(model)
    return model, changed


def _concat_before(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The Concat that gives a node's first input, and its axis."""
    source = node.inputs[0] if node.inputs else None
    concat = source.producer() if source is not None else None
    if source is None or concat is None or concat.op_type != "Concat" or concat.domain:
        return None
    axis = axis_of(concat, source)
    return None if axis is None else (concat, axis)


def _parts(cutter: ir.Node, concat: ir.Node, axis: int) -> list[_Part]:
    """What is cut out of a Concat, and of what that consists; nothing if not of whole operands."""
    operands = [value for value in concat.inputs if value is not None]
    sizes = [size for value in operands if (size := size_along(value, axis))]
    if len(sizes) < len(concat.inputs):
        return []
    at = {border: index for index, border in enumerate(accumulate(sizes, initial=0))}
    cuts = cuts_by(cutter, axis)
    if any(cut.value.is_graph_output() or not {cut.start, cut.stop} <= at.keys() for cut in cuts):
        return []
    return [(cut, operands[at[cut.start] : at[cut.stop]]) for cut in cuts]


def _forward(graph: ir.Graph, cutter: ir.Node, parts: Sequence[_Part], axis: int) -> None:
    for cut, operands in parts:
        part = operands[0] if len(operands) == 1 else _join(graph, cutter, cut, operands, axis)
        cut.value.replace_all_uses_with(part)


def _join(
    graph: ir.Graph, cutter: ir.Node, cut: Cut, operands: Sequence[ir.Value], axis: int
) -> ir.Value:
    """Put a Concat of a part's operands where the part was cut out."""
    concat = ir.node(
        "Concat",
        operands,
        {"axis": axis},
        name=f"{cutter.name}/{cut.value.name}",
        metadata_props=dict(cutter.metadata_props),
    )
    (part,) = concat.outputs
    part.name, part.type, part.shape = cut.value.name, cut.value.type, cut.value.shape
    graph.insert_before(cutter, concat)
    return part
