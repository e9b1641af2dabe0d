"""Find out what a training transform does to images, by comparing pixels with what is usual.

Whatever a transform does to the pixels, scaling and normalising are a straight line in each
channel. Where the line through (our pixel, its value) leaves no residual, our pixels are its
pixels; slope and offset then give mean and standard deviation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from deploykit.images.preprocess import OversizeError
from deploykit.images.treatment import CHANNELS, Treatment, Triple, ordered
from deploykit.images.usual import FILTERS_USED, NORMALISATIONS, usual_sizes
from deploykit.specs.preprocessing import Preprocessing, Size
from deploykit.specs.value import Value

#: In grey levels. A transform that makes grey after it resizes, so that bytes are rounded in
#: another order, leaves 0.5.
EXPLAINED_RESIDUAL = 0.7
#: A smaller difference of two residuals, in grey levels, means nothing.
_SAME_RESIDUAL = 0.02
#: A mean or standard deviation this close to a usual one is taken for it.
_SAME_VALUE, _SAME_AFTER_ROUNDING = 1e-5, 5e-4
#: Every usual treatment is tried on few images: long ones, which tell a crop from a stretch, and
#: one that EXIF says to rotate.
_UPRIGHT_TRIED, _ROTATED_TRIED = 2, 1
_PIXELS_SAMPLED = 20_000


@dataclass(frozen=True, eq=False)
class TransformedImage:
    """An image, and what the transform made of it.

    Attributes:
        open: Decodes the image: RGB, with the orientation that its file gave.
        rotated: Whether its EXIF orientation says to rotate it.
        elongation: Its longer side by its shorter.
        values: (3, H, W).
    """

    open: Callable[[], Image.Image]
    rotated: bool
    elongation: float
    values: npt.NDArray[np.float32]

    @property
    def size(self) -> Size:
        """Height and width of what the transform made."""
        _, height, width = self.values.shape
        return height, width


class Explanation(Value, frozen=True):
    """The treatment that comes nearest to a transform.

    Attributes:
        treatment: The same, as deploykit does it.
        residual: In grey levels, the root mean square difference on the image that fits worst.
    """

    treatment: Treatment
    residual: float

    @property
    def explained(self) -> bool:
        """Whether the difference is no more than rounding."""
        return self.residual <= EXPLAINED_RESIDUAL


def explain(
    images: Sequence[TransformedImage], recorded: Preprocessing, read: Treatment | None = None
) -> Explanation | None:
    """Find the treatment that comes nearest to a transform.

    Args:
        images: At least one; with some that EXIF says to rotate, if there are any.
        recorded: What the bundle records; between equals, what is nearer to it is taken.
        read: What the transform's attributes say. It is believed where its values agree.

    Returns:
        The explanation; None where no usual treatment's pixels rise with the transform's values.
    """
    if read is not None:
        found = _explanation(read, images)
        if found is not None and found.explained:
            return found
    by_length = sorted(images, key=lambda image: -image.elongation)
    tried = [image for image in by_length if not image.rotated][:_UPRIGHT_TRIED]
    tried += [image for image in by_length if image.rotated][:_ROTATED_TRIED]
    nearest = _nearest(_usual_treatments(images, recorded), tried)
    if nearest is None:
        return None
    best, residual = nearest
    known = [(recorded.mean, recorded.std), *NORMALISATIONS.values()]
    within = _SAME_VALUE if residual < _SAME_RESIDUAL else _SAME_AFTER_ROUNDING
    mean = _recognised(best.mean, [mean for mean, _ in known], within)
    std = _recognised(best.std, [std for _, std in known], within)
    return _explanation(msgspec.structs.replace(best, mean=mean, std=std), images)


def _usual_treatments(
    images: Sequence[TransformedImage], recorded: Preprocessing
) -> list[Treatment]:
    """The usual ways to get the size, with every filter; those most like the bundle's first."""
    size = images[0].size
    own = Treatment.recorded(recorded)
    sizes = list(usual_sizes(size))
    if recorded.input_size == size:
        sizes.append((own.resize, own.crop_size))
    rotated = any(image.rotated for image in images)
    treatments = [
        Treatment(
            resize=resize, crop_size=crop, interpolation=name, antialias=soft, upright=upright
        )
        for resize, crop in dict.fromkeys(sizes)
        for name, soft in FILTERS_USED
        for upright in ((False, True) if rotated else (False,))
    ]

    def unlike(treatment: Treatment) -> int:
        names = ("resize", "crop_size", "interpolation", "antialias", "upright")
        return sum(getattr(treatment, name) != getattr(own, name) for name in names)

    return sorted(treatments, key=unlike)


def _nearest(
    treatments: Iterable[Treatment], images: Sequence[TransformedImage]
) -> tuple[Treatment, float] | None:
    """The first treatment that fits exactly, else the one that fits best, with its residual."""
    decoded = [image.open() for image in images]
    values = np.concatenate([_sampled(image.values.transpose(1, 2, 0)) for image in images])
    best: tuple[Treatment, float] | None = None
    for treatment in treatments:
        try:
            pixels = [treatment.pixels(image) for image in decoded]
        except OversizeError:
            continue
        if any(each.shape[:2] != images[0].size for each in pixels):
            continue
        for channels in CHANNELS:
            given = np.concatenate([_sampled(ordered(each, channels)) for each in pixels])
            line = _line(given, values)
            if line is not None and (best is None or line[2] < best[1] - _SAME_RESIDUAL):
                mean, std, residual = line
                fitted = msgspec.structs.replace(treatment, channels=channels, mean=mean, std=std)
                best = fitted, residual
        if best is not None and best[1] < _SAME_RESIDUAL:
            break
    return best


def _sampled(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Some of the pixels of (H, W, 3), as (n, 3): a line needs few."""
    flat = pixels.reshape(-1, 3)
    return flat[:: max(1, len(flat) // _PIXELS_SAMPLED)].astype(np.float64)


def _line(
    pixels: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> tuple[Triple, Triple, float] | None:
    """Fit a least-squares line in each channel.

    Args:
        pixels: (n, 3), 0..255.
        values: (n, 3).

    Returns:
        Mean, standard deviation, and in grey levels the residual of the worst channel. None where
        the pixels do not vary, or the values do not rise with them.
    """
    # Black and white may be clipped: bicubic overshoots, and bytes cannot.
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
    """The usual values that these are, in either order of channels; else rounded."""
    for usual in itertools.chain.from_iterable((each, each[::-1]) for each in known):
        if np.allclose(values, usual, rtol=0, atol=within):
            return usual
    return _triple(
        short if abs((short := round(value, 4)) - value) < within else value for value in values
    )


def _explanation(treatment: Treatment, images: Sequence[TransformedImage]) -> Explanation | None:
    """Compare every pixel, those of floats too where rounded ones are no more than rounded."""
    rounded = _compared(treatment, images)
    if rounded is None or not _SAME_RESIDUAL < rounded.residual <= EXPLAINED_RESIDUAL:
        return rounded
    floats = _compared(msgspec.structs.replace(treatment, pixel_type="float32"), images)
    return floats if floats is not None and floats.residual < _SAME_RESIDUAL else rounded


def _compared(treatment: Treatment, images: Sequence[TransformedImage]) -> Explanation | None:
    """Compare every pixel of every image; None where the treatment gives another size."""
    mean, std = np.array(treatment.mean), np.array(treatment.std)
    residuals = []
    for image in images:
        try:
            pixels = treatment.pixels(image.open())
        except OversizeError:
            return None
        if pixels.shape[:2] != image.size:
            return None
        levels = (image.values.transpose(1, 2, 0) * std + mean) * 255
        difference = levels.clip(0, 255) - pixels.clip(0, 255)
        residuals.append(float(np.sqrt((difference**2).mean())))
    return Explanation(treatment=treatment, residual=max(residuals))
