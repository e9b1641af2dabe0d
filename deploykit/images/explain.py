"""Find out what a training transform does to photos, by comparing its output with what we can do.

A transform is a black box from a photo to numbers. Whatever it does to the pixels, scaling and
normalising are then a straight line in each channel: where the line through (our pixel, its value)
leaves no residual, our pixels are its pixels, and slope and offset tell mean and standard
deviation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from deploykit.images.explanation import TIE, Explanation, TransformedPhoto, judged
from deploykit.images.pixel_steps import CHANNELS, PixelSteps, ordered, recorded_steps, take_steps
from deploykit.images.preprocess import OversizeError
from deploykit.images.usual import FILTERS_USED, Triple, usual_steps
from deploykit.specs.preprocessing import Interpolation, Preprocessing

#: How many ways of getting the size are compared on more photos and with every filter.
_SIZES_KEPT = 5
_PHOTOS_FOR_FILTERS = 3
_PIXELS_SAMPLED = 20_000
_STAND_INS: tuple[Interpolation, ...] = ("bilinear", "nearest")

_Opened: TypeAlias = tuple[Callable[[], Image.Image], TransformedPhoto]


def explain(photos: Sequence[TransformedPhoto], recorded: Preprocessing) -> Explanation | None:
    """Find the steps, mean and standard deviation that come nearest to a transform.

    Args:
        photos: A few, among them photos with an orientation if there are any; at least one.
        recorded: What the bundle records; between equals, what is nearer to it is taken.

    Returns:
        The explanation; None when there are no pixels that rise with the transform's values.
    """
    search = _Search(photos, recorded)
    best = search.run()
    if best is None:
        return None
    return judged(
        best.steps,
        best.mean,
        best.std,
        photos,
        recorded,
        exact=best.residual < TIE,
        tried=search.tried,
    )


@dataclass(frozen=True)
class _Fitted:
    """Steps, and the line from their pixels to a transform's values.

    Attributes:
        steps: From the decoded photo to pixels.
        mean: What the line amounts to.
        std: The same.
        residual: In grey levels, the root mean square of the channel that fits worst.
    """

    steps: PixelSteps
    mean: Triple
    std: Triple
    residual: float


class _Search:
    """Discards ways of getting the size on one photo, filters on a few, the rest on all."""

    def __init__(self, photos: Sequence[TransformedPhoto], recorded: Preprocessing) -> None:
        # Photos that are not turned come first, for they leave one question fewer, and of those
        # the long ones, which tell a crop from a stretch.
        photos = sorted(photos, key=lambda photo: (photo.turned, -photo.elongation))
        self._photos: list[_Opened] = [
            # The few that are looked at again and again stay decoded.
            (functools.cache(photo.open) if place < _PHOTOS_FOR_FILTERS else photo.open, photo)
            for place, photo in enumerate(photos)
        ]
        self._own = recorded_steps(recorded)
        self._size = photos[0].size
        self._sizes = list(usual_steps(self._size))
        if recorded.input_size == self._size:
            self._sizes.insert(0, self._own)
        self.tried = 0

    def run(self) -> _Fitted | None:
        """What fits best; None when nothing does at all."""
        few = self._photos[:_PHOTOS_FOR_FILTERS]
        # Whether photos are turned is asked last: until then those that are would only confuse.
        few = [each for each in few if not each[1].turned] or few
        best = self._nearest(self._fits(self._sizes[:1], few))
        if best is None or best.residual > TIE:
            filters = (
                msgspec.structs.replace(each.steps, interpolation=name, antialias=antialias)
                for each in self._sizes_that_fit()
                for name, antialias in FILTERS_USED
            )
            best = self._nearest(self._fits(filters, few))
        if best is None:
            return None
        ways = [msgspec.structs.replace(best.steps, upright=upright) for upright in (False, True)]
        return self._nearest(self._fits(ways, self._photos))

    def _sizes_that_fit(self) -> list[_Fitted]:
        """The likeliest ways of getting the size, by one photo, whatever the filter."""
        first = self._photos[:1]
        turns = (False, True) if first[0][1].turned else (False,)
        # What averages over neighbours is like bilinear, and what does not is like nearest.
        ways = (
            msgspec.structs.replace(steps, interpolation=name, antialias=True, upright=upright)
            for steps in self._sizes
            for upright in turns
            for name in _STAND_INS
        )
        found: dict[tuple[object, ...], _Fitted] = {}
        for fitted in sorted(self._fits(ways, first), key=lambda fitted: fitted.residual):
            steps = fitted.steps
            found.setdefault((steps.resize, steps.crop_size, steps.upright), fitted)
        return list(found.values())[:_SIZES_KEPT]

    def _fits(self, ways: Iterable[PixelSteps], photos: Sequence[_Opened]) -> list[_Fitted]:
        return [fitted for steps in ways for fitted in self._fit(steps, photos)]

    def _fit(self, steps: PixelSteps, photos: Sequence[_Opened]) -> Iterator[_Fitted]:
        """Fit the line for every order of channels; yields nothing where there is no line."""
        try:
            colours = msgspec.structs.replace(steps, channels="RGB")
            pixels = [take_steps(opened(), colours) for opened, _ in photos]
        except OversizeError:
            return
        if any(each.shape[:2] != self._size for each in pixels):
            return
        values = np.concatenate([_sampled(photo.values.transpose(1, 2, 0)) for _, photo in photos])
        for channels in CHANNELS:
            self.tried += 1
            given = np.concatenate([_sampled(ordered(each, channels)) for each in pixels])
            line = _line(given, values)
            if line is not None:
                yield _Fitted(msgspec.structs.replace(steps, channels=channels), *line)

    def _nearest(self, fits: Sequence[_Fitted]) -> _Fitted | None:
        """What fits best, and of equals what is most like the bundle's."""
        if not fits:
            return None
        least = min(fitted.residual for fitted in fits)
        equals = [fitted for fitted in fits if fitted.residual <= least + TIE]
        return max(equals, key=lambda fitted: _likeness(fitted.steps, self._own))


def _likeness(steps: PixelSteps, other: PixelSteps) -> int:
    """How many fields two ways have in common; how the size comes about is one."""
    return sum(
        (
            (steps.resize, steps.crop_size) == (other.resize, other.crop_size),
            steps.interpolation == other.interpolation,
            steps.antialias == other.antialias,
            steps.upright == other.upright,
            steps.channels == other.channels,
        )
    )


def _sampled(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Some of the pixels of (H, W, 3), as (n, 3) float64: a line needs few."""
    flat = pixels.reshape(-1, 3)
    return flat[:: max(1, len(flat) // _PIXELS_SAMPLED)].astype(np.float64)


def _line(
    pixels: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> tuple[Triple, Triple, float] | None:
    """Mean, standard deviation and residual of the least-squares line in each channel.

    Args:
        pixels: (n, 3), 0..255.
        values: (n, 3).

    Returns:
        None where the pixels do not vary, or the values do not rise with them.
    """
    # Black and white may stand for what was cut off: bicubic overshoots, and bytes cannot.
    inside = ((pixels > 0) & (pixels < 255)).all(axis=1)
    if not inside.any():
        return None
    pixels, values = pixels[inside], values[inside]
    x, y = pixels - pixels.mean(axis=0), values - values.mean(axis=0)
    variance = (x**2).mean(axis=0)
    if (variance == 0).any():
        return None
    slope = (x * y).mean(axis=0) / variance  # 1 / (255 std)
    if (slope <= 0).any():
        return None
    offset = values.mean(axis=0) - slope * pixels.mean(axis=0)  # -mean / std
    residual = np.sqrt(((y - slope * x) ** 2).mean(axis=0)) / slope
    std = 1 / (255 * slope)
    return _triple(-offset * std), _triple(std), float(residual.max())


def _triple(values: npt.NDArray[np.float64]) -> Triple:
    red, green, blue = values.tolist()
    return red, green, blue
