"""Convs that a Concat joins: as groups of one Conv, or with their own parts of a BatchNorm.

timm's MixNets compute a layer as Convs of the parts of a Split, joined before the BatchNorm.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.graph.values import constant_of, named_node, new_constant


def group_convs_of_splits(model: ir.Model) -> tuple[ir.Model, bool]:
    """Make one Conv of several that are alike but for their weights: each becomes a group of it.

    They take the equal parts of a Split, in order, and a Concat joins what they give. The Conv is
    called as the Concat was.
    """
    changed = False
    for concat in model.graph:
        convs = _joined_convs(concat)
        source = _split_for(convs)
        if source is None:
            continue
        weights = [constant_of(conv.inputs[1]) for conv in convs]
        biases = [constant_of(conv.inputs[2]) if len(conv.inputs) > 2 else None for conv in convs]
        inputs = [source]
        for kind, arrays in (("weight", weights), ("bias", biases)):
            if all(array is not None for array in arrays):
                joined = np.concatenate([array for array in arrays if array is not None])
                inputs.append(new_constant(model.graph, f"{concat.name}/{kind}", joined))
        groups = len(convs) * convs[0].attributes.get_int("group", 1)
        attributes = [*convs[0].attributes.values(), ir.AttrInt64("group", groups)]
        (given,) = concat.outputs
        conv = named_node(
            "Conv",
            inputs,
            concat.name or "",
            {attribute.name: attribute for attribute in attributes},
            output=given.name,
            like=given,
            of=concat,
        )
        model.graph.insert_before(concat, conv)
        given.replace_all_uses_with(conv.outputs[0], replace_graph_outputs=True)
        model.graph.remove(concat, safe=True)
        changed = True
    if changed:
        common.RemoveUnusedNodesPass()(model)
    return model, changed


def _split_for(convs: Sequence[ir.Node]) -> ir.Value | None:
    """What a Split cuts into a part for each of Convs that are alike; None where it is not so."""
    parts = [conv.inputs[0] for conv in convs]
    split = parts[0].producer() if parts and parts[0] is not None else None
    if split is None or split.op_type != "Split" or split.domain or len(convs) < 2:
        return None
    sizes = {_channels(part) for part in parts}
    if split.attributes.get_int("axis", 0) != 1 or len(sizes) > 1 or None in sizes:
        return None
    kinds = {
        (
            None if (weight := constant_of(conv.inputs[1])) is None else weight.shape,
            tuple(value is not None for value in conv.inputs),
            tuple(sorted((name, repr(each.value)) for name, each in conv.attributes.items())),
        )
        for conv in convs
    }
    return split.inputs[0] if parts == list(split.outputs) and len(kinds) == 1 else None


def split_batchnorms_of_concats(model: ir.Model) -> tuple[ir.Model, bool]:
    """Give each Conv that a Concat joins its own part of the BatchNorm behind, to fold into it.

    Those that :func:`group_convs_of_splits` leaves: they differ in the size of their kernels.
    """
    changed = False
    for node in model.graph:
        concat = _concat_of_convs(node)
        sizes = [_channels(value) for value in concat.inputs] if concat else []
        parameters = [constant_of(value) for value in node.inputs[1:]]
        if not concat or None in sizes or any(each is None for each in parameters):
            continue
        borders = pairwise(accumulate((size or 0 for size in sizes), initial=0))
        for index, (operand, (start, stop)) in enumerate(zip(concat.inputs, borders, strict=True)):
            name = f"{node.name}/channels_{start}_{stop}"
            parts = [
                new_constant(model.graph, f"{name}/{number}", each[start:stop])
                for number, each in enumerate(parameters)
                if each is not None
            ]
            part = named_node(
                node.op_type, [operand, *parts], name, node.attributes, like=operand, of=node
            )
            model.graph.insert_before(concat, part)
            concat.replace_input_with(index, part.outputs[0])
        (joined,), (normalised, *_) = concat.outputs, node.outputs
        normalised.replace_all_uses_with(joined, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        joined.name = normalised.name
        changed = True
    if changed:
        common.RemoveUnusedNodesPass()(model)
    return model, changed


def _concat_of_convs(batchnorm: ir.Node) -> ir.Node | None:
    """The Concat before a BatchNorm, if all that it joins are Convs that nothing else takes."""
    if batchnorm.op_type != "BatchNormalization" or batchnorm.domain:
        return None
    if batchnorm.attributes.get_int("training_mode", 0) or len(batchnorm.outputs) > 1:
        return None
    joined = batchnorm.inputs[0]
    concat = None if joined is None else joined.producer()
    if joined is None or concat is None or not _taken_once(joined):
        return None
    return concat if _joined_convs(concat) else None


def _joined_convs(concat: ir.Node) -> tuple[ir.Node, ...]:
    """The Convs that a Concat joins along the channels; nothing if anything else takes from them.

    Nothing as well where their weights are not constants, or where it joins something else.
    """
    if concat.op_type != "Concat" or concat.domain or concat.attributes.get_int("axis", 0) != 1:
        return ()
    makers = [value.producer() if value and _taken_once(value) else None for value in concat.inputs]
    convs = tuple(
        node
        for node in makers
        if node is not None
        and node.op_type == "Conv"
        and not node.domain
        and all(value is None or constant_of(value) is not None for value in node.inputs[1:])
    )
    return convs if len(convs) == len(makers) else ()


def _taken_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _channels(value: ir.Value | None) -> int | None:
    """A value's size along the channels; None where the graph does not fix it."""
    size = None if value is None or value.shape is None else value.shape[1]
    return size if isinstance(size, int) else None
