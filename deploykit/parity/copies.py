"""Images with the same pixels: one observation, however many files hold it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt


def pixel_digest(image: npt.NDArray[np.uint8]) -> bytes:
    """What tells an image's pixels, (H, W, 3), from those of every other."""
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()


def count_distinct(rows: npt.NDArray[np.bool_], firsts: Sequence[int]) -> int:
    """How many different images some rows show.

    Args:
        rows: (N,) which of them.
        firsts: N places, of the first image with the same pixels as each.
    """
    return len(np.unique(np.asarray(firsts, np.int64)[rows]))


def once_each(rows: Iterable[int], firsts: Sequence[int] | None) -> list[int]:
    """Leave out the rows of images with the same pixels as one before them.

    Args:
        rows: Places of images, in the order of their worth.
        firsts: For each image the place of the first with the same pixels; None where all differ.
    """
    kept: dict[int, int] = {}
    for row in rows:
        kept.setdefault(row if firsts is None else firsts[row], row)
    return [*kept.values()]
