"""The page's own preprocessing against Pillow's, given the same decoded pixels: equal bytes."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from node import call_all
from PIL import Image

from deploykit.commands.package.web import pixel_settings
from deploykit.images.preprocess import preprocess
from deploykit.specs.preprocessing import INTERPOLATIONS, Preprocessing

RNG = np.random.default_rng(0)
#: Height and width: shrunk, enlarged, both, of one pixel, and as large as the input.
SHAPES = ((61, 97), (97, 61), (9, 7), (5, 50), (1, 40), (24, 18))
#: A stretch; the shorter side with crops inside it, beside it and beyond it.
SIZES: tuple[dict[str, Any], ...] = (
    {"resize": (24, 18)},
    {"resize": 20, "crop_size": (15, 13)},
    {"resize": 21, "crop_size": (18, 24)},
    {"resize": 12, "crop_size": (17, 30)},
)


def encoded(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


def decoded(image: Image.Image) -> dict[str, Any]:
    """What a browser makes of it."""
    pixels = image.convert("RGBA").tobytes()
    return {"data": encoded(pixels), "width": image.width, "height": image.height}


def made_images() -> list[Image.Image]:
    """Noise, which shows every rounding, and black and white, which bicubic and Lanczos overshoot."""
    noise = [RNG.integers(0, 256, (*shape, 3), np.uint8) for shape in SHAPES]
    stark = [RNG.choice(np.array([0, 255], np.uint8), (*shape, 3)) for shape in SHAPES]
    return [Image.fromarray(pixels) for pixels in (*noise, *stark)]


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
        [("preprocess", [decoded(image), pixel_settings(steps)]) for image, steps in cases],
    )
    for (image, steps), answer in zip(cases, answers, strict=True):
        found = np.frombuffer(base64.b64decode(answer["base64"]), np.uint8)
        wanted = preprocess(image, steps)
        assert np.array_equal(found.reshape(wanted.shape), wanted), (image.size, steps.describe())
