"""Small deploy graphs, and a way to run any graph."""

import numpy as np
import onnx_ir as ir

from deploykit.graph.deploy import fuse_preprocessing
from deploykit.graph.instruments import model_bytes
from deploykit.runtime.opener import open_probe
from deploykit.specs.preprocessing import Preprocessing

#: Bytes become 0..1, so that a graph's numbers are easy to tell.
PLAIN = Preprocessing(resize=(4, 4), mean=(0, 0, 0), std=(1, 1, 1))
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)

#: Activations up to 1000, a gain that takes them to 300,000, and its undoing.
OVERFLOW = """
    [stem] x = Mul(input, thousand)
    [gain] high = Mul(x, gain_by)
    [undo] back = Mul(high, undo_by)
    [pool] pooled = GlobalAveragePool(back)
    [flatten] logits = Flatten(pooled)
"""
#: A gain that takes activations to 1e-7, half a step of FP16's smallest numbers.
UNDERFLOW = """
    [gain] low = Mul(input, tiny)
    [undo] back = Div(low, tiny)
    [pool] pooled = GlobalAveragePool(back)
    [flatten] logits = Flatten(pooled)
"""
#: Values of about 1 that lose all but their first bits while 2000 is added to them.
SENSITIVE_SUM = """
    [stem] x = Mul(input, three)
    [lift] high = Add(x, two_thousand)
    [lower] back = Sub(high, two_thousand)
    [act] positive = Relu(back)
    [pool] pooled = GlobalAveragePool(positive)
    [flatten] logits = Flatten(pooled)
"""
_WEIGHTS = """
    float[1] thousand = {1000}, float[1] gain_by = {300}, float[1] undo_by = {0.0033333334},
    float[1] tiny = {0.0000001}, float[1] three = {3}, float[1] two_thousand = {2000}
"""


def deploy_graph(nodes, weights=_WEIGHTS):
    """The deploy graph of a network written as ONNX text: float[N, 3, 4, 4] to float[N, 3]."""
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> '
        f"net (float[N, 3, 4, 4] input) => (float[N, 3] logits) <{weights}> {{{nodes}}}"
    )
    model, _ = fuse_preprocessing(PLAIN)(model)
    return model


def declarations(arrays):
    """Arrays by name as float32 weights in ONNX text, for :func:`deploy_graph`."""
    return ", ".join(
        f"float[{', '.join(map(str, array.shape))}] {name} = "
        f"{{{', '.join(map(str, array.ravel().tolist()))}}}"
        for name, array in arrays.items()
    )


def run(model, images=IMAGES, **more):
    """All outputs of a graph on ONNX Runtime's CPU provider, by name."""
    with open_probe(model_bytes(model), threads=1) as probe:
        return probe.run({"images": images, **more})
