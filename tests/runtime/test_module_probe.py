import numpy as np
import pytest
import torch
from torch import nn

from deploykit.errors import UsageError
from deploykit.runtime.fake import FakeSession
from deploykit.runtime.normalisation import network_input
from deploykit.runtime.opener import open_module, open_module_probe
from deploykit.specs.preprocessing import Preprocessing

SMALL = Preprocessing(resize=(6, 6))
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.same = nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = self.norm(self.conv(x))
        y += 1
        x = self.same(self.act(self.act(y)))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def session():
    torch.manual_seed(0)
    return open_module(Net().eval(), preprocessing=SMALL, classes=3)


def test_every_call_is_recorded_before_it_is_changed_in_place(session):
    with session:
        probe = open_module_probe(session)
        calls = probe.run(IMAGES)
        expected = session.run(IMAGES)
    paths = [call.path for call in calls]
    assert paths == ["conv", "norm", "act", "act", "same", "head", ""]
    net = probe.module
    with torch.no_grad():
        conv = net.conv(network_input(IMAGES, SMALL, torch.device("cpu")))
        norm = net.norm(conv)
    assert calls[0].output == pytest.approx(conv.numpy())
    assert calls[1].output == pytest.approx(norm.numpy())
    assert calls[2].output == pytest.approx(torch.relu(norm + 1).detach().numpy())
    assert calls[-1].output == pytest.approx(expected)


def test_a_call_knows_whose_output_it_takes(session):
    with session:
        sources = {call.path: call.source for call in open_module_probe(session).run(IMAGES)}
    assert sources["norm"] == 0
    assert sources["same"] == 3
    assert sources["conv"] is sources["head"] is None


def test_weights_come_along(session):
    with session:
        probe = open_module_probe(session)
        calls = probe.run(IMAGES)
    assert np.array_equal(calls[0].weight, probe.module.conv.weight.detach().numpy())
    assert calls[2].weight is None


def test_nothing_is_left_in_the_module(session):
    with session:
        probe = open_module_probe(session)
        probe.run(IMAGES)
        assert all(not part._forward_hooks for part in probe.module.modules())


def test_only_a_module_can_be_looked_into():
    fake = FakeSession(lambda images: images[:, 0, 0], classes=3, input_size=(6, 6))
    with pytest.raises(UsageError, match="is no torch module"):
        open_module_probe(fake)


def test_a_closed_session_has_no_module(session):
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        open_module_probe(session)
