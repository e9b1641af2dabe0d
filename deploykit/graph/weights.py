"""What a network computes from its weights alone becomes a weight."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnxscript import optimizer

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
