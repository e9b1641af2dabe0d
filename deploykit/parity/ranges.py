"""What FP16 can hold of a graph's tensors, seen on images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.specs.value import Value

#: The largest finite FP16 number (IEEE 754 binary16).
FP16_MAX = 65504.0
#: The part of its L2 norm that a tensor may lose by being rounded to FP16.
MAX_ROUNDING_LOSS = 0.01

# Rounding to nearest is off by at most half a unit in the last place: of 11 significant bits, or
# below the smallest normal number of a fixed step.
_RELATIVE_ERROR = 2.0**-11
_ABSOLUTE_ERROR = 2.0**-25


class TensorRange(Value, frozen=True):
    """A tensor's values over images.

    Attributes:
        name: The tensor's.
        max_abs: The largest absolute value; infinite where a value is not finite.
        rounding_loss: The L2 norm of what rounding to FP16 changes, relative to that of an image's
            values, for the image that loses most. Up to :data:`MAX_ROUNDING_LOSS` it is an upper
            bound, computed from the norm; above it is measured. Infinite where a value overflows.
        images: How many images it was seen on.
    """

    name: str
    max_abs: float
    rounding_loss: float
    images: int

    @property
    def overflows(self) -> bool:
        """Whether a value is beyond FP16's range."""
        return not self.max_abs <= FP16_MAX

    @property
    def fits(self) -> bool:
        """Whether FP16 holds the tensor well enough."""
        return not self.overflows and self.rounding_loss <= MAX_ROUNDING_LOSS


class RangeScan:
    """Collects the ranges of tensors, batch after batch; keeps no values."""

    def __init__(self) -> None:
        self._ranges: dict[str, TensorRange] = {}

    def add(self, tensors: Mapping[str, npt.NDArray[Any]], images: int | None = None) -> None:
        """Take note of a batch.

        Args:
            tensors: By name float arrays (n, ...), the images along the first dimension; any other
                is judged as a whole.
            images: n; None where the first dimension is known to be the images'.
        """
        for name, values in tensors.items():
            found = _range_of(name, values, images)
            known = self._ranges.get(name)
            self._ranges[name] = found if known is None else _united(known, found)

    def ranges(self) -> tuple[TensorRange, ...]:
        """The range of each tensor, in the order in which they were first seen."""
        return tuple(self._ranges.values())


def _range_of(name: str, values: npt.NDArray[Any], images: int | None) -> TensorRange:
    count = len(values) if values.ndim else 0
    by_image = count > 0 and images in (None, count)
    rows = np.asarray(values, np.float32).reshape(count if by_image else 1, -1)
    largest = max(float(rows.max(initial=0.0)), -float(rows.min(initial=0.0)))
    max_abs = largest if math.isfinite(largest) else math.inf
    loss = max(map(_rounding_loss, rows), default=0.0) if max_abs <= FP16_MAX else math.inf
    return TensorRange(name=name, max_abs=max_abs, rounding_loss=loss, images=images or len(rows))


def _rounding_loss(row: npt.NDArray[np.float32]) -> float:
    """What rounding costs one image's values, all of them within FP16's range."""
    squares = float(np.dot(row, row))
    if squares > 0:
        # Rounding a whole network's tensors takes longer than computing them; a norm does not.
        bound = math.sqrt(_RELATIVE_ERROR**2 + row.size * _ABSOLUTE_ERROR**2 / squares)
        if bound <= MAX_ROUNDING_LOSS:
            return bound
    exact = row.astype(np.float64)
    norm = float(np.linalg.norm(exact))
    return float(np.linalg.norm(exact - row.astype(np.float16))) / norm if norm else 0.0


def _united(one: TensorRange, other: TensorRange) -> TensorRange:
    return TensorRange(
        name=one.name,
        max_abs=max(one.max_abs, other.max_abs),
        rounding_loss=max(one.rounding_loss, other.rounding_loss),
        images=one.images + other.images,
    )
