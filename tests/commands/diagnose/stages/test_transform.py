"""What a torchvision transform does is read from its attributes; anything else is not."""

import functools

import pytest
import torch
from PIL import ImageOps
from torchvision import transforms as v1
from torchvision.models import ResNet18_Weights
from torchvision.transforms import InterpolationMode, v2

from deploykit.commands.diagnose.stages.transform import read_transform
from deploykit.images.treatment import Treatment
from deploykit.specs.preprocessing import IMAGENET_MEAN, IMAGENET_STD

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
BICUBIC = InterpolationMode.BICUBIC
NORMALISE = v1.Normalize(MEAN, STD)
TO_FLOAT = v2.ToDtype(torch.float32, scale=True)


def treatment(resize, crop_size=None, mean=MEAN, std=STD, **fields):
    return Treatment(resize=resize, crop_size=crop_size, mean=mean, std=std, **fields)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([v1.Resize([16, 24]), v1.ToTensor(), NORMALISE], treatment((16, 24))),
        (
            [v1.Resize(18, BICUBIC), v1.CenterCrop(16), v1.ToTensor(), NORMALISE],
            treatment(18, (16, 16), interpolation="bicubic"),
        ),
        ([v1.CenterCrop(16), v1.ToTensor(), NORMALISE], treatment(None, (16, 16))),
        # Pillow always antialiases, whatever is asked for; a tensor's resize does not.
        (
            [v1.Resize([16, 16], antialias=False), v1.ToTensor(), NORMALISE],
            treatment((16, 16)),
        ),
        (
            [v1.ToTensor(), v1.Resize([16, 16], antialias=False), NORMALISE],
            treatment((16, 16), antialias=False),
        ),
        # A crop of what was stretched to that size cuts nothing off.
        (
            [v1.Resize([16, 16]), v1.CenterCrop(16), v1.ToTensor()],
            treatment((16, 16), mean=(0, 0, 0), std=(1, 1, 1)),
        ),
        (
            [v1.Lambda(ImageOps.exif_transpose), v1.Grayscale(3), v1.Resize([9, 9]), v1.ToTensor()],
            treatment((9, 9), mean=(0, 0, 0), std=(1, 1, 1), upright=True, channels="grey"),
        ),
    ],
)
def test_read_transform_compose(steps, expected):
    assert read_transform(v1.Compose(steps)) == expected


@pytest.mark.parametrize(
    "steps",
    [
        [v2.Resize(18), v2.CenterCrop(16), v2.ToImage(), TO_FLOAT, v2.Normalize(MEAN, STD)],
        [v2.PILToTensor(), v2.Resize([18]), v2.CenterCrop((16, 16)), TO_FLOAT, NORMALISE],
    ],
)
def test_read_transform_v2(steps):
    assert read_transform(v2.Compose(steps)) == treatment(18, (16, 16))


@pytest.mark.parametrize("std", [0.5, (0.5,), torch.tensor(0.5), torch.tensor([0.5, 0.5, 0.5])])
def test_read_transform_normalise_with_one_number(std):
    """One number stands for all channels."""
    normalise = v1.Normalize(torch.tensor(MEAN), std)
    image = torch.rand(3, 4, 4)
    expected = (image - torch.tensor(MEAN)[:, None, None]) / 0.5
    assert torch.allclose(normalise(image), expected)
    found = read_transform(v1.Compose([v1.Resize([16, 16]), v1.ToTensor(), normalise]))
    assert found == treatment((16, 16), std=(0.5, 0.5, 0.5))


def test_read_transform_preset():
    found = read_transform(ResNet18_Weights.DEFAULT.transforms())
    assert found == treatment(256, (224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.mark.parametrize(
    "code",
    [
        functools.partial(v1.functional.resize, size=[16, 16]),
        v1.ToTensor(),
        v1.Compose([v1.Resize([16, 16]), v1.Lambda(lambda image: image), v1.ToTensor()]),
        v1.Compose([v1.Resize([16, 16]), v1.RandomHorizontalFlip(1.0), v1.ToTensor()]),
        v1.Compose([v1.CenterCrop(20), v1.Resize([16, 16]), v1.ToTensor()]),
        v1.Compose([v1.Resize(20), v1.Resize([16, 16]), v1.ToTensor()]),
        v1.Compose([v1.Resize(20, max_size=30), v1.CenterCrop(16), v1.ToTensor()]),
        v1.Compose([v1.Resize([16, 16]), v1.ToTensor(), v1.Normalize((0.5, 0.5), (0.5, 0.5))]),
    ],
)
def test_read_transform_of_unknown_transforms(code):
    assert read_transform(code) is None
