import sys

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


def digits(size=28):
    """A convolution of one channel, and a head that fixes the size of the images."""
    side = size - 2
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * side * side, 10)).eval()


class FlatDigits(nn.Module):
    """Whose channels nothing tells, but the number of pixels."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        return self.fc(x.flatten(1))


def test_check_answers_of_a_grey_network_at_another_size():
    module = digits()
    assert not feed_grey(module, (32, 32))
    with pytest.raises(ArchitectureError) as caught:
        check_answers(module, (32, 32), 10)
    said = "The network takes one channel, and fails on grey images of 32x32: RuntimeError: mat1"
    assert caught.value.message.startswith(said)
    assert "1800" in caught.value.message  # 2 x 30 x 30, where 2 x 26 x 26 are expected
    assert "--input-size" in caught.value.hint
    assert feed_grey(module, (28, 28))
    check_answers(module, (28, 28), 10)


def test_check_answers_tells_both_sides_where_the_channels_are_not_known():
    with pytest.raises(ArchitectureError) as caught:
        check_answers(FlatDigits(), (32, 32), 10)
    assert "32x32, in RGB: RuntimeError" in caught.value.message
    assert "(2x3072 and 784x10)" in caught.value.message
    assert "; and in grey: RuntimeError" in caught.value.message
    assert "(2x1024 and 784x10)" in caught.value.message


def test_check_answers_of_an_rgb_network_at_another_size_tells_nothing_of_grey():
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 10))
    with pytest.raises(ArchitectureError) as caught:
        check_answers(module, (32, 32), 10)
    assert "The network fails on images of 32x32: RuntimeError: mat1" in caught.value.message
    assert "grey" not in caught.value.message


class Ending(nn.Module):
    """Ends the program, as scripts do that check their input."""

    def __init__(self, code, only=None):
        super().__init__()
        self.code, self.only = code, only

    def forward(self, x):
        if self.only in (None, len(x)):
            sys.exit(self.code)
        return x.mean((2, 3))


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Ending(1), "it ends the program, by sys.exit(1) (test_probe.py:"),
        (Ending(None, 1), "it ends the program, by sys.exit() (test_probe.py:"),
        (Ending("wrong size", 2), "it ends the program, by sys.exit('wrong size') (test_probe.py:"),
    ],
)
def test_check_answers_of_a_forward_that_ends_the_program(module, said):
    with pytest.raises(ArchitectureError) as caught:
        check_answers(module, (8, 8), 3)
    assert f"fails on images of 8x8: {said}" in caught.value.message
    assert "in forward: sys.exit(" in caught.value.message
    assert "Take that call out" in caught.value.hint
    assert caught.value.exit_code == 4


class Converting(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.mean((2, 3)).to(self.dtype)


class Mixed(nn.Module):
    """As training with mixed precision leaves it."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (Converting(torch.float16), "float16"),
        (Converting(torch.bfloat16), "bfloat16"),
        (Converting(torch.float64), "float64"),
        (Mixed(), "bfloat16"),
    ],
)
def test_check_answers_refuses_other_floats_than_float32(module, name):
    with pytest.raises(ModelError) as caught:
        check_answers(module, (8, 8), 3)
    assert caught.value.message.startswith(f"The network's forward() returns {name};")
    assert "return logits.float()" in caught.value.hint
