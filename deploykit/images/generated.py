"""Made images, for when there are no photos."""

from __future__ import annotations

import numpy as np
from PIL import Image

from deploykit.session import ImageBatch
from deploykit.specs import Size


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
        picture = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
        image[:] = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    return images
