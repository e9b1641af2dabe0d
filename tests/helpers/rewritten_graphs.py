"""Small graphs with weights to rewrite, and what a rule must not do to them."""

from collections import Counter

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.graph.instruments import model_bytes
from deploykit.runtime.opener import open_probe

#: What the Slices of the texts take; a Slice without an axis along the channels is not one of ours.
INDICES = {
    "zero": [0], "one": [1], "two": [2], "eight": [8], "five": [5], "twelve": [12], "sixteen": [16],
    "twenty_four": [24], "end": [2**63 - 1], "from_eighth_last": [-8], "backwards": [-1],
    "halves": [8, 8], "two_rows": [2, 3],
    "third_last": [-3], "zeros": [0, 0], "corner": [8, 2], "axes": [1, 2],
}  # fmt: skip
#: An image's worth of activations: around zero, none negative, and large.
IMAGES = {
    "normal": np.random.default_rng(0).standard_normal((3, 8, 5, 5)).astype(np.float32),
    "smooth": np.linspace(0, 6, 600, dtype=np.float32).reshape(3, 8, 5, 5),
    "large": np.random.default_rng(1).normal(50, 300, (3, 8, 5, 5)).astype(np.float32),
}


def network(nodes, *, gives="float[N, 24, 5, 5] logits", opset=20, constants=None, **weights):
    """A graph from float[N, 8, 5, 5] ``input``, of ONNX text and of weights of these shapes.

    Args:
        nodes: The text.
        gives: The outputs.
        opset: The operator set.
        constants: Arrays by name, also of numbers that the text cannot say.
        **weights: Shapes by name.
    """
    rng = np.random.default_rng(2)
    made = {name: rng.normal(0, 0.3, shape) for name, shape in weights.items()}
    declared = [_declare("float", name, values) for name, values in made.items()]
    declared += [_declare("int64", name, np.array(values)) for name, values in INDICES.items()]
    constants = constants or {}
    for name, values in constants.items():
        kind = "int64" if values.dtype == np.int64 else "float"
        declared.append(_declare(kind, name, np.zeros(values.shape, np.int64)))
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : {opset}]> '
        f"net (float[N, 8, 5, 5] input) => ({gives}) <{', '.join(declared)}> {{{nodes}}}"
    )
    for name, values in constants.items():
        model.graph.initializers[name].const_value = ir.tensor(values, name=name)
    common.RemoveUnusedNodesPass()(model)
    common.ShapeInferencePass()(model)
    for node in model.graph:
        node.metadata_props["module"] = f"path.{node.name}"
    return model


def operators(model):
    return Counter(node.op_type for node in model.graph)


def names(model):
    return {value.name for node in model.graph for value in node.outputs}


def node_named(model, name):
    return next(node for node in model.graph if node.name == name)


def run(model):
    """All outputs of a graph on each of the images."""
    with open_probe(model_bytes(model), threads=1) as probe:
        return {kind: probe.run({"input": images}) for kind, images in IMAGES.items()}


def check_rewrite(model, rule, *, exact=False):
    """Apply a rule that must change the graph, once, and must not change its numbers.

    Args:
        model: The graph.
        rule: The rule.
        exact: Whether not one bit may change; else 1e-5 of the scale.

    Returns:
        The rewritten graph.
    """
    before = run(model)
    model, changed = rule(model)
    assert changed
    after = run(model)
    for kind, outputs in before.items():
        assert outputs.keys() == after[kind].keys()
        for name, expected in outputs.items():
            scale = 0 if exact else np.abs(expected).max()
            assert np.abs(after[kind][name] - expected).max() <= 1e-5 * scale
    _check_form(model)
    check_unchanged(model, rule)
    return model


def check_unchanged(model, rule):
    """A rule must find nothing to do, and leave every byte as it is."""
    before = model_bytes(model)
    model, changed = rule(model)
    assert not changed
    assert model_bytes(model) == before


def _check_form(model):
    """Each node and value has a name of its own, a shape, and where it comes from."""
    found = [node.name for node in model.graph]
    assert len(set(found)) == len(found)
    values = [value for node in model.graph for value in node.outputs]
    assert len({value.name for value in values}) == len(values)
    assert all(value.shape is not None and value.dtype is not None for value in values)
    assert all(node.metadata_props["module"].startswith("path.") for node in model.graph)
    assert all(weight.uses() for weight in model.graph.initializers.values())


def _declare(kind, name, values):
    size = ", ".join(str(length) for length in values.shape)
    numbers = ", ".join(f"{value:.6g}" if kind == "float" else str(value) for value in values.flat)
    dimensions = f"[{size}]" if size else ""
    return f"{kind}{dimensions} {name} = {{{numbers}}}"
