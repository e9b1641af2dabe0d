import numpy as np
import pytest
import torch
from torch import nn

from deploykit.errors import GraphError
from deploykit.graph.cut import float_tensors
from deploykit.graph.export import onnx_from_module
from deploykit.graph.instruments import model_bytes, with_outputs
from deploykit.graph.traced import TracedModule
from deploykit.runtime.opener import open_probe

INPUTS = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)
        nn.init.uniform_(self.norm.running_mean, 0.1, 0.5)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x):
        y = self.act(self.norm(self.conv(x)))
        y += 1
        return self.head(self.act(y).mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("batch", [1, 3])
def test_traced_module_gives_the_tensors_of_the_graph(net, batch):
    graph = onnx_from_module(net, (8, 8))
    found = TracedModule(net, (8, 8)).run(INPUTS[:batch])
    names = [name for name in float_tensors(graph) if name in found]
    assert len(names) >= 5
    assert names[-1] == "logits"
    with open_probe(model_bytes(with_outputs(graph, names)), threads=1) as probe:
        values = probe.run({"input": INPUTS[:batch]})
    for name in names:
        assert found[name] == pytest.approx(values[name], rel=1e-4, abs=1e-6), name


def test_traced_module_steps(net):
    steps = TracedModule(net, (8, 8)).steps
    assert (steps["conv2d"].operator, steps["conv2d"].module) == ("conv2d", "conv")
    assert steps["conv2d"].inputs[0] == "input"
    assert (steps["relu"].operator, steps["relu"].module) == ("relu", "act")
    assert steps["relu_1"].inputs[0].startswith("add")
    assert steps["logits"].module == "head"


def test_traced_module_of_another_size(net):
    with pytest.raises(GraphError, match="fails on a batch of 3"):
        TracedModule(net, (8, 8)).run(INPUTS[:, :2])


def test_traced_module_that_cannot_be_traced():
    class Branch(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(
        GraphError, match=r"branches on the values .*test_traced.py:\d+, in forward: return x.mean"
    ):
        TracedModule(Branch(), (8, 8))
