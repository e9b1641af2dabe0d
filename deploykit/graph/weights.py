"""Passes that make a weight of what computes with nothing but weights, or behind one."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from deploykit.graph.values import constant_of, named_node, new_constant

#: What weights are computed with, where a layer standardises or normalises them: arithmetic, means,
#: norms and new shapes. NumPy is quick at these; at a Resize it is not.
_ARITHMETIC = frozenset(
    {
        "Abs", "Add", "BatchNormalization", "Cast", "Clip", "Concat", "Div", "Exp", "Flatten",
        "Identity", "MatMul", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "ReduceL2",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare", "Reshape",
        "Sigmoid", "Slice", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_NO_LIMIT = 2**63 - 1


def fold_weights(model: ir.Model) -> tuple[ir.Model, bool]:
    """Compute once what a network computes from its weights alone, whatever their size.

    onnxscript's own folding stops at 8192 numbers. timm's StdConv2d standardises its weight in each
    run: the Conv has no constant weight then, so that no BatchNorm folds into it and INT8 leaves it
    out. What would become larger than all that it is made of is left to the run.
    """
    if not any(_is_foldable(node) for node in model.graph):
        return model, False
    result = optimizer.fold_constants(
        model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT, should_fold=_is_foldable
    )
    return model, bool(result.modified)


def _is_foldable(node: ir.Node) -> bool:
    inputs = [value for value in node.inputs if value is not None]
    if node.op_type not in _ARITHMETIC or node.domain or len(node.outputs) > 1 or not inputs:
        return False
    if any(value.const_value is None or value.is_graph_input() for value in inputs):
        return False
    shape = node.outputs[0].shape
    if shape is None or not shape.is_static():
        return False
    taken = sum(value.const_value.size for value in inputs if value.const_value is not None)
    return math.prod(shape.numpy()) <= taken


def split_batchnorms_of_concats(model: ir.Model) -> tuple[ir.Model, bool]:
    """Give each Conv that a Concat joins its own part of the BatchNorm behind, to fold into it.

    timm's MixNets compute a layer as Convs of several kernel sizes, joined before the BatchNorm.
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
    if joined is None or concat is None or concat.op_type != "Concat" or concat.domain:
        return None
    if concat.attributes.get_int("axis", 0) != 1 or not _taken_once(joined):
        return None
    convs = [value.producer() if value and _taken_once(value) else None for value in concat.inputs]
    plain = all(
        conv is not None
        and conv.op_type == "Conv"
        and not conv.domain
        and all(value is None or value.const_value is not None for value in conv.inputs[1:])
        for conv in convs
    )
    return concat if plain else None


def _taken_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _channels(value: ir.Value | None) -> int | None:
    """A value's size along the channels; None where the graph does not fix it."""
    size = None if value is None or value.shape is None else value.shape[1]
    return size if isinstance(size, int) else None
