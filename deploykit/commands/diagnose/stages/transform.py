"""What training does to a photo: the transform loaded, tried on a few photos, and read."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import ImageOps

from deploykit.commands.diagnose.stages.photos import StagePhotos
from deploykit.errors import DependencyError, InputError
from deploykit.images.decode import DecodeError, decode_rgb
from deploykit.images.explain import TransformedPhoto
from deploykit.images.pixel_steps import PixelSteps, Treatment, Triple, open_as_training
from deploykit.images.scan import ImageFile, sample_images
from deploykit.specs.preprocessing import INTERPOLATIONS, Preprocessing, Size, format_size
from deploykit.system.progress import Note, Progress

if TYPE_CHECKING:
    from deploykit.models.transforms import Transform

_EXPLAINED_ON = 12
_TURNED_EXPLAINED_ON = 3
_PROBED_ON = 3
#: Steps of torchvision that make a tensor.
_TO_TENSOR = ("ToTensor", "PILToTensor", "ToImage")


def load_transform(
    recorded: Preprocessing, name: str | None, progress: Progress
) -> Transform | None:
    """Load the user's training transform, else make torchvision's of the recorded preprocessing.

    Args:
        recorded: What the bundle records.
        name: The user's, ``file.py:function``.
        progress: Told why there is none.

    Returns:
        The transform; None where none is named and torchvision is not installed.

    Raises:
        InputError: It is no transform.
        UsageError: There is no such transform.
        DependencyError: There is one, and torch is not installed.
    """
    try:
        from deploykit.models.transforms import torchvision_transform, user_transform

        return torchvision_transform(recorded) if name is None else user_transform(name)
    except DependencyError as exc:
        if name is not None:
            raise
        progress(Note(f"not compared with another preprocessing: {exc.message}"))
        return None


def probe_transform(transform: Transform, files: Sequence[ImageFile]) -> Size | None:
    """Apply a transform to the readable ones of a few photos, to refuse early what is no use.

    Returns:
        The size of the images that it gives; None where none of the photos can be read.

    Raises:
        InputError: It fails, gives other values each time, images of several sizes, or no network
            input.
    """
    readable = []
    for file in sample_images(files, _PROBED_ON):
        with contextlib.suppress(DecodeError):
            decode_rgb(file.path)
            readable.append(file)
    examples = _applied(transform, readable, frozenset())
    return examples[0].size if examples else None


def examples_of(transform: Transform, photos: StagePhotos) -> list[TransformedPhoto]:
    """Apply the transform to a few photos.

    Raises:
        InputError: It gives other values each time, or images of several sizes.
    """
    turned = [file for file in photos.files if file.name in photos.turned][:_TURNED_EXPLAINED_ON]
    others = [file for file in photos.files if file.name not in photos.turned]
    wanted = _EXPLAINED_ON - len(turned)
    chosen = [*others[:: max(1, len(others) // wanted)][:wanted], *turned]
    return _applied(transform, chosen, photos.turned)


def _applied(
    transform: Transform, files: Sequence[ImageFile], turned: frozenset[str]
) -> list[TransformedPhoto]:
    examples = []
    for file in files:
        image = open_as_training(file.path)
        values = transform(image)
        for _ in range(max(1, _EXPLAINED_ON // len(files))):  # a coin may fall alike once
            if not np.array_equal(values, transform(image)):
                raise InputError(
                    f"{transform.name} is random: it gave the same photo other values the second "
                    "time.",
                    hint="Name the transform of the evaluation, without RandomHorizontalFlip, "
                    "RandomResizedCrop, ColorJitter and the like.",
                )
        examples.append(
            TransformedPhoto(
                open=functools.partial(decode_rgb, file.path),
                turned=file.name in turned,
                elongation=max(image.size) / min(image.size),
                values=values,
            )
        )
    sizes = sorted({photo.size for photo in examples})
    if len(sizes) > 1:
        raise InputError(
            f"{transform.name} gives images of several sizes: "
            f"{', '.join(map(format_size, sizes))}.",
            hint="A network takes one: resize both sides, or crop after resizing.",
        )
    return examples


def read_transform(code: object) -> Treatment | None:
    """Read what a torchvision ``Compose`` (v1 or v2), or the preset of its weights, says it does.

    Args:
        code: The transform.

    Returns:
        None where it is something else, or has a step that a :class:`Treatment` cannot tell.
    """
    steps = getattr(code, "transforms", None)
    if not _is_torchvision(code):
        return None
    if type(code).__name__ == "ImageClassification":
        preset = cast("Any", code)
        fields = _resize_fields(preset.resize_size, preset.interpolation, antialias=True)
        fields |= {"crop_size": _pair(preset.crop_size), "mean": preset.mean, "std": preset.std}
        return _treatment(fields)
    if not isinstance(steps, Sequence):
        return None
    fields = {}
    on_tensor = False
    for step in steps:
        if type(step).__name__ in _TO_TENSOR and _is_torchvision(step):
            on_tensor = True
            continue
        found = _fields_of(step, on_tensor=on_tensor)
        twice = not fields.keys().isdisjoint(found or ())
        if found is None or twice or ("resize" in found and "crop_size" in fields):
            return None
        fields |= found
    return _treatment(fields)


def _is_torchvision(value: object) -> bool:
    return type(value).__module__.startswith("torchvision.transforms")


def _fields_of(step: Any, *, on_tensor: bool) -> dict[str, Any] | None:
    """What one step sets in a treatment; None where it cannot be told."""
    if ImageOps.exif_transpose in (step, getattr(step, "lambd", None)):
        return {"upright": True}
    if not _is_torchvision(step):
        return None
    match type(step).__name__:
        case "Resize" if step.max_size is None:
            # Of a PIL image the argument antialias is ignored: Pillow always does.
            antialias = not on_tensor or bool(step.antialias)
            return _resize_fields(step.size, step.interpolation, antialias=antialias)
        case "CenterCrop":
            return {"crop_size": _pair(step.size)}
        case "Grayscale" if step.num_output_channels == 3:
            return {"channels": "grey"}
        case "Normalize":
            return {"mean": step.mean, "std": step.std}
        case "ConvertImageDtype" | "ToDtype" | "ToPureTensor":
            return {}
    return None


def _resize_fields(
    size: int | Sequence[int], interpolation: Any, *, antialias: bool
) -> dict[str, Any]:
    sides = [size] if isinstance(size, int) else [*size]
    return {
        "resize": sides[0] if len(sides) == 1 else (sides[0], sides[1]),
        # In v2 it may be the filter's name itself.
        "interpolation": getattr(interpolation, "value", interpolation),
        "antialias": antialias,
    }


def _pair(size: int | Sequence[int]) -> Size:
    sides = [size] if isinstance(size, int) else [*size]
    return sides[0], sides[-1]


def _treatment(fields: dict[str, Any]) -> Treatment | None:
    mean, std = (
        tuple(map(float, fields.pop(name, default)))
        for name, default in (("mean", (0, 0, 0)), ("std", (1, 1, 1)))
    )
    known = fields.get("interpolation", "bilinear") in INTERPOLATIONS
    if not known or (len(mean), len(std)) != (3, 3):
        return None
    if fields.get("crop_size") == fields.get("resize"):
        fields.pop("crop_size", None)  # it cuts nothing off
    steps = PixelSteps(**({"resize": None, "crop_size": None} | fields))
    return Treatment(steps=steps, mean=cast("Triple", mean), std=cast("Triple", std))
