"""What tells an image from every other: a duplicate has the same pixels under another name."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def pixel_digest(image: npt.NDArray[np.uint8]) -> bytes:
    """What tells an image's pixels, (H, W, 3), from those of every other."""
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()
