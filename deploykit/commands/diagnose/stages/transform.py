"""What training does to an image: the transform loaded, tried on a few images, and read."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import ImageOps

from deploykit.commands.diagnose.stages.images import StageImages
from deploykit.errors import DependencyError, InputError
from deploykit.images.decode import DecodeError, decode_rgb
from deploykit.images.explain import TransformedImage
from deploykit.images.scan import ImageFile, sample_images
from deploykit.images.treatment import Treatment, open_as_training
from deploykit.specs.preprocessing import INTERPOLATIONS, Preprocessing, Size, format_size
from deploykit.system.progress import Note, Progress

if TYPE_CHECKING:
    from deploykit.models.transforms import Transform

_EXPLAINED_ON = 12
_ROTATED_EXPLAINED_ON = 3
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


def probe_transform(transform: Transform, files: Sequence[ImageFile], size: Size) -> None:
    """Apply a transform to a few images, so that one that cannot be used is refused early.

    Args:
        transform: The transform.
        files: What to choose the images from; those that cannot be read are not.
        size: Of the images that the bundle takes.

    Raises:
        InputError: It fails, gives other values each time, images of another size, or no network
            input.
    """
    readable = []
    for file in sample_images(files, _PROBED_ON):
        with contextlib.suppress(DecodeError):
            decode_rgb(file.path)
            readable.append(file)
    _applied(transform, readable, size, frozenset())


def examples_of(transform: Transform, images: StageImages) -> list[TransformedImage]:
    """Apply the transform to a few images.

    Raises:
        InputError: It gives other values each time, or images of another size.
    """
    rotated = [file for file in images.files if file.name in images.rotated][:_ROTATED_EXPLAINED_ON]
    others = [file for file in images.files if file.name not in images.rotated]
    wanted = _EXPLAINED_ON - len(rotated)
    chosen = [*others[:: max(1, len(others) // wanted)][:wanted], *rotated]
    height, width = images.pixels.shape[1:3]
    return _applied(transform, chosen, (height, width), images.rotated)


def _applied(
    transform: Transform, files: Sequence[ImageFile], size: Size, rotated: frozenset[str]
) -> list[TransformedImage]:
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
        example = TransformedImage(
            open=functools.partial(decode_rgb, file.path),
            rotated=file.name in rotated,
            elongation=max(image.size) / min(image.size),
            values=values,
        )
        if example.size != size:
            given, wanted = format_size(example.size), format_size(size)
            raise InputError(
                f"{transform.name} makes {given} of {file.name}; the bundle takes {wanted}.",
                hint=f"If training used {given}, export again with --input-size {given}. A "
                "transform that gives several sizes must resize both sides, or crop after that.",
            )
        examples.append(example)
    return examples


def read_transform(code: object) -> Treatment | None:
    """Read the attributes of a torchvision ``Compose`` (v1 or v2), or of its weights' preset.

    Args:
        code: The transform.

    Returns:
        None where it is something else, or has a step that a :class:`Treatment` cannot tell.
    """
    if not _is_torchvision(code):
        return None
    if type(code).__name__ == "ImageClassification":
        preset = cast("Any", code)
        fields = _resize_fields(preset.resize_size, preset.interpolation, antialias=True)
        fields["crop_size"] = _pair(preset.crop_size)
        return _treatment(fields | {"mean": preset.mean, "std": preset.std})
    steps = getattr(code, "transforms", None)
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
        case "Grayscale":
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
    for name in fields.keys() & {"mean", "std"}:
        # As torchvision reads them: a number, a list of one or three, or a tensor of either.
        values = np.asarray(fields[name]).ravel()
        if values.size not in (1, 3):
            return None
        # What a float32 is printed as: of a tensor, 0.485 and not 0.48500001430511475.
        fields[name] = tuple(float(str(value)) for value in np.broadcast_to(values, 3))
    if fields.get("interpolation", "bilinear") not in INTERPOLATIONS:
        return None
    if fields.get("crop_size") == fields.get("resize"):
        fields.pop("crop_size", None)  # it cuts nothing off
    return Treatment(**({"resize": None} | fields))
