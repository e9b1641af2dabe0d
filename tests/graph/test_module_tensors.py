import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from deploykit.graph.export import onnx_from_module
from deploykit.graph.instruments import model_bytes, with_outputs
from deploykit.graph.modules import module_tensors
from deploykit.graph.preprocessing import fuse_preprocessing
from deploykit.runtime.opener import open_module, open_module_probe, open_probe
from deploykit.specs.preprocessing import Preprocessing

SMALL = Preprocessing(resize=(8, 8))
IMAGES = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)


class HiddenNorm(nn.BatchNorm2d):
    """Normalises by itself, and has a module inside that is called with the result."""

    def __init__(self, width):
        super().__init__(width)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(
            functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        )


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.SiLU()
        self.pad = nn.ZeroPad2d(1)
        self.wide = nn.Conv2d(4, 4, 3)
        self.hidden = HiddenNorm(4)
        self.drop = nn.Dropout()
        self.head = nn.Linear(4, 3)
        for norm in (self.norm, self.hidden):
            nn.init.uniform_(norm.running_mean, 0.1, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.hidden(self.wide(self.pad(self.act(x))))
        return self.head(self.drop(x.mean((2, 3))))


@pytest.fixture(scope="module")
def found():
    """By tensor the call that gave it, with what the graph computes for it."""
    torch.manual_seed(0)
    net = Net().eval()
    graph = onnx_from_module(net, (8, 8))
    graph, _ = fuse_preprocessing(SMALL)(graph)
    with open_module(net, preprocessing=SMALL, classes=3) as session:
        calls = open_module_probe(session).run(IMAGES)
    numbers = module_tensors(graph, calls)
    with open_probe(model_bytes(with_outputs(graph, numbers)), threads=1) as probe:
        values = probe.run({"images": IMAGES})
    return {tensor: (calls[number], values[tensor]) for tensor, number in numbers.items()}


def test_the_tensors_are_those_that_the_modules_gave(found):
    for tensor, (call, values) in found.items():
        assert values == pytest.approx(call.output, rel=1e-4, abs=1e-6), (tensor, call.path)


def test_what_was_folded_gives_the_output_of_the_last_module(found):
    paths = sorted(call.path for call, _ in found.values())
    # conv's own output is no tensor of the graph, nor are the convolution's before the hidden norm
    # and the padded image's; the whole answers as head does.
    assert paths == ["", "act", "act", "hidden.act", "norm"]
