"""Cosine similarity of embeddings, and the image where it is smallest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deploykit.specs.session import Embeddings
from deploykit.specs.value import Value

#: The least cosine similarity at which an FP32 graph gives the trained network's embeddings.
#: Rounding leaves 1 - 1e-8 and better; a BatchNorm2d that was folded into the tensor, 0.99996.
LEAST_SIMILARITY = 0.99999


class Similarity(Value, frozen=True):
    """How near embeddings are to the reference's.

    Attributes:
        images: How many were compared.
        smallest: The smallest cosine similarity, -1..1; 1 without any image.
        path: Of which image.
        zeros: How many images have embeddings of nothing but zeros in both, which count as equal.
    """

    images: int = 0
    smallest: float = 1.0
    path: str = ""
    zeros: int = 0

    @property
    def passed(self) -> bool:
        """Whether some were compared, not all of them zeros, and all are near enough."""
        return self.zeros < self.images and self.smallest >= LEAST_SIMILARITY


def similarity_of(
    paths: Sequence[str], cosines: npt.NDArray[np.float64], zeros: npt.NDArray[np.bool_]
) -> Similarity:
    """What was found of several images.

    Args:
        paths: Their names.
        cosines: (N,), from :func:`cosine_similarities`.
        zeros: (N,), from :func:`both_zero`.
    """
    if not len(cosines):
        return Similarity()
    worst = int(np.argmin(cosines))
    return Similarity(
        images=len(cosines),
        smallest=float(cosines[worst]),
        path=paths[worst],
        zeros=int(zeros.sum()),
    )


def both_zero(right: Embeddings, found: Embeddings) -> npt.NDArray[np.bool_]:
    """Which rows are nothing but zeros in both; (N,)."""
    return np.asarray(~right.any(axis=1) & ~found.any(axis=1))


def cosine_similarities(right: Embeddings, found: Embeddings) -> npt.NDArray[np.float64]:
    """The cosine similarity of each row with its counterpart.

    Two rows of zeros are equal: 1. One row of zeros has no direction: 0. So has one with NaN or
    infinity: -1.

    Args:
        right: (N, E).
        found: (N, E).

    Returns:
        (N,), each in -1..1.
    """
    pair = [each.astype(np.float64) for each in (right, found)]
    finite = np.logical_and.reduce([np.isfinite(each).all(axis=1) for each in pair])
    # By the largest value first, so that no square is too large or too small for float64.
    scaled = []
    for each in pair:
        usable = np.where(finite[:, None], each, 0)
        largest = np.abs(usable).max(axis=1, keepdims=True, initial=0)
        usable = usable / np.where(largest == 0, 1, largest)
        length = np.linalg.norm(usable, axis=1, keepdims=True)
        scaled.append(usable / np.where(length == 0, 1, length))
    cosines = np.asarray((scaled[0] * scaled[1]).sum(axis=1))
    equal = both_zero(right, found)
    return np.where(finite, np.where(equal, 1.0, np.clip(cosines, -1, 1)), -1.0)
