"""The graph with two outputs: logits, and the probabilities that its head makes of them."""

from __future__ import annotations

import onnx_ir as ir

from deploykit.graph.values import all_values, batch_dimension, named_node
from deploykit.specs.model import Labels
from deploykit.specs.tensors import PROBABILITIES


def with_probabilities(model: ir.Model, labels: Labels) -> ir.Model:
    """Let a graph give probabilities, too, as its second output.

    Args:
        model: A graph with one output, the logits (N, L); it stays as it is.
        labels: The classes and the head.

    Returns:
        A copy, which shares the weights, with the output ``probabilities`` float32 (N, K), one for
        each class: of a binary head two.
    """
    copy = model.clone()
    graph = copy.graph
    (logits,) = graph.outputs
    for value in [*all_values(graph)]:
        if value.name == PROBABILITIES:
            value.name = f"{PROBABILITIES}/inner"
    head, scope = labels.head, PROBABILITIES
    if head.activation == "softmax":
        nodes = [named_node("Softmax", [logits], f"{scope}/Softmax", {"axis": 1})]
    elif len(labels) == labels.logits:
        nodes = [named_node("Sigmoid", [logits], f"{scope}/Sigmoid")]
    else:  # (N, 1) => (N, 2): of the first class and of the second
        minus = named_node("Neg", [logits], f"{scope}/Neg", like=logits)
        both = [*minus.outputs, logits]
        pair = named_node("Concat", both, f"{scope}/Concat", {"axis": 1}, dtype=logits.dtype)
        nodes = [minus, pair, named_node("Sigmoid", [*pair.outputs], f"{scope}/Sigmoid")]
    (given,) = nodes[-1].outputs
    given.name = PROBABILITIES
    given.type = ir.TensorType(ir.DataType.FLOAT)
    given.shape = ir.Shape([batch_dimension(graph), len(labels)])
    graph.extend(nodes)
    graph.outputs.append(given)
    return copy
