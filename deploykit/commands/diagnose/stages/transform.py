"""The transform that the walk begins with: loaded, probed, and applied to a few photos."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deploykit.commands.diagnose.stages.photos import StagePhotos
from deploykit.errors import DependencyError, InputError
from deploykit.images.decode import DecodeError, decode_rgb
from deploykit.images.explanation import TransformedPhoto, Values
from deploykit.images.pixel_steps import open_as_training
from deploykit.images.scan import ImageFile, sample_images
from deploykit.specs.preprocessing import Preprocessing, Size, format_size
from deploykit.system.progress import Note, Progress

if TYPE_CHECKING:
    from deploykit.models.transforms import Transform

_EXPLAINED_ON = 12
_TURNED_EXPLAINED_ON = 3
_PROBED_ON = 3


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
            require_same(values, transform(image), transform.name)
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


def require_same(values: Values, again: Values, name: str) -> None:
    """Refuse a transform that makes different values of the same photo.

    Args:
        values: (3, H, W), what it made.
        again: What it made the second time.
        name: The transform's.

    Raises:
        InputError: They differ.
    """
    if not np.array_equal(values, again):
        raise InputError(
            f"{name} is random: it gave the same photo other values the second time.",
            hint="Name the transform of the evaluation, without RandomHorizontalFlip, "
            "RandomResizedCrop, ColorJitter and the like.",
        )
