"""What comes nearest to a training transform, and how near."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from deploykit.images.pixel_steps import PixelSteps, take_steps
from deploykit.images.usual import NORMALISATIONS, Triple
from deploykit.specs.preprocessing import Preprocessing, Size
from deploykit.specs.value import Value

#: In grey levels. A transform that resizes in floating point leaves 0.3, and one that makes grey
#: before it resizes, so that bytes are rounded in another order, 0.5.
EXPLAINED_RESIDUAL = 0.7
#: Below this a difference of two residuals, in grey levels, says nothing.
TIE = 0.02
#: A mean or standard deviation, of an image in 0..1, is taken for a usual one within this.
_ALIKE, _ALIKE_AFTER_ROUNDING = 1e-5, 5e-4
_WHOLE_WITHIN = 0.05  # grey levels

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
        steps: From the decoded photo to pixels.
        mean: Subtracted from each channel of the pixels in 0..1.
        std: Divides each channel after that.
        residual: In grey levels, the root mean square difference on the photo that fits worst.
        worst: In grey levels, the largest difference of a pixel.
        whole: Whether the transform's values stand for whole grey levels; if not, it resized in
            floating point.
        tried: How many combinations were compared.
    """

    steps: PixelSteps
    mean: Triple
    std: Triple
    residual: float
    worst: float
    whole: bool
    tried: int

    @property
    def explained(self) -> bool:
        """Whether the difference is no more than rounding."""
        return self.residual <= EXPLAINED_RESIDUAL


def judged(
    steps: PixelSteps,
    mean: Triple,
    std: Triple,
    photos: Sequence[TransformedPhoto],
    recorded: Preprocessing,
    *,
    exact: bool,
    tried: int,
) -> Explanation:
    """Recognise mean and standard deviation, and look at every pixel of every photo with them.

    Args:
        steps: From the decoded photo to pixels.
        mean: As it was fitted.
        std: As it was fitted.
        photos: What is to be explained.
        recorded: What the bundle records; its mean and standard deviation are usual ones, too.
        exact: Whether the fit left no more than the rounding of float32.
        tried: How many combinations were compared.
    """
    known = [(recorded.mean, recorded.std), *NORMALISATIONS.values()]
    within = _ALIKE if exact else _ALIKE_AFTER_ROUNDING
    mean = _recognised(mean, [each for each, _ in known], within)
    std = _recognised(std, [each for _, each in known], within)
    residuals, worst, whole = [], 0.0, True
    for photo in photos:
        pixels = take_steps(photo.open(), steps)
        levels = (photo.values.transpose(1, 2, 0) * np.array(std) + np.array(mean)) * 255
        differences = np.abs(levels.clip(0, 255) - pixels)
        residuals.append(float(np.sqrt((differences**2).mean())))
        worst = max(worst, float(differences.max()))
        whole = whole and bool((np.abs(levels - np.rint(levels)) < _WHOLE_WITHIN).all())
    return Explanation(
        steps=steps,
        mean=mean,
        std=std,
        residual=max(residuals),
        worst=worst,
        whole=whole,
        tried=tried,
    )


def _recognised(values: Triple, known: Iterable[Triple], within: float) -> Triple:
    """The usual values that these are, in either order of channels; else what they round to."""
    for usual in known:
        for each in (usual, usual[::-1]):
            if all(abs(a - b) < within for a, b in zip(values, each, strict=True)):
                return each
    first, second, third = (
        short if abs((short := round(value, 4)) - value) < within else value for value in values
    )
    return first, second, third
