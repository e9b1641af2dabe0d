"""Which preprocessing is meant: presets and what the command line changes in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from deploykit.errors import UsageError
from deploykit.specs.preprocessing import (
    INTERPOLATIONS,
    PIXEL_TYPES,
    Interpolation,
    PixelType,
    Preprocessing,
    Size,
    format_size,
    recorded_pixels,
)
from deploykit.specs.value import choice

#: Shorter side 256, centre crop 224: what torchvision's reference training evaluates with.
TORCHVISION = Preprocessing(resize=256, crop_size=(224, 224), source="preset torchvision")
#: What ``keras.utils.image_dataset_from_directory`` gives: 0..255, stretched by tf.image.resize.
KERAS = Preprocessing(
    antialias=False,
    pixels="float32",
    mean=(0.0, 0.0, 0.0),
    std=(1 / 255,) * 3,
    source="preset keras",
)
_SIZE = re.compile(r"(\d+)(?:[x,](\d+))?")


@dataclass(frozen=True)
class PreprocessingOptions:
    """What the user said about preprocessing; None where nothing was said.

    Attributes:
        preset: ``tutorial``, ``torchvision``, ``timm`` or ``keras``.
        input_size: Height and width that the network takes.
        resize: The shorter side, or (height, width) to stretch to.
        crop_size: The centre crop's height and width.
        interpolation: Pillow's filter.
        mean: Of R, G and B in 0..1.
        std: Of R, G and B in 0..1.
        antialias: Whether shrinking antialiases.
        pixels: The type of the resized pixels.
        grayscale: Whether images are made grey; False where nothing was said.
    """

    preset: str | None = None
    input_size: Size | None = None
    resize: int | Size | None = None
    crop_size: Size | None = None
    interpolation: Interpolation | None = None
    antialias: bool | None = None
    pixels: PixelType | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    grayscale: bool = False


def choose_preprocessing(
    options: PreprocessingOptions,
    *,
    default: Preprocessing | None,
    timm: Callable[[], Preprocessing],
) -> Preprocessing:
    """Apply the options to a preset, or to the architecture's own preprocessing.

    Args:
        options: What the user said.
        default: The architecture's own; None for the preset ``tutorial``.
        timm: Gives the model's own configuration in timm, for the preset of that name.

    Raises:
        UsageError: An unknown preset, or options that contradict each other.
    """
    presets: dict[str, Callable[[], Preprocessing]] = {
        "tutorial": Preprocessing,
        "torchvision": lambda: TORCHVISION,
        "timm": timm,
        "keras": lambda: KERAS,
    }
    if options.preset is None:
        base = default or Preprocessing()
    else:
        base = presets[choice(options.preset, tuple(presets), "preset")]()
    changed = msgspec.structs.replace(
        _resized(base, options),
        interpolation=options.interpolation or base.interpolation,
        antialias=base.antialias if options.antialias is None else options.antialias,
        pixels=recorded_pixels(options.pixels or base.pixel_type),
        mean=options.mean or base.mean,
        std=options.std or base.std,
        grayscale=options.grayscale or base.grayscale,
    )
    if changed == base:
        return base
    return msgspec.structs.replace(changed, source=f"{base.source}, changed by options")


def _resized(base: Preprocessing, options: PreprocessingOptions) -> Preprocessing:
    """Apply the three options about sizes, which depend on each other."""
    size = options.input_size or options.crop_size or base.input_size
    resize, crop = options.resize, options.crop_size
    if resize is None and crop is None:
        if base.crop_size is None:
            resize = size
        else:
            resize, crop = _scaled(base, size), size
    elif resize is None:
        resize = _scaled(base, size) if base.crop_size else base.resize
    elif isinstance(resize, int):
        crop = crop or size
    changed = msgspec.structs.replace(base, resize=resize, crop_size=crop)
    if options.input_size is not None and changed.input_size != options.input_size:
        raise UsageError(
            f"--input-size {format_size(options.input_size)} contradicts the other options, "
            f"which give images of {format_size(changed.input_size)}.",
            hint="Leave --input-size out, or make them agree.",
        )
    return changed


def _scaled(base: Preprocessing, size: Size) -> int | Size:
    """The base's resize for another input size, in the same proportion to the crop."""
    height, width = base.input_size
    if isinstance(base.resize, int):
        return round(base.resize * min(size) / min(height, width))
    return round(base.resize[0] * size[0] / height), round(base.resize[1] * size[1] / width)


def parse_options(
    *,
    preset: str | None,
    input_size: str | None,
    resize: str | None,
    crop_size: str | None,
    interpolation: str | None,
    mean: str | None,
    std: str | None,
    antialias: bool | None = None,
    pixels: str | None = None,
    grayscale: bool = False,
) -> PreprocessingOptions:
    """Read the options as the command line gives them.

    Raises:
        UsageError: One of them cannot be read.
    """
    return PreprocessingOptions(
        preset=preset,
        input_size=parse_size(input_size, "--input-size") if input_size else None,
        resize=parse_resize(resize) if resize else None,
        crop_size=parse_size(crop_size, "--crop-size") if crop_size else None,
        interpolation=choice(interpolation, INTERPOLATIONS, "interpolation")
        if interpolation
        else None,
        mean=parse_channels(mean, "--mean") if mean else None,
        std=parse_channels(std, "--std") if std else None,
        antialias=antialias,
        pixels=choice(pixels, PIXEL_TYPES, "type of pixels") if pixels else None,
        grayscale=grayscale,
    )


def parse_size(text: str, option: str) -> Size:
    """Read ``224x224`` (height first), or ``224`` for a square.

    Raises:
        UsageError: It is neither.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"{option} takes 224 or 224x224 (height first), not {text!r}.")
    height = int(match[1])
    return height, int(match[2] or height)


def parse_resize(text: str) -> int | Size:
    """Read ``256`` for the shorter side, or ``224x224`` (height first) for a stretch."""
    size = parse_size(text, "--resize")
    return size[0] if text.strip().isdigit() else size


def parse_channels(text: str, option: str) -> tuple[float, float, float]:
    """Read ``0.485,0.456,0.406``, or one number for all three channels.

    Raises:
        UsageError: It is neither.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 1:
        values *= 3
    if len(values) != 3:
        raise UsageError(f"{option} takes one number or three (R,G,B), not {text!r}.")
    red, green, blue = values
    return red, green, blue
