"""Whether a transform flips photos: told by what is where in them, before anything is explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from deploykit.images.explanation import TransformedPhoto, Values

Flip: TypeAlias = Literal[
    "none", "mirrored left for right", "mirrored upside down", "turned by 180 degrees"
]
FLIPS: tuple[Flip, ...] = get_args(Flip)
#: Of an image (3, H, W) the axes that are turned around.
_AXES: dict[Flip, tuple[int, ...]] = {
    "none": (),
    "mirrored left for right": (2,),
    "mirrored upside down": (1,),
    "turned by 180 degrees": (1, 2),
}
_CELLS = 8
_Array = TypeVar("_Array", Values, npt.NDArray[np.float64])


def flipped(values: _Array, flip: Flip) -> _Array:
    """Flip an image.

    Args:
        values: (C, H, W).
        flip: How. Twice the same is none.
    """
    return np.ascontiguousarray(np.flip(values, _AXES[flip]))


def likely_flip(photos: Sequence[TransformedPhoto]) -> Flip:
    """How a transform flips photos, by a coarse look at where they are bright.

    A crop or a filter hardly changes that, whereas most photos are not symmetrical.

    Args:
        photos: At least one; those that are not turned by EXIF decide where there are any.
    """
    upright = [photo for photo in photos if not photo.turned] or photos
    likeness = dict.fromkeys(FLIPS, 0.0)
    for photo in upright:
        seen = _coarse(photo.open().convert("F"))
        given = _coarse(Image.fromarray(photo.values.mean(axis=0)))
        for flip in FLIPS:
            likeness[flip] += float((flipped(given, flip) * seen).mean())
    return max(likeness, key=lambda flip: likeness[flip])


def _coarse(image: Image.Image) -> npt.NDArray[np.float64]:
    """Brightness in a few cells, (1, 8, 8), of mean 0 and standard deviation 1 or 0."""
    cells = np.asarray(image.resize((_CELLS, _CELLS), Image.Resampling.BOX), np.float64)
    cells -= cells.mean()
    return (cells / (cells.std() or 1.0))[None]
