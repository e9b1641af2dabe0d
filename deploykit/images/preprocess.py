"""A decoded photo to the network's input size, pixel for pixel as torchvision does it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from deploykit.errors import InputError

if TYPE_CHECKING:
    from deploykit.specs.preprocessing import Interpolation, Preprocessing, Size

#: 48 bits: that two of a million photos share them is as likely as 1 in 500.
_DIGEST_BYTES = 6


class OversizeError(InputError):
    """An image so narrow that resizing its shorter side gives a huge one."""


def preprocess(
    image: Image.Image, preprocessing: Preprocessing, out: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Make an image grey if training did, resize and crop it.

    Args:
        image: A decoded image in mode RGB.
        preprocessing: What was done in training. Scaling and normalising are the graph's.
        out: Its place in a batch, (H, W, 3), overwritten; None for an array of its own.

    Returns:
        (H, W, 3) uint8 RGB, H and W being ``preprocessing.input_size``.

    Raises:
        OversizeError: The resized image would have more pixels than Pillow takes for harmless.
    """
    if preprocessing.grayscale:
        image = image.convert("L")
    height, width = resized_size(image, preprocessing.resize)
    if image.size != (width, height):
        size = (height, width)
        image = resized(image, size, preprocessing.interpolation, antialias=preprocessing.antialias)
    if preprocessing.crop_size is not None:
        # The centre; an image that is too small gets a black border.
        height, width = preprocessing.crop_size
        top, left = _crop_start(image.height, height), _crop_start(image.width, width)
        image = image.crop((left, top, left + width, top + height))
    if out is None:
        out = np.empty((image.height, image.width, 3), np.uint8)
    pixels = np.asarray(image)
    out[...] = pixels[..., np.newaxis] if preprocessing.grayscale else pixels
    return out


def resized(
    image: Image.Image, size: Size, interpolation: Interpolation, *, antialias: bool
) -> Image.Image:
    """Resize an image in mode RGB or L, as Pillow does or without antialiasing."""
    if antialias:
        return image.resize(size[::-1], Image.Resampling[interpolation.upper()])
    from deploykit.images.sampling import resize_without_antialias  # few bundles need it

    pixels = np.asarray(image)
    shrunk = resize_without_antialias(np.atleast_3d(pixels), size, interpolation)
    return Image.fromarray(shrunk.reshape(*size, *pixels.shape[2:]))


def make_grey(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Make RGB pixels (..., 3) grey, three equal channels, as Pillow's ``convert("L")`` does."""
    grey = np.asarray(Image.fromarray(pixels.reshape(-1, 1, 3)).convert("L"))
    return np.repeat(grey.reshape(*pixels.shape[:-1], 1), 3, axis=-1)


def resized_size(image: Image.Image, resize: int | Size) -> Size:
    """The size after resizing; of a longer side, the fraction of a pixel is dropped.

    Args:
        image: What is resized.
        resize: The shorter side, or (height, width).

    Raises:
        OversizeError: The resized image would have more pixels than Pillow takes for harmless.
    """
    if not isinstance(resize, int):
        return resize
    shorter, longer = sorted(image.size)
    longer = resize * longer // shorter
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and resize * longer > 2 * limit:
        raise OversizeError(
            f"{image.width}x{image.height} pixels, resized to {resize} on the shorter side, "
            f"make {resize * longer:,} pixels, over the limit of {2 * limit:,}.",
            hint="Leave the image out, or cut it to a less extreme shape.",
        )
    return (longer, resize) if image.height > image.width else (resize, longer)


def _crop_start(length: int, crop: int) -> int:
    """Where a centred crop begins on one axis, in pixels; negative where it must be padded.

    An odd pixel to pad goes to the end; an odd pixel to cut goes where Python's ``round``, to the
    even number, puts it: this is what torchvision's ``CenterCrop`` does.
    """
    if length < crop:
        return -((crop - length) // 2)
    return round((length - crop) / 2)


def pixel_digest(image: npt.NDArray[np.uint8]) -> str:
    """The start of the SHA-256 of an image's pixels, (H, W, 3): equal for duplicates."""
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()[:_DIGEST_BYTES].hex()
