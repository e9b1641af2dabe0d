import numpy as np
import pytest
import torch
from rewritten_graphs import (
    check_unchanged,
    network,
    operators,
    run,
)
from torch import nn
from torch.nn import functional

from deploykit.graph.export import onnx_from_module
from deploykit.graph.instruments import model_bytes
from deploykit.graph.int8 import integer_nodes
from deploykit.graph.weights import fold_weights
from deploykit.runtime.opener import open_probe

STANDARDISED = """
    [m] mean = ReduceMean<keepdims=1>(raw, all_but_first)
    [d] centred = Sub(raw, mean)
    [q] square = Mul(centred, centred)
    [v] variance = ReduceMean<keepdims=1>(square, all_but_first)
    [s] deviation = Sqrt(variance)
    [w] weight = Div(centred, deviation)
    [last] logits = Conv<pads=[1, 1, 1, 1]>(input, weight)
"""
AXES = {"all_but_first": np.array([1, 2, 3], np.int64)}


def test_fold_weights_that_are_standardised():
    # 24 * 8 * 9 = 1728 numbers stay below the limit of onnxscript's folding, 200 * 8 * 9 do not.
    model = network(
        STANDARDISED, raw=(200, 8, 3, 3), gives="float[N, 200, 5, 5] logits", constants=AXES
    )
    before = run(model)
    model, changed = fold_weights(model)
    assert changed
    assert operators(model) == {"Conv": 1}
    assert len(model.graph.initializers) == 1
    for kind, outputs in run(model).items():
        expected = before[kind]["logits"]
        assert np.abs(outputs["logits"] - expected).max() <= 1e-5 * np.abs(expected).max()
    check_unchanged(model, fold_weights)


@pytest.mark.parametrize(
    "nodes",
    [
        "[w] weight = Mul(raw, column) [last] logits = Conv(input, weight)",  # grows 8-fold
        "[w] weight = Expand(raw, shape) [last] logits = Conv(input, weight)",
        "[w] x = Mul(input, small) [last] logits = Conv(x, raw)",  # takes the input
    ],
)
def test_fold_weights_stays(nodes):
    model = network(
        nodes,
        raw=(24, 8, 1, 1),
        column=(1, 1, 8, 1),
        small=(1,),
        gives="float[N, 24, A, B] logits",
        constants={"shape": np.array([24, 8, 2, 2], np.int64)},
    )
    check_unchanged(model, fold_weights)


def test_fold_weights_that_are_an_input():
    model = network(
        STANDARDISED, raw=(24, 8, 3, 3), gives="float[N, 24, 5, 5] logits", constants=AXES
    )
    model.graph.inputs.append(model.graph.initializers["raw"])
    check_unchanged(model, fold_weights)


class StandardisedConv(nn.Conv2d):
    """As timm's StdConv2d."""

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


def test_export_of_computed_weights():
    """BatchNorm folds into them, and INT8 rounds them, as if they were given."""
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(64, 16, 3, bias=False))
    module = nn.Sequential(
        StandardisedConv(3, 64, 7, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        normed,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()
    with torch.no_grad():
        module[1].running_mean.normal_()
    model = onnx_from_module(module, (32, 32))
    assert operators(model)["Conv"] == 2
    assert operators(model).keys() <= {"Conv", "Relu", "ReduceMean", "Reshape", "GlobalAveragePool"}
    assert [node.op_type for node in integer_nodes(model)] == ["Conv", "Conv"]
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.tensor(images)).numpy()
    with open_probe(model_bytes(model), threads=1) as probe:
        (logits,) = probe.run({"input": images}).values()
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
