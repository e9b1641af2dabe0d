"""What training may do to a decoded image, which is more than a bundle can record."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from deploykit.images.preprocess import Pixels, make_grey, preprocess, resized_size
from deploykit.specs.preprocessing import (
    Interpolation,
    PixelType,
    Preprocessing,
    Size,
    describe_filter,
    describe_size,
    recorded_pixels,
)
from deploykit.specs.value import Value

Triple: TypeAlias = tuple[float, float, float]
Channels: TypeAlias = Literal["RGB", "BGR", "grey"]
CHANNELS: tuple[Channels, ...] = get_args(Channels)


class Treatment(Value, frozen=True):
    """All that happens to a decoded image before the network.

    Attributes:
        resize: The shorter side, or (height, width) to stretch to; None for no resize.
        crop_size: The centre crop's (height, width); None for no crop.
        interpolation: The filter, with Pillow's names.
        antialias: Whether shrinking averages over the pixels it drops, as Pillow does.
        pixel_type: ``float32`` where resized pixels are not rounded to whole grey levels.
        upright: Whether the image is first rotated as its EXIF orientation says.
        channels: The order of the colours, or three times the same grey.
        mean: Subtracted from each channel of the pixels in 0..1.
        std: Divides each channel after that.
    """

    resize: int | Size | None
    crop_size: Size | None = None
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    pixel_type: PixelType = "uint8"
    upright: bool = False
    channels: Channels = "RGB"
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)

    @classmethod
    def recorded(cls, preprocessing: Preprocessing) -> Self:
        """What a bundle does."""
        return cls(
            resize=preprocessing.resize,
            crop_size=preprocessing.crop_size,
            interpolation=preprocessing.interpolation,
            antialias=preprocessing.antialias,
            pixel_type=preprocessing.pixel_type,
            channels="grey" if preprocessing.grayscale else "RGB",
            mean=preprocessing.mean,
            std=preprocessing.std,
        )

    def pixels(self, image: Image.Image) -> Pixels:
        """Make the pixels that are scaled and normalised.

        Args:
            image: In mode RGB, with the orientation that its file gave.

        Returns:
            (H, W, 3), the channels in this treatment's order.

        Raises:
            OversizeError: The resized image would have more pixels than Pillow considers safe.
        """
        if self.upright:
            image = ImageOps.exif_transpose(image)
        size = (image.height, image.width)
        steps = Preprocessing(
            resize=size if self.resize is None else resized_size(image, self.resize),
            crop_size=self.crop_size,
            interpolation=self.interpolation,
            antialias=self.antialias,
            pixels=recorded_pixels(self.pixel_type),
            grayscale=self.channels == "grey",  # before the resize, as a bundle does it
        )
        pixels = preprocess(image, steps)
        return pixels if steps.grayscale else ordered(pixels, self.channels)

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Make the network's input, (3, H, W): torchvision's operations in torchvision's order.

        Raises:
            OversizeError: See :meth:`pixels`.
        """
        values = self.pixels(image).astype(np.float32)
        values /= 255
        values -= np.array(self.mean, np.float32)
        values /= np.array(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def describe_size(self) -> str:
        """How the image gets its size."""
        return describe_size(self.resize, self.crop_size)

    def describe_filter(self) -> str:
        """``bilinear`` or ``bilinear without antialiasing``."""
        return describe_filter(self.interpolation, antialias=self.antialias)

    def describe_pixels(self) -> str:
        """Everything before scaling, in one line."""
        rotated = ["rotated by EXIF"] if self.upright else []
        floats = ["float32 pixels"] if self.pixel_type == "float32" else []
        return ", ".join(
            [*rotated, self.describe_size(), self.describe_filter(), *floats, self.channels]
        )


def ordered(pixels: Pixels, channels: Channels) -> Pixels:
    """Put the channels of RGB pixels (H, W, 3) into an order, or make them grey."""
    if channels == "RGB":
        return pixels
    if channels == "BGR":
        return pixels[..., ::-1]
    return make_grey(pixels)


def open_as_training(path: Path) -> Image.Image:
    """Open an image as the loader of torchvision's ``ImageFolder`` does, and nothing more."""
    with path.open("rb") as file:
        return Image.open(file).convert("RGB")
