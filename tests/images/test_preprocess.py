from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from deploykit.errors import InputError
from deploykit.images.preprocess import OversizeError, make_grey, preprocess
from deploykit.models.transforms import torchvision_transform
from deploykit.specs.preprocessing import Interpolation, Preprocessing

ZEROS, ONES = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

# Height and width: odd, even, square, thin, smaller and larger than the targets.
SHAPES = [(8, 8), (7, 12), (13, 9), (1, 5), (30, 3), (31, 47), (64, 33), (40, 40), (5, 4)]


def noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def torchvision_pixels(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray[Any, Any]:
    steps: list[Any] = [
        transforms.Resize(preprocessing.resize, InterpolationMode(preprocessing.interpolation))
    ]
    if preprocessing.crop_size is not None:
        steps.append(transforms.CenterCrop(preprocessing.crop_size))
    if preprocessing.grayscale:
        steps.insert(0, transforms.Grayscale(num_output_channels=3))
    return np.asarray(transforms.Compose(steps)(image))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(resize=(16, 16)),
        Preprocessing(resize=(9, 14)),
        Preprocessing(resize=(8, 8)),
        Preprocessing(resize=(20, 11), crop_size=(15, 10)),
        Preprocessing(resize=16, crop_size=(14, 14)),
        Preprocessing(resize=15, crop_size=(14, 14)),
        Preprocessing(resize=13, crop_size=(13, 8)),
        Preprocessing(resize=10, crop_size=(17, 17)),
        Preprocessing(resize=10, crop_size=(4, 25)),
        Preprocessing(resize=11, crop_size=(32, 5)),
        Preprocessing(resize=(9, 14), grayscale=True),
        Preprocessing(resize=10, crop_size=(17, 17), grayscale=True),
    ],
    ids=lambda value: value.describe(),
)
def test_preprocess_as_torchvision(preprocessing: Preprocessing, shape: tuple[int, int]) -> None:
    image = noise(*shape)
    pixels = preprocess(image, preprocessing)
    assert pixels.shape == (*preprocessing.input_size, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, torchvision_pixels(image, preprocessing))


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_preprocess_filters_as_torchvision(interpolation: Interpolation) -> None:
    preprocessing = Preprocessing(resize=12, crop_size=(12, 10), interpolation=interpolation)
    image = noise(41, 29)
    pixels = preprocess(image, preprocessing)
    np.testing.assert_array_equal(pixels, torchvision_pixels(image, preprocessing))


def test_preprocess_filters_differ() -> None:
    image = noise(41, 29)
    results = {
        preprocess(image, Preprocessing(resize=(12, 12), interpolation=name)).tobytes()
        for name in get_args(Interpolation)
    }
    assert len(results) == len(get_args(Interpolation))


def test_preprocess_into_one_row_of_a_batch() -> None:
    batch = np.full((3, 8, 8, 3), 7, np.uint8)
    preprocessing = Preprocessing(resize=(8, 8))
    preprocess(noise(20, 20), preprocessing, batch[1])
    np.testing.assert_array_equal(batch[1], preprocess(noise(20, 20), preprocessing))
    assert (batch[[0, 2]] == 7).all()


def test_preprocess_refuses_a_very_long_image() -> None:
    with pytest.raises(OversizeError, match=r"1x100000 pixels.*6,553,600,000 pixels") as caught:
        preprocess(noise(100_000, 1), Preprocessing(resize=256, crop_size=(224, 224)))
    assert isinstance(caught.value, InputError)
    assert caught.value.hint


def test_preprocess_limit_is_that_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessing = Preprocessing(resize=8, crop_size=(8, 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    assert preprocess(noise(4, 8), preprocessing).shape == (8, 8, 3)
    with pytest.raises(OversizeError):
        preprocess(noise(4, 9), preprocessing)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert preprocess(noise(4, 9), preprocessing).shape == (8, 8, 3)


def test_preprocess_grey_into_a_buffer() -> None:
    image, out = noise(31, 47), np.empty((9, 14, 3), np.uint8)
    preprocessing = Preprocessing(resize=(9, 14), grayscale=True)
    assert preprocess(image, preprocessing, out) is out
    np.testing.assert_array_equal(out, preprocess(image, preprocessing))


def test_make_grey_as_pillow() -> None:
    images = [noise(7, 12), noise(7, 12).rotate(180)]
    grey = make_grey(np.stack([np.asarray(image) for image in images]))
    expected = [np.asarray(image.convert("L").convert("RGB")) for image in images]
    np.testing.assert_array_equal(grey, np.stack(expected))
    np.testing.assert_array_equal(make_grey(grey), grey)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", [(31, 47), (64, 33), (5, 4)])
@pytest.mark.parametrize(
    "fields",
    [
        {"resize": (9, 14)},
        {"resize": (9, 14), "interpolation": "bicubic"},
        {"resize": 16, "crop_size": (14, 13)},
        {"resize": 10, "crop_size": (17, 25), "grayscale": True},
    ],
)
def test_preprocess_to_floats_as_torchvision(
    fields: dict[str, Any], shape: tuple[int, int], antialias: bool
) -> None:
    recorded = Preprocessing(**fields, antialias=antialias, pixels="float32", mean=ZEROS, std=ONES)
    image = noise(*shape)
    pixels = preprocess(image, recorded)
    assert (pixels.dtype, pixels.shape) == (np.float32, (*recorded.input_size, 3))
    expected = torchvision_transform(recorded)(image).transpose(1, 2, 0) * 255
    assert np.abs(pixels - expected).max() < 1e-3  # of a grey level
    assert (pixels % 1 != 0).any()


def test_preprocess_to_floats_of_the_right_size() -> None:
    image, out = noise(8, 8), np.full((8, 8, 3), np.nan, np.float32)
    steps = Preprocessing(resize=(8, 8), antialias=False, pixels="float32")
    assert preprocess(image, steps, out) is out
    np.testing.assert_array_equal(out, np.asarray(image))


def test_make_grey_of_floats() -> None:
    pixels = np.asarray(noise(8, 8))
    assert np.abs(make_grey(pixels.astype(np.float32)) - make_grey(pixels)).max() < 0.51
