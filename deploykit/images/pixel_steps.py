"""What training may do to a decoded photo, which is more than a bundle can record."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from deploykit.images.preprocess import preprocess, resized_size
from deploykit.images.sampling import resize_without_antialias
from deploykit.specs.preprocessing import Interpolation, Preprocessing, Size, format_size
from deploykit.specs.value import Value

Triple: TypeAlias = tuple[float, float, float]
Channels: TypeAlias = Literal["RGB", "BGR", "grey"]
CHANNELS: tuple[Channels, ...] = get_args(Channels)


class PixelSteps(Value, frozen=True):
    """From a decoded photo to the pixels that are scaled and normalised.

    Attributes:
        resize: The shorter side, or (height, width) to stretch to; None for no resize.
        crop_size: The centre crop's (height, width); None for no crop.
        interpolation: The filter, with Pillow's names.
        antialias: Whether shrinking averages over what it leaves out, as Pillow does.
        upright: Whether the photo is first turned as its EXIF orientation says.
        channels: The order of the colours, or three times the same grey.
    """

    resize: int | Size | None
    crop_size: Size | None
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    upright: bool = False
    channels: Channels = "RGB"

    def describe_size(self) -> str:
        """How the photo gets its size: ``resize 256 (shorter side), centre crop 224x224``."""
        if self.resize is None:
            steps = ["no resize"]
        elif isinstance(self.resize, int):
            steps = [f"resize {self.resize} (shorter side)"]
        else:
            steps = [f"resize {format_size(self.resize)} (stretch)"]
        if self.crop_size is not None:
            steps.append(f"centre crop {format_size(self.crop_size)}")
        return ", ".join(steps)

    def describe_filter(self) -> str:
        """``bilinear``, and that it is without antialiasing where it is."""
        return f"{self.interpolation}{'' if self.antialias else ' without antialiasing'}"

    def describe(self) -> str:
        """One line for people."""
        turned = ["turned by EXIF"] if self.upright else []
        return ", ".join([*turned, self.describe_size(), self.describe_filter(), self.channels])


class Treatment(Value, frozen=True):
    """All that happens to a decoded photo before the network.

    Attributes:
        steps: From the decoded photo to pixels.
        mean: Subtracted from each channel of the pixels in 0..1.
        std: Divides each channel after that.
    """

    steps: PixelSteps
    mean: Triple
    std: Triple

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Make the network's input, (3, H, W), of a decoded photo in mode RGB.

        Raises:
            OversizeError: See :func:`take_steps`.
        """
        return normalised(take_steps(image, self.steps), self.mean, self.std)


def recorded_treatment(preprocessing: Preprocessing) -> Treatment:
    """What a bundle does to a photo."""
    steps = PixelSteps(
        resize=preprocessing.resize,
        crop_size=preprocessing.crop_size,
        interpolation=preprocessing.interpolation,
    )
    return Treatment(steps=steps, mean=preprocessing.mean, std=preprocessing.std)


def take_steps(image: Image.Image, steps: PixelSteps) -> npt.NDArray[np.uint8]:
    """Make a photo's pixels.

    Args:
        image: A decoded photo in mode RGB, with what its file told of its orientation.
        steps: What to do.

    Returns:
        (H, W, 3) uint8, the channels in the order that the steps name.

    Raises:
        OversizeError: The resized image would have more pixels than Pillow takes for harmless.
    """
    if steps.upright:
        image = ImageOps.exif_transpose(image)
    if steps.resize is not None and not steps.antialias:
        size = resized_size(image, steps.resize)
        pixels = resize_without_antialias(np.asarray(image), size, steps.interpolation)
        image = Image.fromarray(pixels)
    elif steps.resize is not None:
        size = resized_size(image, steps.resize)
        image = image.resize(size[::-1], Image.Resampling[steps.interpolation.upper()])
    pixels = preprocess(
        image, Preprocessing(resize=(image.height, image.width), crop_size=steps.crop_size)
    )
    return ordered(pixels, steps.channels)


def ordered(pixels: npt.NDArray[np.uint8], channels: Channels) -> npt.NDArray[np.uint8]:
    """Put the channels of RGB pixels (H, W, 3) into an order, or make them grey."""
    if channels == "RGB":
        return pixels
    if channels == "BGR":
        return pixels[..., ::-1]
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    return np.stack([grey] * 3, axis=-1)


def normalised(pixels: npt.NDArray[np.uint8], mean: Triple, std: Triple) -> npt.NDArray[np.float32]:
    """Scale to 0..1 and normalise, with torchvision's operations in torchvision's order.

    Args:
        pixels: (H, W, 3).
        mean: Subtracted from each channel in 0..1.
        std: Divides each channel after that.

    Returns:
        (3, H, W), contiguous.
    """
    values = pixels.astype(np.float32)
    values /= 255
    values -= np.array(mean, np.float32)
    values /= np.array(std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def open_as_training(path: Path) -> Image.Image:
    """Open a photo as the loader of torchvision's ``ImageFolder`` does, and nothing more."""
    with path.open("rb") as file:
        return Image.open(file).convert("RGB")
