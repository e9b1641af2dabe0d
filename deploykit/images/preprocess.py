"""A decoded photo to the network's input size, pixel for pixel as torchvision does it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from deploykit.errors import InputError

if TYPE_CHECKING:
    from deploykit.specs.preprocessing import Interpolation, Preprocessing, Size

Pixels: TypeAlias = npt.NDArray[np.uint8 | np.float32]
"""(H, W, 3), 0..255: uint8, or float32 where training does not round resized pixels."""

#: What Pillow weighs R, G and B with: ITU-R 601-2.
_LUMA = np.array([[0.299], [0.587], [0.114]], np.float32)
#: 48 bits: that two of a million photos share them is as likely as 1 in 500.
_DIGEST_BYTES = 6


class OversizeError(InputError):
    """An image so narrow that resizing its shorter side gives a huge one."""


def preprocess(
    image: Image.Image, preprocessing: Preprocessing, out: Pixels | None = None
) -> Pixels:
    """Make an image grey if training did, resize and crop it.

    Args:
        image: A decoded image in mode RGB.
        preprocessing: What was done in training. Scaling and normalising are the graph's.
        out: Its place in a batch, (H, W, 3), overwritten; None for an array of its own.

    Returns:
        (H, W, 3) RGB of ``preprocessing.pixel_type``, H and W being ``preprocessing.input_size``.

    Raises:
        OversizeError: The resized image would have more pixels than Pillow takes for harmless.
    """
    if preprocessing.grayscale:
        image = image.convert("L")
    height, width = resized_size(image, preprocessing.resize)
    if out is None:
        out = np.empty((*preprocessing.input_size, 3), preprocessing.pixel_type)
    if preprocessing.pixels:
        out[...] = _unrounded(image, (height, width), preprocessing)
        return out
    if image.size != (width, height):
        size = (height, width)
        image = resized(image, size, preprocessing.interpolation, antialias=preprocessing.antialias)
    image = _cropped(image, preprocessing.crop_size)
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


def _unrounded(
    image: Image.Image, size: Size, preprocessing: Preprocessing
) -> npt.NDArray[np.float32]:
    """Resize and crop as training does a tensor of floats: (H, W, C), C 1 of a grey image."""
    interpolation = preprocessing.interpolation
    if preprocessing.antialias:
        # torch's filters are Pillow's. A plane at a time: the floats of a large photo take memory.
        resampling = Image.Resampling[interpolation.upper()]
        planes = [
            image.getchannel(band).convert("F").resize(size[::-1], resampling)
            for band in image.getbands()
        ]
    else:
        from deploykit.images.sampling import resize_without_antialias

        pixels = np.atleast_3d(np.asarray(image))
        shrunk = resize_without_antialias(pixels, size, interpolation, rounded=False)
        planes = [*map(Image.fromarray, np.moveaxis(shrunk, -1, 0))]
    return np.stack(
        [np.asarray(_cropped(plane, preprocessing.crop_size)) for plane in planes], axis=-1
    )


def _cropped(image: Image.Image, crop_size: Size | None) -> Image.Image:
    """The centre of an image; one that is too small gets a black border."""
    if crop_size is None:
        return image
    height, width = crop_size
    top, left = _crop_start(image.height, height), _crop_start(image.width, width)
    return image.crop((left, top, left + width, top + height))


def make_grey(pixels: Pixels) -> Pixels:
    """Make RGB pixels (..., 3) grey, three equal channels, as Pillow's ``convert("L")`` does."""
    if pixels.dtype != np.uint8:
        return np.repeat(pixels @ _LUMA, 3, axis=-1)
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


def pixel_digest(image: Pixels) -> str:
    """The start of the SHA-256 of an image's pixels, (H, W, 3): equal for duplicates."""
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()[:_DIGEST_BYTES].hex()
