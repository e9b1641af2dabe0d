"""Resizing without antialiasing: each pixel from its nearest neighbours, however far it shrinks.

It is what ``torch.nn.functional.interpolate`` does, hence torchvision's ``Resize`` of a tensor with
``antialias=False``, and, but for the rounding, OpenCV's ``resize``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deploykit.specs.preprocessing import Interpolation, Size

_CUBIC = -0.75  # of the convolution kernel of Keys (1981); Pillow has -0.5


def resize_without_antialias(
    pixels: npt.NDArray[np.uint8],
    size: Size,
    interpolation: Interpolation,
    *,
    rounded: bool = True,
) -> npt.NDArray[np.uint8 | np.float32]:
    """Resize an image.

    Args:
        pixels: (H, W, C).
        size: The new height and width.
        interpolation: One of :data:`deploykit.specs.preprocessing.FILTERS_WITHOUT_ANTIALIAS`.
        rounded: Whether to round to whole grey levels.

    Returns:
        (height, width, C): uint8; float32 if not rounded, which bicubic may take beyond 0..255.
    """
    (rows, row_weights), (columns, column_weights) = (
        _taps(old, new, interpolation) for old, new in zip(pixels.shape[:2], size, strict=True)
    )
    # (taps of rows, height, taps of columns, width, C): of a large photo only what is looked at.
    neighbours = pixels[rows[:, :, None, None], columns].astype(np.float32)
    wide = np.einsum("thswc,sw->thwc", neighbours, column_weights)
    resized = np.einsum("thwc,th->hwc", wide, row_weights)
    if not rounded:
        return np.asarray(resized, np.float32)
    whole: npt.NDArray[np.uint8] = np.clip(np.rint(resized), 0, 255).astype(np.uint8)
    return whole


def _taps(
    old: int, new: int, interpolation: Interpolation
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For each pixel of an axis its neighbours: (taps, new) positions, and (taps, new) weights.

    In torch's single precision: on a photo of 2400 pixels double precision gives pixels that are
    0.01 grey levels away.
    """
    scale = float(np.float32(old) / np.float32(new))
    centres = (np.arange(new) + 0.5) * scale - 0.5
    centres = centres.astype(np.float32).astype(np.float64)
    if interpolation == "nearest":
        # In single precision, as torch: it decides where a product falls on a whole number.
        positions = np.floor(np.arange(new, dtype=np.float32) * np.float32(scale))[None]
        weights = np.ones((1, new))
    elif interpolation == "bilinear":
        centres = centres.clip(0)  # so does torch, and no weight is lost at the border
        first = np.floor(centres)
        part = centres - first
        positions, weights = np.stack([first, first + 1]), np.stack([1 - part, part])
    else:
        first = np.floor(centres)
        offsets = np.arange(-1, 3)[:, None]
        positions = first + offsets
        weights = _cubic(np.abs(centres - first - offsets))
    return positions.clip(0, old - 1).astype(np.int64), weights.astype(np.float32)


def _cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The cubic convolution kernel at distances of 0 to 2 pixels."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
    return np.where(distance <= 1, near, far)
