"""Find out what a training transform does to photos, by comparing its values with what we can do.

A transform makes numbers of a photo. Whatever it does to the pixels, scaling and normalising are
then a straight line in each channel: where the line through (our pixel, its value) leaves no
residual, our pixels are its pixels, and slope and offset tell mean and standard deviation.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from deploykit.images.pixel_steps import (
    CHANNELS,
    PixelSteps,
    Treatment,
    Triple,
    ordered,
    recorded_treatment,
    take_steps,
)
from deploykit.images.preprocess import OversizeError
from deploykit.images.usual import FILTERS_USED, NORMALISATIONS, usual_sizes
from deploykit.specs.preprocessing import Preprocessing, Size
from deploykit.specs.value import Value

#: In grey levels. A transform that resizes in floating point leaves 0.3, and one that makes grey
#: before it resizes, so that bytes are rounded in another order, 0.5.
EXPLAINED_RESIDUAL = 0.7
#: Below this a difference of two residuals, in grey levels, says nothing.
_TIE = 0.02
#: A mean or standard deviation, of an image in 0..1, is taken for a usual one within this.
_ALIKE, _ALIKE_AFTER_ROUNDING = 1e-5, 5e-4
_WHOLE_WITHIN = 0.05  # grey levels
_PHOTOS_FOR_SIZES = 3
_PIXELS_SAMPLED = 20_000

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TransformedPhoto:
    """A photo, and what the transform made of it.

    Attributes:
        open: Decodes the photo: RGB, with what its file told of its orientation.
        turned: Whether its EXIF orientation says that it is to be turned.
        elongation: Its longer side by its shorter.
        values: (3, H, W) float32.
    """

    open: Callable[[], Image.Image]
    turned: bool
    elongation: float
    values: Values

    @property
    def size(self) -> Size:
        """Height and width of what the transform made."""
        _, height, width = self.values.shape
        return height, width


class Explanation(Value, frozen=True):
    """What comes nearest to a transform.

    Attributes:
        treatment: The same in our steps.
        residual: In grey levels, the root mean square difference on the photo that fits worst.
        worst: In grey levels, the largest difference of a pixel.
        whole: Whether the transform's values stand for whole grey levels; if not, it resized in
            floating point.
        tried: How many candidates were compared.
    """

    treatment: Treatment
    residual: float
    worst: float
    whole: bool
    tried: int

    @property
    def explained(self) -> bool:
        """Whether the difference is no more than rounding."""
        return self.residual <= EXPLAINED_RESIDUAL


def explain(
    photos: Sequence[TransformedPhoto], recorded: Preprocessing, read: Treatment | None = None
) -> Explanation | None:
    """Find the treatment that comes nearest to a transform.

    Args:
        photos: A few, among them photos with an orientation if there are any; at least one.
        recorded: What the bundle records; between equals, what is nearer to it is taken.
        read: What the transform says that it does. It is believed where its values agree.

    Returns:
        The explanation; None where no candidate's pixels rise with the transform's values.
    """
    if read is not None:
        found = _compared(read, photos, tried=1)
        if found is not None and found.explained:
            return found
    # Photos that are not turned come first, for they leave one question fewer, and of those the
    # long ones, which tell a crop from a stretch.
    photos = sorted(photos, key=lambda photo: (photo.turned, -photo.elongation))
    few = photos[:_PHOTOS_FOR_SIZES]
    few = [photo for photo in few if not photo.turned] or few
    # They are looked at again and again, so they stay decoded.
    few = [dataclasses.replace(photo, open=functools.cache(photo.open)) for photo in few]
    candidates = _candidates(photos[0].size, recorded, turned=few[0].turned)
    best, tried = _nearest(candidates, few)
    if best is None:
        return None
    ways = [msgspec.structs.replace(best.steps, upright=upright) for upright in (False, True)]
    best, _ = _nearest(ways, photos)
    if best is None:
        return None
    known = [(recorded.mean, recorded.std), *NORMALISATIONS.values()]
    within = _ALIKE if best.residual < _TIE else _ALIKE_AFTER_ROUNDING
    treatment = Treatment(
        steps=best.steps,
        mean=_recognised(best.mean, [mean for mean, _ in known], within),
        std=_recognised(best.std, [std for _, std in known], within),
    )
    return _compared(treatment, photos, tried=tried)


def _candidates(size: Size, recorded: Preprocessing, *, turned: bool) -> list[PixelSteps]:
    """The usual ways to get the size, with every filter; what is most like the bundle's first."""
    own = recorded_treatment(recorded).steps
    sizes = list(usual_sizes(size))
    if recorded.input_size == size:
        sizes.append((own.resize, own.crop_size))
    candidates = [
        PixelSteps(
            resize=resize,
            crop_size=crop_size,
            interpolation=name,
            antialias=antialias,
            upright=upright,
        )
        for resize, crop_size in dict.fromkeys(sizes)
        for name, antialias in FILTERS_USED
        for upright in ((False, True) if turned else (False,))
    ]

    def unlike(steps: PixelSteps) -> int:
        return sum(
            (
                (steps.resize, steps.crop_size) != (own.resize, own.crop_size),
                (steps.interpolation, steps.antialias) != (own.interpolation, own.antialias),
                steps.upright != own.upright,
            )
        )

    return sorted(candidates, key=unlike)


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


def _nearest(
    candidates: Iterable[PixelSteps], photos: Sequence[TransformedPhoto]
) -> tuple[_Fitted | None, int]:
    """The first candidate that fits exactly, else the one that fits best; and how many were tried.

    Of those that fit alike the first is taken.
    """
    values = np.concatenate([_sampled(photo.values.transpose(1, 2, 0)) for photo in photos])
    best: _Fitted | None = None
    tried = 0
    for steps in candidates:
        for fitted in _fits(steps, photos, values):
            tried += 1
            if best is None or fitted.residual < best.residual - _TIE:
                best = fitted
        if best is not None and best.residual < _TIE:
            break
    return best, tried


def _fits(
    steps: PixelSteps, photos: Sequence[TransformedPhoto], values: npt.NDArray[np.float64]
) -> Iterator[_Fitted]:
    """Fit the line for every order of channels; yields nothing where there is no line."""
    try:
        colours = msgspec.structs.replace(steps, channels="RGB")
        pixels = [take_steps(photo.open(), colours) for photo in photos]
    except OversizeError:
        return
    if any(each.shape[:2] != photos[0].size for each in pixels):
        return
    for channels in CHANNELS:
        given = np.concatenate([_sampled(ordered(each, channels)) for each in pixels])
        line = _line(given, values)
        if line is not None:
            yield _Fitted(msgspec.structs.replace(steps, channels=channels), *line)


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


def _triple(values: Iterable[float]) -> Triple:
    red, green, blue = map(float, values)
    return red, green, blue


def _recognised(values: Triple, known: Sequence[Triple], within: float) -> Triple:
    """The usual values that these are, in either order of channels; else what they round to."""
    for usual in itertools.chain.from_iterable((each, each[::-1]) for each in known):
        if all(abs(a - b) < within for a, b in zip(values, usual, strict=True)):
            return usual
    return _triple(
        short if abs((short := round(value, 4)) - value) < within else value for value in values
    )


def _compared(
    treatment: Treatment, photos: Sequence[TransformedPhoto], *, tried: int
) -> Explanation | None:
    """Look at every pixel of every photo; None where a treatment gives another size."""
    mean, std = np.array(treatment.mean), np.array(treatment.std)
    residuals, worst, whole = [], 0.0, True
    for photo in photos:
        try:
            pixels = take_steps(photo.open(), treatment.steps)
        except OversizeError:
            return None
        if pixels.shape[:2] != photo.size:
            return None
        levels = (photo.values.transpose(1, 2, 0) * std + mean) * 255
        differences = np.abs(levels.clip(0, 255) - pixels)
        residuals.append(float(np.sqrt((differences**2).mean())))
        worst = max(worst, float(differences.max()))
        whole = whole and bool((np.abs(levels - np.rint(levels)) < _WHOLE_WITHIN).all())
    return Explanation(
        treatment=treatment, residual=max(residuals), worst=worst, whole=whole, tried=tried
    )
