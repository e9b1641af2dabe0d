import pytest
import torch
from torch import nn

from deploykit.errors import ArchitectureError, ModelError
from deploykit.models.probe import check_answers


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
        nn.Sequential(Means(), nn.Sigmoid()),
        nn.Sequential(Means(), nn.ReLU()),
        OneHot(),
    ],
)
def test_check_answers_of_sound_networks(module):
    check_answers(module.eval(), (8, 8), 3)


def test_check_answers_refuses_softmax():
    with pytest.raises(ModelError, match="answers with probabilities") as caught:
        check_answers(nn.Sequential(Means(), nn.Softmax(1)), (8, 8), 3)
    assert "Take the softmax out of forward()" in caught.value.hint


def test_check_answers_of_a_failing_forward():
    with pytest.raises(ArchitectureError) as caught:
        check_answers(Picky(), (8, 8), 3)
    assert "one batch of images (N, 3, H, W), alone, and run on the CPU" in caught.value.hint
    assert "--input-size" in caught.value.hint


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
