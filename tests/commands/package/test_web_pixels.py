"""The page's own preprocessing against Pillow's, given the same decoded pixels: equal bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL
import pytest
from node import call_all
from PIL import Image

from deploykit.commands.package.web import pixel_settings
from deploykit.images.preprocess import preprocess
from deploykit.specs.preprocessing import INTERPOLATIONS, Preprocessing

RNG = np.random.default_rng(0)
#: Height and width: shrunk, enlarged, both, of one pixel, as large as the input, and so tall that
#: Pillow 13 begins with the height.
SHAPES = ((61, 97), (97, 61), (9, 7), (5, 50), (1, 40), (24, 18), (70, 30))
#: A stretch; the shorter side with crops inside it, beside it and beyond it.
SIZES: tuple[dict[str, Any], ...] = (
    {"resize": (24, 18)},
    {"resize": 20, "crop_size": (15, 13)},
    {"resize": 21, "crop_size": (18, 24)},
    {"resize": 12, "crop_size": (17, 30)},
)
ORIENTATION = 0x0112


def decoded(image: Image.Image) -> dict[str, Any]:
    """What a browser makes of it."""
    return {"data": image.convert("RGBA").tobytes(), "width": image.width, "height": image.height}


def made_images() -> list[Image.Image]:
    """Noise, which shows every rounding; black and white, which bicubic and Lanczos overshoot."""
    noise = [RNG.integers(0, 256, (*shape, 3), np.uint8) for shape in SHAPES]
    stark = [RNG.choice(np.array([0, 255], np.uint8), (*shape, 3)) for shape in SHAPES]
    return [Image.fromarray(pixels) for pixels in (*noise, *stark)]


def image_of(data: bytes, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, np.uint8).reshape(*size, 3)


@pytest.mark.parametrize("grayscale", [False, True], ids=["RGB", "grey"])
def test_preprocess_is_pillows(grayscale: bool) -> None:
    cases = [
        (image, Preprocessing(**size, interpolation=interpolation, grayscale=grayscale))
        for image in made_images()
        for interpolation in INTERPOLATIONS
        for size in SIZES
    ]
    answers = call_all(
        "pixels.js",
        [
            ("preprocess", [decoded(image), pixel_settings(steps, PIL.__version__)])
            for image, steps in cases
        ],
    )
    for (image, steps), answer in zip(cases, answers, strict=True):
        found = image_of(answer, steps.input_size)
        assert np.array_equal(found, preprocess(image, steps)), (image.size, steps.describe())


def test_preprocess_is_earlier_pillows() -> None:
    image = made_images()[SHAPES.index((70, 30))]
    steps = Preprocessing(resize=(24, 18), interpolation="bicubic")
    versions = ("12.3.0", "13.0.0", "", "odd")
    settings = [pixel_settings(steps, version) for version in versions]
    answers = call_all("pixels.js", [("preprocess", [decoded(image), each]) for each in settings])
    # One side at a time, so that every version of Pillow gives both.
    width_first, height_first = (
        np.asarray(
            image.resize(between, Image.Resampling.BICUBIC).resize(
                (18, 24), Image.Resampling.BICUBIC
            )
        )
        for between in ((18, 70), (30, 24))
    )
    assert not np.array_equal(width_first, height_first)
    wanted = (width_first, height_first, width_first, width_first)
    for answer, each in zip(answers, wanted, strict=True):
        assert np.array_equal(image_of(answer, (24, 18)), each)


def test_preprocess_has_pillows_constants() -> None:
    # Of 9 million pixels of noise the one that is another if 0.54 and 0.46 are not float32.
    row = np.random.default_rng(0).integers(0, 256, (1196, 500), np.uint8)[-1:]
    image = Image.fromarray(row).convert("RGB")
    steps = Preprocessing(resize=(1, 224), interpolation="hamming")
    settings = pixel_settings(steps, PIL.__version__)
    (answer,) = call_all("pixels.js", [("preprocess", [decoded(image), settings])])
    assert np.array_equal(image_of(answer, (1, 224)), preprocess(image, steps))


def test_preprocess_refuses_extreme_shapes() -> None:
    steps = Preprocessing(resize=200, crop_size=(10, 10))
    settings = pixel_settings(steps, PIL.__version__) | {"most_pixels": 200 * 799}
    image = Image.new("RGB", (4, 1))
    with pytest.raises(AssertionError, match="4x1 pixels are too extreme a shape"):
        call_all("pixels.js", [("preprocess", [decoded(image), settings])])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_without_exif_leaves_pixels(kind: str) -> None:
    image = made_images()[0]
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned, plain = io.BytesIO(), io.BytesIO()
    image.save(turned, kind, exif=exif.tobytes())
    image.save(plain, kind)
    cut = turned.getvalue()[:40]
    files = [turned.getvalue(), plain.getvalue(), cut, b"", b"\xff\xd8\xff\xe1"]
    answers = call_all("pixels.js", [("withoutExif", [data]) for data in files])
    stripped = Image.open(io.BytesIO(answers[0]))
    assert ORIENTATION not in stripped.getexif()
    assert np.array_equal(stripped.convert("RGB"), Image.open(turned).convert("RGB"))
    assert answers[1] == files[1]
    assert len(answers[2]) <= len(cut)
    assert answers[3:] == files[3:]
