"""A transform is told from its output: here torchvision's, on made photos of odd shapes."""

import functools

import msgspec
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from deploykit.images.explain import TransformedImage, explain
from deploykit.images.treatment import Treatment
from deploykit.specs.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

RECORDED = Preprocessing(resize=(32, 32))
NORMALISE = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)


@pytest.fixture(scope="module")
def pictures():
    """Smooth shapes with noise upon them, in several shapes."""
    rng = np.random.default_rng(0)
    made = []
    for height, width in ((60, 91), (48, 48), (101, 64), (70, 80)):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int64)
        noisy = smooth + rng.integers(-25, 26, smooth.shape)
        made.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return made


def explained(pictures, transform, recorded=RECORDED, turned=(), read=None):
    return explain(
        [
            TransformedImage(
                open=functools.partial(Image.Image.copy, picture),
                rotated=place in turned,
                elongation=max(picture.size) / min(picture.size),
                values=transform(picture).numpy(),
            )
            for place, picture in enumerate(pictures)
        ],
        recorded,
        read,
    )


def steps(resize=(32, 32), crop_size=None, **fields):
    return Treatment(resize=resize, crop_size=crop_size, **fields)


def steps_of(found):
    """The treatment that was found, but for its mean and standard deviation."""
    return msgspec.structs.replace(found.treatment, mean=(0, 0, 0), std=(1, 1, 1))


def mode(name):
    return InterpolationMode(name)


CROP = transforms.CenterCrop(32)
WAYS = {
    "as recorded": (transforms.Resize([32, 32]), steps()),
    "bicubic": (transforms.Resize([32, 32], mode("bicubic")), steps(interpolation="bicubic")),
    "lanczos": (transforms.Resize([32, 32], mode("lanczos")), steps(interpolation="lanczos")),
    "hamming": (transforms.Resize([32, 32], mode("hamming")), steps(interpolation="hamming")),
    "box": (transforms.Resize([32, 32], mode("box")), steps(interpolation="box")),
    "nearest": (transforms.Resize([32, 32], mode("nearest")), steps(interpolation="nearest")),
    "shorter side": (transforms.Compose([transforms.Resize(36), CROP]), steps(36, (32, 32))),
    "fractions": (transforms.Compose([transforms.Resize(37), CROP]), steps(37, (32, 32))),
    "stretch and crop": (
        transforms.Compose([transforms.Resize([37, 37]), CROP]),
        steps((37, 37), (32, 32)),
    ),
    "crop alone": (CROP, steps(None, (32, 32))),
}


@pytest.mark.parametrize("name", WAYS)
def test_explain_resize_and_crop(pictures, name):
    resize, expected = WAYS[name]
    found = explained(pictures, transforms.Compose([resize, transforms.ToTensor(), NORMALISE]))
    assert steps_of(found) == expected
    assert (found.treatment.mean, found.treatment.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert found.explained
    assert found.residual < 0.01


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_explain_tensor_resize_without_antialiasing(pictures, name):
    resize = transforms.Resize([32, 32], mode(name), antialias=False)
    found = explained(pictures, transforms.Compose([transforms.ToTensor(), resize, NORMALISE]))
    assert steps_of(found) == steps(interpolation=name, antialias=False, pixel_type="float32")
    assert found.residual < 1e-3
    assert (found.treatment.mean, found.treatment.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_explain_nearest_of_torch(pictures):
    resize = transforms.Resize([32, 32], mode("nearest"))
    found = explained(
        pictures,
        transforms.Compose(
            [transforms.PILToTensor(), resize, transforms.ConvertImageDtype(torch.float)]
        ),
    )
    assert steps_of(found) == steps(interpolation="nearest", antialias=False)
    assert found.residual < 0.01


def test_explain_resize_in_floating_point(pictures):
    found = explained(
        pictures,
        transforms.Compose([transforms.ToTensor(), transforms.Resize([32, 32]), NORMALISE]),
    )
    assert steps_of(found) == steps(pixel_type="float32")
    assert found.residual < 1e-3


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
        ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ((0.123, 0.456, 0.789), (0.3, 0.31, 0.32)),
    ],
)
def test_explain_mean_and_std(pictures, mean, std):
    found = explained(
        pictures,
        transforms.Compose(
            [transforms.Resize([32, 32]), transforms.ToTensor(), transforms.Normalize(mean, std)]
        ),
    )
    assert (found.treatment.mean, found.treatment.std) == (mean, std)


@pytest.mark.parametrize("order", ["BGR", "grey"])
def test_explain_channels(pictures, order):
    change = (
        transforms.Lambda(lambda x: x[[2, 1, 0]])
        if order == "BGR"
        else transforms.Lambda(lambda x: x)
    )
    first = transforms.Grayscale(3) if order == "grey" else transforms.Lambda(lambda image: image)
    transform = transforms.Compose(
        [first, transforms.Resize([32, 32]), transforms.ToTensor(), change, NORMALISE]
    )
    found = explained(pictures, transform)
    assert steps_of(found) == steps(channels=order)
    assert (found.treatment.mean, found.residual < 0.01) == (IMAGENET_MEAN, True)


def test_explain_exif_rotation(pictures):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    lying = [picture.copy() for picture in pictures]
    for picture in lying[1:3]:
        picture.info["exif"] = exif.tobytes()
    turn = transforms.Compose(
        [
            transforms.Lambda(ImageOps.exif_transpose),
            transforms.Resize([32, 32]),
            transforms.ToTensor(),
        ]
    )
    found = explained(lying, turn, turned=(1, 2))
    assert steps_of(found) == steps(upright=True)
    assert found.residual < 0.01
    assert steps_of(explained(lying[1:3], turn, turned=(0, 1))) == steps(upright=True)
    left = explained(
        lying,
        transforms.Compose([transforms.Resize([32, 32]), transforms.ToTensor()]),
        turned=(1, 2),
    )
    assert steps_of(left) == steps()


def test_explain_another_size(pictures):
    found = explained(
        pictures,
        transforms.Compose([transforms.Resize([24, 40]), transforms.ToTensor(), NORMALISE]),
    )
    assert steps_of(found) == steps((24, 40))


@pytest.mark.parametrize(
    "strange",
    [
        transforms.Lambda(lambda image: transforms.functional.adjust_gamma(image, 2.0)),
        transforms.Lambda(lambda image: ImageOps.solarize(image, 100)),
        transforms.Lambda(lambda image: ImageOps.mirror(image)),
    ],
)
def test_explain_unusual_transforms(pictures, strange):
    found = explained(
        pictures, transforms.Compose([transforms.Resize([32, 32]), strange, transforms.ToTensor()])
    )
    assert found is None or not found.explained


def test_explain_believes_transform_if_values_agree(pictures):
    """A crop of 41 to 32 is no usual one; and what is read may be wrong."""
    transform = transforms.Compose([transforms.Resize(41), CROP, transforms.ToTensor(), NORMALISE])
    right = steps(41, (32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    found = explained(pictures, transform, read=right)
    assert (found.treatment, found.explained) == (right, True)
    wrong = steps(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    found = explained(pictures, transform, read=wrong)
    assert not found.explained
    assert found.treatment.crop_size == (32, 32)


def test_explain_constant_transform(pictures):
    assert explained(pictures, lambda picture: torch.zeros(3, 32, 32)) is None


def test_explain_prefers_the_recorded_filter(pictures):
    """A photo of the right size looks the same whatever the filter."""
    small = [pictures[0].resize((32, 32))]
    transform = transforms.Compose([transforms.Resize([32, 32]), transforms.ToTensor(), NORMALISE])
    recorded = Preprocessing(resize=(32, 32), interpolation="bicubic")
    assert steps_of(explained(small, transform, recorded)) == steps(interpolation="bicubic")
    assert steps_of(explained(small, transform)) == steps()
