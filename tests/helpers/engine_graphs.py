"""Tiny graphs for TensorRT, and what the tests pretend: GPUs, and objects that fail."""

from pathlib import Path

import onnx_ir as ir

from deploykit.system.gpu import Gpu

#: Images in, normalisation in FP32, a convolution in FP16, logits out.
DEPLOY_GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
net (uint8[N, 8, 8, 3] images) => (float[N, 2] logits)
    <float[2, 3, 1, 1] weight = {0.5, -0.25, 0.125, 1, 2, -3}> {
    pixels = Cast <to = 1> (images)
    planes = Transpose <perm = [0, 3, 1, 2]> (pixels)
    half_planes = Cast <to = 10> (planes)
    half_weight = Cast <to = 10> (weight)
    hidden = Conv (half_planes, half_weight)
    positive = Relu (hidden)
    pooled = GlobalAveragePool (positive)
    flat = Flatten (pooled)
    logits = Cast <to = 1> (flat)
}
"""
ADA = Gpu("NVIDIA GeForce RTX 4070", (8, 9), (13, 0))
AMPERE = Gpu("NVIDIA GeForce RTX 3090", (8, 6), (13, 0))


class Altered:
    """One of TensorRT's objects, some of whose methods are others."""

    def __init__(self, real, **methods):
        self.__dict__.update(methods, real=real)

    def __getattr__(self, name):
        return getattr(self.real, name)

    def __setattr__(self, name, value):
        setattr(self.real, name, value)


def save_graph(path: Path, text: str) -> Path:
    """Write a graph; a node's name is its output's."""
    model = ir.from_onnx_text(text)
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
    ir.save(model, path)
    return path
