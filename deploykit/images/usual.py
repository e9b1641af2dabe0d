"""What training usually does to photos: the values that recipes and libraries have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from deploykit.images.treatment import Triple
from deploykit.specs.preprocessing import (
    FILTERS_WITHOUT_ANTIALIAS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    Interpolation,
    Size,
)

#: Mean and standard deviation that are subtracted and divide, by where they are usual.
NORMALISATIONS: dict[str, tuple[Triple, Triple]] = {
    "ImageNet": (IMAGENET_MEAN, IMAGENET_STD),
    "-1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "0 to 255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "CLIP": (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10, as often copied": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "dual-path networks": (
        (124 / 255, 117 / 255, 104 / 255),
        (1 / (0.0167 * 255), 1 / (0.0167 * 255), 1 / (0.0167 * 255)),
    ),
}

#: A filter, and whether it antialiases.
FILTERS_USED: tuple[tuple[Interpolation, bool], ...] = (
    *((name, True) for name in INTERPOLATIONS),
    *((name, False) for name in FILTERS_WITHOUT_ANTIALIAS),
)
#: What recipes resize to, as a multiple of the input size: 256 for 224 before all.
_RESIZE_RATIOS = (256 / 224, 1.0, 1 / 0.9, 1 / 0.95)


def usual_sizes(size: Size) -> Iterator[tuple[int | Size | None, Size | None]]:
    """The usual resizes and centre crops to the network's size, the likeliest first."""
    height, width = size
    shorter = min(size)
    yield size, None
    sides = [round(shorter * ratio) for ratio in _RESIZE_RATIOS]
    for side in dict.fromkeys([*sides, math.floor(shorter / 0.875), 256]):
        if side >= shorter:
            yield side, size
    side = sides[0]
    yield (side * height // shorter, side * width // shorter), size
    yield None, size


def describe_values(values: Triple, place: Literal["mean", "std"]) -> str:
    """Write a mean or standard deviation, and where it is usual: ``0.5,0.5,0.5 (-1 to 1)``."""
    index = ("mean", "std").index(place)
    for name, pair in NORMALISATIONS.items():
        if values == pair[index]:
            return f"{format_values(values)} ({name})"
    return ",".join(f"{value:.4g}" for value in values)


def format_values(values: Triple) -> str:
    """Write a mean or standard deviation as the command line takes it, to single precision."""
    return ",".join(f"{value:.8g}" for value in values)
