import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deploykit.errors import ArchitectureError, ModelError
from deploykit.models.probe import check_answers, check_range, feed_grey


class Means(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class FreshLayer(nn.Module):
    def forward(self, x):
        return nn.Conv2d(3, 3, 1)(x).mean((2, 3))


class Mixing(nn.Module):
    def forward(self, x):
        return (x - x.mean(0)).mean((2, 3))


class Nan(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) * float("nan")


class Twice(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), x


class Whole(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).long()


class Squeezing(nn.Module):
    def forward(self, x):
        return x.mean((2, 3), keepdim=True).squeeze()


class Picky(nn.Module):
    def forward(self, x):
        raise ValueError("expected 32x32")


class OneHot(nn.Module):
    def forward(self, x):
        return torch.eye(3)[torch.zeros(len(x), dtype=torch.long)]


def test_check_answers_of_images_beyond_memory():
    with pytest.raises(ArchitectureError, match="do not fit in memory"):
        check_answers(Means(), (10_000_000, 10_000_000), 3)


@pytest.mark.parametrize(
    "module",
    [
        Means(),
        nn.Sequential(Means(), nn.LogSoftmax(1)),
        nn.Sequential(Means(), nn.ReLU()),
        nn.Sequential(Means(), nn.Sigmoid(), nn.Linear(3, 3)),
        nn.Sequential(Means(), nn.SiLU()),
        nn.Sequential(Means(), nn.Hardtanh(0, 6)),
        OneHot(),
    ],
)
def test_check_answers_of_sound_networks(module):
    check_answers(module.eval(), (8, 8), 3)


def test_check_answers_refuses_softmax():
    with pytest.raises(ModelError, match="answers with probabilities") as caught:
        check_answers(nn.Sequential(Means(), nn.Softmax(1)), (8, 8), 3)
    assert "Take the softmax out of forward()" in caught.value.hint


class Handmade(nn.Module):
    def forward(self, x):
        return 1 / (1 + (-x.mean((2, 3))).exp())


class Parts(nn.Module):
    """A sigmoid for each class, joined and kept from 0 and 1."""

    def forward(self, x):
        parts = [x[:, i].mean((1, 2))[:, None].sigmoid() for i in range(3)]
        return torch.cat(parts, 1).clamp(1e-6, 1 - 1e-6)


class InPlaceSigmoid(nn.Module):
    def forward(self, x):
        return x.mean((2, 3), keepdim=True).sigmoid_().flatten(1)


@pytest.mark.parametrize(
    ("module", "activation"),
    [
        (nn.Sequential(Means(), nn.Sigmoid()), "sigmoid"),
        (InPlaceSigmoid(), "sigmoid"),
        (nn.Sequential(Means(), nn.Sigmoid(), nn.Unflatten(1, (3, 1)), nn.Flatten()), "sigmoid"),
        (nn.Sequential(Means(), nn.Hardsigmoid()), "hard sigmoid"),
        (nn.Sequential(Means(), nn.Hardtanh(0, 1)), "clamp to 0 and 1"),
        (Parts(), "clamp to 0 and 1"),
    ],
)
def test_check_answers_refuses_sigmoids(module, activation):
    with pytest.raises(ModelError, match=f"forward.. ends in a {activation}, and gave 0") as caught:
        check_answers(module.eval(), (8, 8), 3)
    assert f"Take the {activation} out of forward()" in caught.value.hint


def test_check_answers_refuses_a_saturated_softmax():
    network = nn.Sequential(Means(), nn.Linear(3, 3), nn.Softmax(1))
    nn.init.zeros_(network[1].weight)
    network[1].bias = nn.Parameter(torch.tensor([1e3, 0.0, 0.0]))
    with pytest.raises(ModelError, match="Take the softmax out") as caught:
        check_answers(network, (8, 8), 3)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("module", "within"),
    [(Handmade(), True), (OneHot(), True), (Means(), False), (nn.Sequential(Means()), False)],
)
def test_check_answers_within_unit(module, within):
    assert check_answers(module, (8, 8), 3) is within


def test_check_answers_of_small_logits_tries_brighter_images():
    small = nn.Sequential(Means(), nn.Linear(3, 3))
    nn.init.constant_(small[1].weight, 0.01)
    nn.init.constant_(small[1].bias, 0.5)
    assert check_answers(small, (8, 8), 3) is False


def test_check_answers_says_tanh():
    notes = []
    check_answers(nn.Sequential(Means(), nn.Tanh()), (8, 8), 3, notes.append)
    assert "ends in a tanh" in notes[0].message


def test_check_range():
    check_range(-0.1, 0.9, 5)
    check_range(0.1, 1.1, 5)
    with pytest.raises(ModelError, match=r"for 5 images lie between 0.0312 and 0.98") as caught:
        check_range(0.03123, 0.98, 5)
    assert "--head single-label" in caught.value.hint


class InPlace(nn.Module):
    def forward(self, x):
        return x.mul_(0.5).add_(0.1).mean((2, 3))


@pytest.mark.parametrize("module", [InPlace(), nn.Sequential(nn.ReLU(inplace=True), Means())])
def test_check_answers_of_an_input_changed_in_place(module):
    assert check_answers(module, (8, 8), 3) in (True, False)


class Entries(nn.Module):
    def __init__(self, pack):
        super().__init__()
        self.pack = pack

    def forward(self, x):
        return self.pack(x, x.mean((2, 3)))


@pytest.mark.parametrize(
    ("pack", "code"),
    [
        (lambda x, logits: (x, logits), "[1]"),
        (lambda x, logits: [logits, x], "[0]"),
        (lambda x, logits: {"features": x, "logits": logits}, "['logits']"),
    ],
)
def test_check_answers_finds_the_logits_among_several(pack, code):
    with pytest.raises(ModelError, match="not with one tensor") as caught:
        check_answers(Entries(pack), (8, 8), 3)
    assert f"return self.network(x){code}" in caught.value.hint


def test_check_answers_of_other_channels():
    with pytest.raises(ArchitectureError, match="takes images of 4 channels") as caught:
        check_answers(nn.Sequential(nn.Conv2d(4, 3, 3), Means()), (8, 8), 3)
    assert "(N, 3, H, W)" in caught.value.hint


def test_check_answers_of_a_failing_forward():
    with pytest.raises(ArchitectureError) as caught:
        check_answers(Picky(), (8, 8), 3)
    assert "one batch of images (N, 3, H, W), alone, and run on the CPU" in caught.value.hint
    assert "--input-size" in caught.value.hint
    assert "(test_probe.py:" in caught.value.message
    assert 'in forward: raise ValueError("expected 32x32"))' in caught.value.message


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (FreshLayer(), ModelError, "another answer each time"),
        (nn.Sequential(Means(), nn.Dropout(0.5)).train(), ModelError, "another answer each time"),
        (Mixing(), ModelError, "depends on the other images in its batch"),
        (Nan(), ModelError, "NaN or infinity: 6 of 6"),
        (Twice(), ModelError, "answers with a tuple"),
        (Whole(), ModelError, r"torch.int64 of shape \(2, 3\)"),
        (Squeezing(), ModelError, r"a batch of 1 with torch.float32 of shape \(3,\)"),
        (nn.Flatten(), ModelError, r"of shape \(2, 192\)"),
        (Picky(), ArchitectureError, "fails on images of 8x8: ValueError: expected 32x32"),
    ],
)
def test_check_answers_refuses_undeployable_networks(module, error, message):
    torch.manual_seed(0)
    with pytest.raises(error, match=message) as caught:
        check_answers(module, (8, 8), 3)
    assert caught.value.exit_code == 4


class Grey(nn.Module):
    """One channel, as it comes."""

    def forward(self, x):
        assert x.shape[1] == 1, x.shape
        return x.flatten(1)[:, :3]


class Flat(nn.Module):
    """The first layer of many a tutorial's network for digits."""

    def forward(self, x):
        return x.view(-1, 64)[:, :3]


@pytest.mark.parametrize("network", [Grey, Flat])
def test_feed_grey_to_a_network_of_one_channel(network):
    module = network()
    assert feed_grey(module, (8, 8))
    pixels = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    grey = pixels[:, :1].float() / 7
    assert torch.equal(module(grey.expand(2, 3, 8, 8)), network()(grey))  # to the last bit
    luma = [Image.fromarray(each.permute(1, 2, 0).byte().numpy()).convert("L") for each in pixels]
    expected = torch.tensor(np.stack([np.asarray(each) for each in luma])).flatten(1)[:, :3]
    assert (module(pixels.float()) - expected).abs().max() <= 0.51


@pytest.mark.parametrize("module", [Means(), Twice(), Picky(), nn.Conv2d(4, 3, 3), Squeezing()])
def test_feed_grey_leaves_other_networks_alone(module):
    assert not feed_grey(module, (8, 8))
    assert not module._forward_pre_hooks


def test_feed_grey_of_images_beyond_memory():
    assert not feed_grey(Means(), (10_000_000, 10_000_000))
