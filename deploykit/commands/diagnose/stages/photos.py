"""The photos that the stages are compared on."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import printable
from deploykit.errors import ImagesError
from deploykit.images.batches import read_batches
from deploykit.images.decode import DecodeError, exif_orientation
from deploykit.images.preprocess import pixel_digest
from deploykit.images.scan import ImageFile, class_folders, sample_images, scan_images
from deploykit.proof.photos import listed_photos, nothing_readable
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import ImageBatch
from deploykit.system.progress import Note, Progress

STAGE_PHOTOS = 48
_TURNED = range(2, 9)  # the orientations of EXIF but for 1, upright
#: Of a large folder only so many headers are read in search of photos that are to be turned.
_HEADERS_READ = 512
#: One of so many photos is one that is to be turned, where there are any.
_TURNED_PART = 8
_READ_BATCH = 8


@dataclass(frozen=True)
class PhotoSource:
    """A folder whose photos are listed, and not read yet.

    Attributes:
        folder: The folder.
        files: Its image files.
        classes: The classes that its names are of; empty where it is not labelled.
    """

    folder: Path
    files: tuple[ImageFile, ...]
    classes: tuple[str, ...]

    @property
    def labelled(self) -> bool:
        """Whether the right class of any photo is known."""
        return any(file.expected is not None for file in self.files)


@dataclass(frozen=True, eq=False)
class StagePhotos:
    """Readable photos, each of which shows other pixels: duplicates are counted once.

    Attributes:
        source: The folder.
        files: The photos' files.
        turned: Which of them have an EXIF orientation that says to turn them, by name.
        classes: The classes that the folder's names are of; empty where it is not labelled.
        pixels: (N, H, W, 3), preprocessed as recorded.
        picked: The names of those that were not drawn but asked for.
        unreadable: How many more were drawn, and cannot be read.
        duplicates: How many more were drawn, and have the pixels of another.
        undrawn: How many more the folder has.
    """

    source: Path
    files: tuple[ImageFile, ...]
    turned: frozenset[str]
    classes: tuple[str, ...]
    pixels: ImageBatch
    picked: frozenset[str] = frozenset()
    unreadable: int = 0
    duplicates: int = 0
    undrawn: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The photos' names."""
        return tuple(file.name for file in self.files)

    @property
    def truth(self) -> tuple[str | None, ...]:
        """Each photo's right class; None where the folder does not tell, or it was picked.

        Photos that were picked for their answers say nothing about how often a model is right.
        """
        return tuple(None if file.name in self.picked else file.expected for file in self.files)


def list_photos(bundle: Bundle, images: Path | None, progress: Progress) -> PhotoSource:
    """List a folder's photos and the classes that it has: the labels, or as many sub-folders.

    A bundle may have been exported without the names, or with others.

    Args:
        bundle: The bundle.
        images: The folder; None for the one given at export while it is there.
        progress: Told which photos are taken.

    Raises:
        UsageError: No folder is named, and the one given at export is not there.
        ImagesError: There is no image file.
    """
    labels = bundle.manifest.labels
    listed = listed_photos(bundle, images, progress)
    folder, files = listed.path, listed.files
    if any(file.expected is not None for file in files):
        return PhotoSource(folder, files, labels.names)
    if not folder.is_dir() or all("/" not in file.name for file in files):
        return PhotoSource(folder, files, ())
    try:
        classes = tuple(class_folders(folder))
    except ImagesError:  # the parts of a data set, whose photos are as good without their labels
        return PhotoSource(folder, files, ())
    if len(classes) != len(labels):
        return PhotoSource(folder, files, ())
    return PhotoSource(folder, scan_images(folder, classes).files, classes)


def draw_photos(
    source: PhotoSource,
    preprocessing: Preprocessing,
    limit: int | None,
    progress: Progress,
    first: Sequence[str] = (),
) -> StagePhotos:
    """Draw photos evenly over the classes, some that are to be turned by EXIF among them.

    Args:
        source: What to draw from.
        preprocessing: What the bundle records.
        limit: How many; None for :data:`STAGE_PHOTOS`.
        progress: Told of those that are left out.
        first: The names of photos that are drawn before any other, and come first.

    Raises:
        ImagesError: Not one can be read.
    """
    drawn = _drawn(source.files, limit or STAGE_PHOTOS, first)
    # Of duplicates one that is to be turned stays: training may have turned it.
    different: dict[bytes, tuple[ImageFile, bool, ImageBatch]] = {}
    readable = 0
    for batch in read_batches(drawn, preprocessing, batch_size=_READ_BATCH):
        readable += len(batch.readable)
        for file, pixels in zip(batch.readable, batch.images, strict=True):
            digest, turned = pixel_digest(pixels), _is_turned(file)
            if digest not in different or (turned and not different[digest][1]):
                # The buffer behind the pixels is used again.
                different[digest] = file, turned, pixels.copy()
    if not different:
        raise nothing_readable(printable(source.folder), len(drawn))
    if unreadable := len(drawn) - readable:
        progress(Note(f"left out: {unreadable} of {len(drawn)} photos cannot be read"))
    if duplicates := readable - len(different):
        progress(Note(f"left out: {duplicates} of {len(drawn)} photos are duplicates of others"))
    found = different.values()
    return StagePhotos(
        source=source.folder,
        files=tuple(file for file, _, _ in found),
        turned=frozenset(file.name for file, turned, _ in found if turned),
        classes=source.classes,
        pixels=np.stack([pixels for _, _, pixels in found]),
        picked=frozenset(first),
        unreadable=unreadable,
        duplicates=duplicates,
        undrawn=len(source.files) - len(drawn),
    )


def _drawn(files: Sequence[ImageFile], count: int, first: Sequence[str]) -> list[ImageFile]:
    """A sample, with photos that are to be turned in it if there are any."""
    by_name = {file.name: file for file in files}
    wanted = [by_name[name] for name in dict.fromkeys(first) if name in by_name][:count]
    names = {file.name for file in wanted}
    others = [file for file in files if file.name not in names]
    left = count - len(wanted)
    if left == 0 or not others:
        return wanted
    if left == 1 or len(others) <= left:
        return [*wanted, *sample_images(others, left)]
    headers = sample_images(others, _HEADERS_READ)
    turned = [file for file in headers if _is_turned(file)][: max(1, left // _TURNED_PART)]
    names = {file.name for file in turned}
    upright = sample_images([file for file in others if file.name not in names], left - len(turned))
    return [*wanted, *sorted([*turned, *upright], key=lambda file: file.name)]


def _is_turned(file: ImageFile) -> bool:
    with contextlib.suppress(DecodeError):
        return exif_orientation(file.path) in _TURNED
    return False
