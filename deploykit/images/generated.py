"""Made images: some that look like photos, for when there are none, and some unlike any photo."""

from __future__ import annotations

import numpy as np
from PIL import Image

from deploykit.specs.preprocessing import Size
from deploykit.specs.session import ImageBatch


def generated_images(count: int, size: Size, seed: int = 0) -> ImageBatch:
    """Make images that vary as photos do: in colour, brightness, contrast and coarseness.

    White noise looks the same to a trained network whatever the seed; here each image is noise of
    its own coarseness, from flat areas to fine grain, around a colour of its own.

    Returns:
        (count, H, W, 3) uint8, the same for the same arguments.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    images = np.empty((count, height, width, 3), np.uint8)
    for image in images:
        cells = int(rng.integers(2, 33))
        colour = rng.uniform(40, 216, 3)
        contrast = rng.uniform(15, 90)
        coarse = colour + contrast * rng.standard_normal((cells, cells, 3))
        cells_image = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
        image[:] = np.asarray(cells_image.resize((width, height), Image.Resampling.BICUBIC))
    return images


#: Of the extreme images those of one colour: a covered lens, an overexposed sensor.
COLOURS = {
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
}


def extreme_images(size: Size) -> dict[str, ImageBatch]:
    """Make images that no folder of photos has, and that a camera gives all the same.

    Returns:
        By what they show, each (1, H, W, 3) uint8: those of :data:`COLOURS`, in which there is
        nothing to normalise by, and noise of black and full channels.
    """
    shape = (1, *size, 3)
    images = {name: np.full(shape, colour, np.uint8) for name, colour in COLOURS.items()}
    noise = np.random.default_rng(0).integers(2, size=shape, dtype=np.uint8)
    return {**images, "saturated noise": 255 * noise}
