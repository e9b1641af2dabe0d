"""The values that deploykit's parts hand to each other: frozen, and without any I/O."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, cast, get_args

import msgspec

from deploykit.errors import UsageError
from deploykit.specs.value import Value

Interpolation: TypeAlias = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
PixelType: TypeAlias = Literal["uint8", "float32"]
RecordedPixels: TypeAlias = Literal["float32"] | msgspec.UnsetType
"""What a file says of them: nothing where they are uint8."""
Size: TypeAlias = tuple[int, int]
"""Height and width in pixels, in this order everywhere."""

INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
PIXEL_TYPES: tuple[PixelType, ...] = get_args(PixelType)
FILTERS_WITHOUT_ANTIALIAS: tuple[Interpolation, ...] = ("nearest", "bilinear", "bicubic")

PREPROCESSING_KEY = "deploykit.preprocessing"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocessing(Value, frozen=True):
    """What happens to a photo between decoding and the network, exactly as in training.

    A photo is decoded to RGB, made grey if training did so, resized, cropped if there is a crop,
    scaled to 0..1 and normalised. Grey images have three equal channels.

    Attributes:
        resize: The shorter side in pixels, keeping the aspect ratio, or (height, width) to
            stretch to.
        crop_size: The centre crop's (height, width); None for no crop.
        interpolation: Pillow's filter.
        antialias: Whether shrinking averages over the pixels it drops, as Pillow does; without,
            each pixel comes from its nearest neighbours, as in TensorFlow's and torch's resize.
        mean: Subtracted from each channel (R, G, B) of the image in 0..1.
        std: Divides each channel after that.
        grayscale: Whether images are made grey before they are resized: Pillow's ``convert("L")``,
            as torchvision's ``Grayscale`` does.
        pixels: ``float32`` where training resizes a tensor of floats, so that no pixel is rounded
            to a whole grey level; else unset, and not in any file: see :attr:`pixel_type`.
        source: Where the values come from, in words: ``preset tutorial``, ``zoo resnet_cifar96``.
    """

    resize: int | Size = (224, 224)
    crop_size: Size | None = None
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    grayscale: bool = False
    pixels: RecordedPixels = msgspec.UNSET
    source: str = "preset tutorial"

    def __post_init__(self) -> None:
        sizes = [self.resize] if isinstance(self.resize, int) else [*self.resize]
        if min([*sizes, *(self.crop_size or ())]) < 1:
            raise UsageError(f"Sizes must be at least 1 pixel: {self.describe()}.")
        if isinstance(self.resize, int) and self.crop_size is None:
            raise UsageError(
                f"Resizing the shorter side to {self.resize} leaves images of different shapes.",
                hint="Add a centre crop (--crop-size), or stretch both sides (--resize HxW).",
            )
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise UsageError(f"Mean and std must be finite, std above 0: {self.mean}, {self.std}.")
        if not self.antialias and self.interpolation not in FILTERS_WITHOUT_ANTIALIAS:
            raise UsageError(
                f"{self.interpolation} always antialiases.",
                hint=f"Without antialiasing there are: {', '.join(FILTERS_WITHOUT_ANTIALIAS)}.",
            )
        if max(*self.mean, *self.std) > 1:
            raise UsageError(
                f"Mean {self.mean} and std {self.std} are not those of an image in 0..1.",
                hint="Divide values for 0..255 by 255.",
            )

    @property
    def input_size(self) -> Size:
        """Height and width of what the network gets."""
        # A resize of the shorter side has a crop: __post_init__ sees to it.
        return self.crop_size or cast("Size", self.resize)

    @property
    def pixel_type(self) -> PixelType:
        """NumPy's type of the resized pixels, 0..255, and so of a deploy graph's input."""
        return self.pixels or "uint8"

    def to_metadata(self) -> str:
        """What stands under :data:`PREPROCESSING_KEY`."""
        return msgspec.json.encode(self).decode()

    def describe(self) -> str:
        """One line for people: ``resize 256 (shorter side), crop 224x224, bilinear, ...``."""
        mean, std = (
            ",".join(
                f"{v:g}" for v in (values[:1] if self.grayscale and len({*values}) == 1 else values)
            )
            for values in (self.mean, self.std)
        )
        size = describe_size(self.resize, self.crop_size)
        first, channels = ("grey, ", "") if self.grayscale else ("", "RGB, ")
        resampling = describe_filter(self.interpolation, antialias=self.antialias)
        pixels = f"{self.pixels} pixels, " if self.pixels else ""
        return f"{first}{size}, {resampling}, {pixels}{channels}mean {mean}, std {std}"


def recorded_pixels(pixels: PixelType) -> RecordedPixels:
    """What a preprocessing says of a type of pixels."""
    return msgspec.UNSET if pixels == "uint8" else pixels


def format_size(size: Size) -> str:
    """Write a size as the command line takes it: ``224x224``, height first."""
    return f"{size[0]}x{size[1]}"


def describe_filter(interpolation: Interpolation, *, antialias: bool) -> str:
    """``bilinear`` or ``bilinear without antialiasing``."""
    return f"{interpolation}{'' if antialias else ' without antialiasing'}"


def describe_size(resize: int | Size | None, crop_size: Size | None) -> str:
    """How an image gets its size: ``resize 256 (shorter side), centre crop 224x224``."""
    if resize is None:
        step = "no resize"
    elif isinstance(resize, int):
        step = f"resize {resize} (shorter side)"
    else:
        step = f"resize {format_size(resize)} (stretch)"
    return step if crop_size is None else f"{step}, centre crop {format_size(crop_size)}"
