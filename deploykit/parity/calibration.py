"""Calibration: which part of a tensor's values, seen on photos, INT8 spends its 256 steps on."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

#: ``minmax`` holds the values of all photos; ``percentile`` of the photos' own extremes the 95th
#: percentile, of 64 photos all but 3 at either end: one photo that answers four times as loudly
#: makes every step four times as coarse.
#: What clips single values of a photo (a percentile of the values, the least mean squared error)
#: moved probabilities 2 to 6 times as far on dpn92 and efficientnet_b0.
CalibrationMethod: TypeAlias = Literal["minmax", "percentile"]
CALIBRATION_METHODS: tuple[CalibrationMethod, ...] = get_args(CalibrationMethod)

_PHOTOS_FOR_ONE_LEFT_OUT = 20


class Interval(NamedTuple):
    """The values that INT8 can hold of a tensor; 0 is one of them, or padding would be wrong."""

    low: float
    high: float


def calibration_methods(photos: int) -> tuple[CalibrationMethod, ...]:
    """The methods that differ on so many photos: of fewer than 20 a twentieth is none."""
    return CALIBRATION_METHODS if photos >= _PHOTOS_FOR_ONE_LEFT_OUT else ("minmax",)


class ValueRange:
    """The lowest and the highest value of a tensor on each photo.

    Attributes:
        is_finite: Whether no value was NaN or infinite; photos with such values are left out.
    """

    def __init__(self) -> None:
        self.is_finite = True
        self._extremes: list[tuple[float, float]] = []

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take note of a batch.

        Args:
            values: (N, ...), the photos along the first dimension.
        """
        for photo in values:
            extremes = float(photo.min(initial=0.0)), float(photo.max(initial=0.0))
            if np.isfinite(extremes).all():
                self._extremes.append(extremes)
            else:
                self.is_finite = False

    def interval(self, method: CalibrationMethod) -> Interval:
        """The values to hold; what lies beyond is clipped.

        Args:
            method: How to choose.
        """
        if not self._extremes:
            return Interval(0.0, 0.0)
        count = len(self._extremes)
        left_out = 0 if method == "minmax" else count // _PHOTOS_FOR_ONE_LEFT_OUT
        lows, highs = np.sort(np.array(self._extremes), axis=0).T
        return Interval(float(lows[left_out]), float(highs[count - 1 - left_out]))
