"""Passes that make the exporter's graph plain: constants, BatchNorm and Pads folded, no-ops gone.

``torch.onnx.export(optimize=True)`` does the same with every rule that onnxscript has, tried at
every node: on dpn92, with its many Slices, 40 % of the export's time. Here a rule is tried only if
the graph has an operator that the rule cannot do without.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

from deploykit.graph.joined_convs import group_convs_of_splits, split_batchnorms_of_concats
from deploykit.graph.pads import fold_pads
from deploykit.graph.weights import fold_weights

_ROUNDS = 3  # folding makes room for rules, and rules for folding; two rounds are the usual


def _drop_neutral(operator: str, neutral: float) -> rewriter.RewriteRule:
    """Make the rule that drops an operator with a scalar constant that changes no number.

    onnxscript has such rules, as torch's ``optimize=True`` has, but they match a constant within
    1e-8 and a millionth: the epsilon of ``x / (std + 1e-8)`` would go, and 0 / 0 be left.
    """

    def pattern(op: Any, x: ir.Value, constant: ir.Value) -> ir.Value:
        found: ir.Value = getattr(op, operator)(x, constant)
        return found

    def is_neutral(context: object, x: ir.Value, constant: ir.Value) -> bool:
        del context, x
        tensor = None if constant.is_graph_input() else ir.convenience.get_const_tensor(constant)
        if tensor is None or tensor.shape.rank() != 0:  # another shape may widen what it goes to
            return False
        numbers = tensor.numpy()
        return bool(numbers.tobytes() == numbers.dtype.type(neutral).tobytes())

    def replacement(op: Any, x: ir.Value, constant: ir.Value) -> ir.Value:
        del constant
        same: ir.Value = op.Identity(x)
        return same

    return rewriter.RewriteRule(pattern, replacement, is_neutral, name=f"Drop{operator}")


#: An operator of each rule's pattern, without which the rule cannot apply.
_RULES_BY_OPERATOR: dict[str, tuple[rewriter.RewriteRule, ...]] = {
    "Add": (_drop_neutral("Add", 0),),
    "BatchNormalization": (
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_conv_transpose_rule,
        rules.fuse_batchnorm_into_gemm_rule,
    ),
    "Cast": (rules.cast_cast_rule, rules.no_op_cast_rule),
    "Clip": (rules.successive_clip_rule, rules.successive_clip_relu_rule),
    "Conv": (rules.remove_optional_bias_from_conv_rule,),
    "ConvTranspose": (rules.remove_optional_bias_from_conv_transpose_rule,),
    "Div": (_drop_neutral("Div", 1),),
    "Dropout": (rules.dropout_inference_rule, rules.dropout_zero_rule),
    "Expand": (rules.no_op_expand_rule,),
    "Gemm": (rules.remove_optional_bias_from_gemm_rule,),
    "Max": (rules.max_max_rule, rules.max_min_rule),
    "Min": (rules.min_min_rule, rules.min_max_rule),
    "Mul": (_drop_neutral("Mul", 1),),
    "Relu": (rules.successive_relu_rule, rules.successive_relu_clip_rule),
    "Reshape": (
        rules.reshape_reshape_rule,
        rules.squeeze_reshape_1d_rule,
        rules.materialize_reshape_shape_rule,
    ),
    "Slice": (rules.collapse_slice_rule, rules.collapse_slice2_rule),
    "Sub": (_drop_neutral("Sub", 0),),
    "Transpose": (rules.no_op_transpose_rule, rules.transpose_transpose_rule),
    "Unsqueeze": (rules.unsqueeze_unsqueeze_rule,),
}


def simplify(model: ir.Model) -> ir.Model:
    """Fold constants, BatchNorm and Pads and drop what does nothing, without changing the numbers.

    But for rounding: BatchNorm folds into its Conv in FP32, and a weight that the network computes
    from others is computed once, here. The comparison that ends every export
    is of the graph that comes out.
    """
    common.InlinePass()(model)
    for _ in range(_ROUNDS):
        count = _fingerprint(model)
        optimizer.fold_constants(model, onnx_shape_inference=True)
        fold_weights(model)
        fold_pads(model)
        group_convs_of_splits(model)
        split_batchnorms_of_concats(model)
        present = {node.op_type for node in model.graph.all_nodes()}
        found = [each for name, each in _RULES_BY_OPERATOR.items() if name in present]
        rewriter.rewrite(model, [rule for each in found for rule in each])
        if _fingerprint(model) == count:
            break
    # Constants become initializers, each once, and every value gets a name of its own.
    for step in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        step(model)
    return model


def _fingerprint(model: ir.Model) -> Counter[str]:
    """The number of nodes of each operator, and of initializers."""
    counts = Counter(node.op_type for node in model.graph.all_nodes())
    counts["initializers"] = len(model.graph.initializers)
    return counts
