"""The photos that the stages are walked on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import printable
from deploykit.errors import ImagesError
from deploykit.images.batches import read_batches
from deploykit.images.decode import DecodeError, exif_orientation
from deploykit.images.scan import ImageFile, class_folders, sample_images, scan_images
from deploykit.parity.copies import pixel_digest
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
#: Preprocessed photos are kept up to this; what is beyond is read again in each step.
_KEPT_BYTES = 256 << 20


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
    """Readable photos, each of which shows other pixels: a copy would count as evidence twice.

    Attributes:
        source: The folder.
        files: The photos' files.
        turned: Which of them have an EXIF orientation that says to turn them, by name.
        classes: The classes that the folder's names are of; empty where it is not labelled.
        preprocessing: What the bundle records.
        kept: (N, H, W, 3), what that makes of them; None where it is read anew each time.
        picked: The names of those that were not drawn but asked for.
        unreadable: How many more were drawn, and cannot be read.
        copies: How many more were drawn, and have the pixels of another.
        undrawn: How many more the folder has.
    """

    source: Path
    files: tuple[ImageFile, ...]
    turned: frozenset[str]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    kept: ImageBatch | None
    picked: frozenset[str] = frozenset()
    unreadable: int = 0
    copies: int = 0
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

    def thinned(self, count: int) -> StagePhotos:
        """At most so many of them, evenly."""
        every = -(-len(self.files) // count)
        kept = None if self.kept is None else self.kept[::every]
        return dataclasses.replace(self, files=self.files[::every], kept=kept)

    def pixels(self, places: Sequence[int]) -> ImageBatch:
        """Some of the photos, preprocessed as recorded: (n, H, W, 3).

        Raises:
            ImagesError: A photo can no longer be read.
        """
        if self.kept is not None:
            return self.kept[list(places)]
        files = [self.files[place] for place in places]
        (batch,) = read_batches(files, self.preprocessing, batch_size=len(files))
        pairs = zip(batch.files, batch.failures, strict=True)
        if failed := [file.name for file, failure in pairs if failure is not None]:
            raise ImagesError(
                f"{', '.join(failed)} could be read at first and no longer can.",
                hint="Is the folder still there and complete? Run the command again.",
            )
        return batch.images

    def one_by_one(self) -> Iterator[ImageBatch]:
        """Each photo as a batch of one, (1, H, W, 3)."""
        for place in range(len(self.files)):
            yield self.pixels([place])


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
    classes = tuple(class_folders(folder))
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
    different: dict[bytes, _Readable] = {}
    readable = 0
    height, width = preprocessing.input_size
    keeps = len(drawn) * height * width * 3 <= _KEPT_BYTES
    for batch in read_batches(drawn, preprocessing, batch_size=_READ_BATCH):
        readable += len(batch.readable)
        for file, pixels in zip(batch.readable, batch.images, strict=True):
            _add(different, file, pixels, keeps=keeps)
    if not different:
        raise nothing_readable(printable(source.folder), len(drawn))
    if unreadable := len(drawn) - readable:
        progress(Note(f"left out: {unreadable} of {len(drawn)} photos cannot be read"))
    if copies := readable - len(different):
        progress(Note(f"left out: {copies} of {len(drawn)} photos are copies of others"))
    found = different.values()
    return StagePhotos(
        source.folder,
        tuple(photo.file for photo in found),
        frozenset(photo.file.name for photo in found if photo.turned),
        source.classes,
        preprocessing,
        np.stack([photo.pixels for photo in found if photo.pixels is not None]) if keeps else None,
        frozenset(first),
        unreadable,
        copies,
        len(source.files) - len(drawn),
    )


class _Readable(NamedTuple):
    """A photo that can be read: its file, whether EXIF says to turn it, its pixels if kept."""

    file: ImageFile
    turned: bool
    pixels: npt.NDArray[np.uint8] | None


def _add(
    different: dict[bytes, _Readable],
    file: ImageFile,
    pixels: npt.NDArray[np.uint8],
    *,
    keeps: bool,
) -> None:
    """Add a photo where none has its pixels.

    Of two, one that is to be turned stays, in the other's place: training may have turned it.
    """
    digest = pixel_digest(pixels)
    turned, other = _is_turned(file), different.get(digest)
    if other is None or (turned and not other.turned):
        # The buffer behind the pixels is used again.
        different[digest] = _Readable(file, turned, pixels.copy() if keeps else None)


def _drawn(files: Sequence[ImageFile], count: int, first: Sequence[str]) -> list[ImageFile]:
    """A sample, with photos that are to be turned in it if there are any."""
    by_name = {file.name: file for file in files}
    wanted = [by_name[name] for name in dict.fromkeys(first) if name in by_name][:count]
    left = count - len(wanted)
    if left == 0:
        return wanted
    names = {file.name for file in wanted}
    others = [file for file in files if file.name not in names]
    return [*wanted, *_sampled(others, left)] if others else wanted


def _sampled(files: Sequence[ImageFile], count: int) -> list[ImageFile]:
    if count < 2 or len(files) <= count:
        return sample_images(files, count)
    headers = sample_images(files, _HEADERS_READ)
    turned = [file for file in headers if _is_turned(file)][: max(1, count // _TURNED_PART)]
    names = {file.name for file in turned}
    others = [file for file in files if file.name not in names]
    return sorted(
        [*turned, *sample_images(others, count - len(turned))], key=lambda file: file.name
    )


def _is_turned(file: ImageFile) -> bool:
    with contextlib.suppress(DecodeError):
        return exif_orientation(file.path) in _TURNED
    return False
