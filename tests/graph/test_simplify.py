from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from deploykit.graph.simplify import simplify


class Branches(nn.Module):
    """What simplifying is about: BatchNorm, padding, shapes computed at run time, dropout."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 4, 2, stride=2), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))

    def forward(self, x):
        x = torch.relu(torch.relu(self.up(self.stem(x))))
        x = torch.cat([x[:, :2], x[:, 2:] + x[:, :2]], 1)
        return self.head(x.reshape(x.shape[0], 8, -1).mean(2))


@pytest.fixture
def exported():
    torch.manual_seed(0)
    module = Branches().eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    program = torch.onnx.export(
        module,
        (torch.zeros(2, 3, 8, 8),),
        dynamo=True,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: "N"},),
        optimize=False,
        verbose=False,
    )
    return program.model


def run(model, images):
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"input": images})[0]


def test_simplify_keeps_the_numbers(exported):
    images = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    before, nodes = run(exported, images), len(exported.graph)
    model = simplify(exported)
    assert len(model.graph) < nodes
    after = run(model, images)
    assert np.abs(after - before).max() <= 1e-6 * np.abs(before).max()


def test_simplify_removes_batchnorm_pad_and_dropout(exported):
    model = simplify(exported)
    operators = Counter(node.op_type for node in model.graph)
    assert not {"BatchNormalization", "Pad", "Dropout", "Identity", "Shape", "Constant"} & set(
        operators
    )
    assert operators["Relu"] == 1
    assert operators["Conv"] == operators["ConvTranspose"] == operators["Gemm"] == 1


def test_simplify_twice(exported):
    model = simplify(exported)
    once = ir.to_proto(model).SerializeToString()
    assert ir.to_proto(simplify(model)).SerializeToString() == once
