"""The images that the stages are compared on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from deploykit.bundle.folder import Bundle
from deploykit.errors import ImagesError
from deploykit.images.decode import DecodeError, exif_orientation
from deploykit.images.scan import (
    ImageFile,
    Scan,
    class_folders,
    sample_images,
    sample_with,
    scan_images,
)
from deploykit.images.truth import known_classes
from deploykit.proof.images import listed_images, mostly_unreadable, read_sample
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import ImageBatch
from deploykit.system.progress import Note, Progress

STAGE_IMAGES = 48
_ROTATED = range(2, 9)  # the orientations of EXIF but for 1, upright
#: Of a large folder only so many headers are read in search of images that are to be rotated.
_HEADERS_READ = 512
#: One of so many images is one that is to be rotated, where there are any.
_ROTATED_PART = 8


@dataclass(frozen=True, eq=False)
class StageImages:
    """Readable images, without duplicates.

    Attributes:
        source: The folder.
        files: The images' files.
        rotated: The names of those that EXIF says to rotate.
        classes: The classes that the folder's names are of; empty where it is not labelled.
        known: The right classes of those images of which they are known, by the images' names.
        table: The table that tells them; None where the folders' names do.
        pixels: (N, H, W, 3), preprocessed as recorded.
        picked: The names of those that were asked for.
        unreadable: That most of what was drawn cannot be read; None where most can.
    """

    source: Path
    files: tuple[ImageFile, ...]
    rotated: frozenset[str]
    classes: tuple[str, ...]
    pixels: ImageBatch
    picked: frozenset[str]
    unreadable: str | None
    known: Mapping[str, tuple[str, ...]]
    table: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names."""
        return tuple(file.name for file in self.files)

    @property
    def truth(self) -> tuple[tuple[str, ...] | None, ...]:
        """Each image's right classes; None where they are not known, or it was picked.

        Images that were picked for their answers say nothing about how often a model is right.
        """
        return tuple(
            None if file.name in self.picked else self.known.get(file.name) for file in self.files
        )

    @property
    def whose(self) -> str:
        """Whose names the right classes are."""
        return "the folder's" if self.table is None else f"{self.table.name}'s"

    @property
    def right_words(self) -> str:
        """What images that are right get."""
        return "their folder's class" if self.table is None else f"what {self.table.name} says"

    @property
    def true_words(self) -> str:
        """What is counted where an image may have several classes."""
        return f"labels that {self.whose} photos have are given"

    @property
    def truth_exchanged(self) -> str:
        """What may be exchanged instead of the labels."""
        if self.table is None:
            return "the photos' folders"
        return f"those of {self.table.name}"

    @property
    def look_at_them(self) -> str:
        """How to find out whether the truth is exchanged."""
        if self.table is None:
            return (
                "Look at the photos in these folders. Where they are not what the folder says, "
                "move them."
            )
        name = self.table.name
        return f"Look at photos of these labels. Where they are not what {name} says, correct it."


def list_images(
    bundle: Bundle, images: Path | None, progress: Progress, table: Path | None = None
) -> tuple[Scan, tuple[str, ...], Mapping[str, tuple[str, ...]]]:
    """List a folder's images and the classes that it has: the labels, or as many sub-folders.

    A bundle may have been exported without the names, or with others.

    Args:
        bundle: The bundle.
        images: The folder; None for the one given at export while it is there.
        progress: Told which folder is taken.
        table: See :func:`deploykit.images.truth.known_classes`.

    Returns:
        The folder; its classes, none where no image's right class is known; and those of the
        images of which they are known.

    Raises:
        UsageError: No folder is named, and the one given at export is not there.
        ImagesError: There is no image file.
        InputError: See :func:`deploykit.images.truth.known_classes`.
    """
    labels = bundle.manifest.labels
    listed = listed_images(bundle, images, progress)
    known = known_classes(listed, labels, table, progress)
    if known:
        return listed, labels.names, known
    if labels.head.several:
        return listed, (), known
    if listed.path.is_dir() and any("/" in file.name for file in listed.files):
        try:
            classes = tuple(class_folders(listed.path))
        except ImagesError:  # the parts of a data set, whose images are as good without labels
            return listed, (), known
        if len(classes) == len(labels):
            named = scan_images(listed.path, classes)
            alone = {name: (name,) for name in classes}
            known = {file.name: alone[file.expected] for file in named.files if file.expected}
            return named, classes, known
    return listed, (), known


def draw_images(
    folder: Scan,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    limit: int | None,
    progress: Progress,
    first: Sequence[str] = (),
    known: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    table: Path | None = None,
) -> StageImages:
    """Draw images evenly over the classes, some that EXIF says to rotate among them.

    Args:
        folder: What to draw from.
        classes: See :func:`list_images`.
        preprocessing: What the bundle records.
        limit: How many; None for :data:`STAGE_IMAGES`.
        progress: Told how many are skipped.
        first: The names of images that are drawn before any other, and come first.
        known: See :func:`list_images`, as ``table``.
        table: The table of the right classes.

    Raises:
        ImagesError: Not one can be read.
    """
    count = limit or STAGE_IMAGES
    # Of duplicates the first stays. So it is the one to rotate: training may have rotated it.
    headers = sample_images(list(folder.files), _HEADERS_READ)
    rotated = [file.name for file in headers if is_rotated(file)]
    if count < len(folder.files):
        rotated = rotated[: max(1, count // _ROTATED_PART)]
    drawn = {file.name: file for file in sample_with(folder.files, [*first, *rotated], count)}
    images = read_sample(folder.path, list(drawn.values()), preprocessing)
    files: list[ImageFile] = []
    pixels: list[ImageBatch] = []
    for names, batch in images:
        files += (drawn[name] for name in names)
        pixels.append(batch.copy())  # its buffer is used again
    duplicates = images.drawn().duplicates
    if images.unreadable:
        progress(Note(f"skipped: {images.unreadable} of {len(drawn)} photos cannot be read"))
    if duplicates:
        progress(Note(f"skipped: {duplicates} of {len(drawn)} photos are duplicates of others"))
    return StageImages(
        source=folder.path,
        files=tuple(files),
        rotated=frozenset(file.name for file in files if is_rotated(file)),
        classes=classes,
        pixels=np.concatenate(pixels),
        picked=frozenset(first),
        known=known,
        table=table,
        unreadable=mostly_unreadable(images.unreadable, len(drawn) - images.unreadable),
    )


def is_rotated(file: ImageFile) -> bool:
    """Whether EXIF says to rotate an image."""
    with contextlib.suppress(DecodeError):
        return exif_orientation(file.path) in _ROTATED
    return False
