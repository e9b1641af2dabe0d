"""Calibration: which part of a tensor's values, seen on images, the 256 steps of INT8 cover."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

#: ``minmax`` holds the values of all images; ``trimmed`` those of all but the twentieth of them
#: that are most extreme, of 64 images all but 3 at either end: one image whose values are four
#: times as large makes every step four times as coarse.
#: What clips single values of an image (a percentile of the values, the least mean squared error)
#: moved probabilities 2 to 6 times as far on dpn92 and efficientnet_b0.
CalibrationMethod: TypeAlias = Literal["minmax", "trimmed"]
CALIBRATION_METHODS: tuple[CalibrationMethod, ...] = get_args(CalibrationMethod)

_IMAGES_FOR_ONE_SKIPPED = 20


class Interval(NamedTuple):
    """The values that INT8 can hold of a tensor; 0 is one of them, or padding would be wrong."""

    low: float
    high: float


def calibration_methods(images: int) -> tuple[CalibrationMethod, ...]:
    """The methods that differ on so many images: of fewer than 20 a twentieth is none."""
    return CALIBRATION_METHODS if images >= _IMAGES_FOR_ONE_SKIPPED else ("minmax",)


class ValueRange:
    """The lowest and the highest value of a tensor on each image.

    Attributes:
        is_finite: Whether no value was NaN or infinite; images with such values are skipped.
    """

    def __init__(self) -> None:
        self.is_finite = True
        self._extremes: list[tuple[float, float]] = []

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take note of an image.

        Args:
            values: Of any shape: a transformer's first dimension may be its tokens.
        """
        extremes = float(values.min(initial=0.0)), float(values.max(initial=0.0))
        if np.isfinite(extremes).all():
            self._extremes.append(extremes)
        else:
            self.is_finite = False

    def interval(self, method: CalibrationMethod) -> Interval:
        """The values to hold; what lies beyond is clipped."""
        if not self._extremes:
            return Interval(0.0, 0.0)
        count = len(self._extremes)
        skipped = 0 if method == "minmax" else count // _IMAGES_FOR_ONE_SKIPPED
        lows, highs = np.sort(np.array(self._extremes), axis=0).T
        return Interval(float(lows[skipped]), float(highs[count - 1 - skipped]))
