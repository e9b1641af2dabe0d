"""The images that a job measures on: the user's photos, the bundle's golden ones, or made ones."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from deploykit.bundle.folder import GOLDEN, Bundle
from deploykit.bundle.golden import read_golden
from deploykit.bundle.manifest import printable, recorded_path
from deploykit.bundle.verdicts import ImageKind, ImageSet
from deploykit.errors import ImagesError, UsageError
from deploykit.images.batches import read_batches
from deploykit.images.generated import generated_images
from deploykit.images.preprocess import pixel_digest
from deploykit.images.scan import ImageFile, Scan, sample_images, scan_images
from deploykit.images.truth import known_classes
from deploykit.parity.budget import Budget
from deploykit.parity.compare import NamedBatch
from deploykit.parity.tolerance import MIN_IMAGES
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing import Preprocessing, Size
from deploykit.specs.session import ImageBatch
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import counted

EXPORT_IMAGES = 24
_READ_BATCH = 8
#: What to do about images that cannot be read.
LOOK_AT_THEM = (
    "Name another folder (--images DIR), or see what is wrong with each image: "
    "deploykit predict DIR"
)


class ImageSample:
    """Named images to be drawn once, which afterwards can say what they were.

    Each is drawn once however many files have its pixels: of decisions a duplicate tells nothing.

    Args:
        kind: Whose images they are.
        source: The folder, or empty.
        count: How many there are if all can be read.
        batches: Names, images (N, H, W, 3), and how many beside them cannot be read.
        expected: The classes of those images of which they are known, by the image's name.
        limit: How many to draw at most; None for all. Those that are skipped do not count.
        files: Those of the images that were drawn, by their names: filled as they are drawn.

    Attributes:
        unreadable: How many could not be read so far.
        files: See above; empty where the images are no files.
    """

    def __init__(
        self,
        kind: ImageKind,
        source: str,
        count: int,
        batches: Iterable[tuple[list[str], ImageBatch, int]],
        expected: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
        limit: int | None = None,
        files: Mapping[str, ImageFile] = MappingProxyType({}),
    ) -> None:
        self.files = files
        self.kind: ImageKind = kind
        self.source = source
        self.count = count
        self.expected = expected
        self.unreadable = 0
        self._batches = batches
        self._limit = limit
        self._pixels = hashlib.sha256()
        self._drawn: set[str] = set()
        self._unwanted: frozenset[str] = frozenset()
        self._images = self._duplicates = self._calibration = 0

    def __iter__(self) -> Iterator[NamedBatch]:
        for names, images, unreadable in self._batches:
            self.unreadable += unreadable
            kept = [row for row, image in enumerate(images) if self._is_wanted(image)]
            # Only where it must be, an image is copied.
            batch = images if len(kept) == len(images) else images[kept]
            self._pixels.update(np.ascontiguousarray(batch).data)
            yield [names[row] for row in kept], batch
            if self._images == self._limit:
                self.close()  # threads read ahead
                return

    def _is_wanted(self, image: npt.NDArray[np.uint8]) -> bool:
        if self._images == self._limit:
            return False
        digest = pixel_digest(image)
        # Of golden images the answers are recorded one by one, duplicates or not.
        if digest in self._drawn and self.kind == "photos":
            self._duplicates += 1
            return False
        if digest in self._unwanted:
            self._calibration += 1
            return False
        self._drawn.add(digest)
        self._images += 1
        return True

    def skip(self, calibration: Collection[str]) -> None:
        """Draw none of some images, told as :attr:`digests` tells them, under whatever name.

        Args:
            calibration: They had a part in making what is compared, which was fitted to them.
        """
        self._unwanted = frozenset(calibration)

    def close(self) -> None:
        """Stop reading ahead, whoever has drawn how many; closing twice is fine."""
        if isinstance(self._batches, Generator):
            self._batches.close()

    @property
    def readable(self) -> int:
        """How many could be read so far, with those that were skipped."""
        return self._images + self._duplicates + self._calibration

    @property
    def digests(self) -> frozenset[str]:
        """The images that were drawn, each the start of its pixels' SHA-256."""
        return frozenset(self._drawn)

    def drawn(self) -> ImageSet:
        """What was drawn.

        Raises:
            ImagesError: Not one image could be read, or each that could was skipped.
        """
        if not self._drawn and self._calibration:
            raise ImagesError(
                f"Nothing is left in {self.source or GOLDEN} to compare on: "
                f"{counted(self._calibration, 'image')} had a part in making what is compared.",
                hint="Name a folder with other photos: --images DIR",
            )
        if not self._drawn:
            raise nothing_readable(self.source, self.count)
        return ImageSet(
            kind=self.kind,
            source=self.source,
            count=self._images,
            sha256=self._pixels.hexdigest(),
            duplicates=self._duplicates,
            calibration=self._calibration,
        )


def require_labels(budget: Budget | None, expected: Collection[str], source: str) -> None:
    """Refuse to judge a drop of accuracy on images of which too few classes are known.

    Args:
        budget: What the user allows.
        expected: The images whose classes are known.
        source: Where the images are from; empty for a bundle's own.

    Raises:
        UsageError: There are fewer than :data:`deploykit.parity.tolerance.MIN_IMAGES`.
    """
    if budget is None or budget.max_accuracy_drop is None or len(expected) >= MIN_IMAGES:
        return
    known = f"the classes of {len(expected)} are" if expected else "no class is"
    raise UsageError(
        f"--max-accuracy-drop is judged on {MIN_IMAGES} labelled images at least, and of "
        f"{source or GOLDEN} {known} known.",
        hint="Sort the images into folders that are named as the classes, or name a table of their "
        "classes: --images DIR --expected FILE\nWithout labels, allow flips: --max-flips 1%",
    )


def nothing_readable(source: str, count: int) -> ImagesError:
    """The error to end with when not one image can be read."""
    return ImagesError(
        f"Not one image can be read in {source}; {counted(count, 'was', 'were')} tried.",
        hint=LOOK_AT_THEM,
    )


def mostly_unreadable(unreadable: int, readable: int) -> str | None:
    """The reason why nothing is shown where most images cannot be read; None where most can."""
    if unreadable <= readable:
        return None
    images = counted(unreadable + readable, "photo")
    return f"{unreadable} of {images} cannot be read: what is left of them stands for nothing"


def listed_images(bundle: Bundle, images: Path | None, progress: Progress) -> Scan:
    """List the photos of a folder, else of the one given at export while it is there.

    Raises:
        UsageError: No folder is named, and the one given at export is not there.
        ImagesError: There is no image file.
    """
    folder, reason = _image_folder(bundle, images, progress)
    if folder is None:
        raise UsageError(
            f"There is no folder of photos to choose from: {reason}.",
            hint="Name one: --images DIR",
        )
    return scan_images(folder, bundle.manifest.labels.folder_names)


def bundle_sample(
    bundle: Bundle,
    images: Path | None,
    *,
    limit: int | None,
    progress: Progress,
    expected: Path | None = None,
) -> ImageSample:
    """The photos of a folder, else of the one given at export while it is there, else golden ones.

    Args:
        bundle: The bundle.
        images: The folder; None for the one given at export.
        limit: How many at most; None for all.
        progress: Called with a note that says which photos are taken.
        expected: See :func:`deploykit.images.truth.known_classes`.

    Raises:
        UsageError: There are classes of photos, and no photos.
        ImagesError: There is no image file.
        InputError: See :func:`deploykit.images.truth.known_classes`.
        BundleError: The golden images are needed and damaged.
    """
    folder, reason = _image_folder(bundle, images, progress, expected)
    if folder is None:
        return golden_sample(_golden_instead(bundle, reason, progress)[:limit])
    preprocessing, labels = bundle.manifest.preprocessing, bundle.manifest.labels
    return folder_sample(
        folder,
        preprocessing,
        labels=labels,
        limit=limit,
        expected=expected,
        progress=progress,
    )


def split_samples(
    bundle: Bundle,
    images: Path | None,
    progress: Progress,
    *,
    search: int,
    proof: int,
    expected: Path | None = None,
) -> tuple[ImageSample, ImageSample]:
    """Photos to search with, and others to prove on what the search found.

    Args:
        bundle: The bundle.
        images: See :func:`bundle_sample`.
        progress: Called with a note that says which photos are taken.
        search: How many to search with, but never more than half.
        proof: How many to prove on, of those that are left.
        expected: See :func:`deploykit.images.truth.known_classes`.

    Returns:
        Two fixed samples, even over the classes, without a photo in common.

    Raises:
        UsageError: There are classes of photos, and no photos.
        ImagesError: There are not two images.
        InputError: See :func:`deploykit.images.truth.known_classes`.
        BundleError: The golden images are needed and damaged.
    """
    folder, reason = _image_folder(bundle, images, progress, expected)
    if folder is None:
        golden = _golden_instead(bundle, reason, progress)
        if len(golden) < 2:
            raise ImagesError(
                f"{GOLDEN} has one image; a search and its proof need two.",
                hint="Give a folder of photos: --images DIR",
            )
        return golden_sample(golden[0::2]), golden_sample(golden[1::2])
    manifest = bundle.manifest
    scan = scan_images(folder, manifest.labels.folder_names)
    files, known = scan.files, known_classes(scan, manifest.labels, expected)
    if len(files) < 2:
        raise ImagesError(
            f"{folder} has one image; a search and its proof need two.",
            hint=f"Name a folder with more photos, {search + proof} or more of them: --images DIR",
        )
    first = sample_images(files, min(search, len(files) // 2))
    taken = {file.name for file in first}
    others = sample_images([file for file in files if file.name not in taken], proof)
    return (
        read_sample(folder, first, manifest.preprocessing, known),
        read_sample(folder, others, manifest.preprocessing, known),
    )


def _image_folder(
    bundle: Bundle, images: Path | None, progress: Progress, expected: Path | None = None
) -> tuple[Path | None, str]:
    """The folder that is named, else the one given at export, said aloud; or why there is none.

    Raises:
        UsageError: There is none, but a table of its images' classes.
    """
    folder, reason = _named_or_recorded(bundle, images, progress)
    if folder is None and expected is not None:
        raise UsageError(
            f"--expected tells the classes of photos, and there are none: {reason}.",
            hint="Name their folder: --images DIR",
        )
    return folder, reason


def _named_or_recorded(
    bundle: Bundle, images: Path | None, progress: Progress
) -> tuple[Path | None, str]:
    if images is not None:
        return images, ""
    recorded = bundle.manifest.images
    if not recorded:
        return None, "no photos given"
    folder = recorded_path(recorded)
    if folder is None:
        return None, f"{recorded}, given at export, is no full path on a disk of this machine"
    if not folder.is_dir():
        return None, f"{recorded}, given at export, is not there"
    progress(Note(f"using the photos given at export: {folder}"))
    return folder, ""


def _golden_instead(bundle: Bundle, reason: str, progress: Progress) -> ImageBatch:
    progress(Note(f"{reason}: using {GOLDEN}; --images DIR takes yours"))
    return read_golden(bundle).images


def folder_sample(
    folder: Path,
    preprocessing: Preprocessing,
    *,
    labels: Labels,
    limit: int | None = None,
    expected: Path | None = None,
    progress: Progress = silent,
) -> ImageSample:
    """A folder's photos, all of them or a fixed sample that is even over the classes.

    Raises:
        ImagesError: There is no image file.
        InputError: See :func:`deploykit.images.truth.known_classes`.
    """
    scan = scan_images(folder, labels.folder_names)
    files, known = scan.files, known_classes(scan, labels, expected, progress)
    if limit is None or limit >= len(files):
        return read_sample(folder, files, preprocessing, known)
    wanted = _sample_after_sample(files, limit)
    return _read(folder, wanted, preprocessing, known, count=limit, limit=limit)


def _sample_after_sample(files: Sequence[ImageFile], size: int) -> Iterator[ImageFile]:
    """All files, in samples that are even over the classes: the next makes up for what is skipped.

    They are drawn as they are needed.
    """
    while files:
        drawn = {*sample_images(files, size)}
        yield from (file for file in files if file in drawn)
        files = [file for file in files if file not in drawn]


def read_sample(
    folder: Path,
    files: Sequence[ImageFile],
    preprocessing: Preprocessing,
    expected: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> ImageSample:
    """Some of a folder's photos, in the given order; and the classes of those that are known."""
    return _read(folder, files, preprocessing, expected, count=len(files), limit=None)


def _read(
    folder: Path,
    files: Iterable[ImageFile],
    preprocessing: Preprocessing,
    expected: Mapping[str, tuple[str, ...]],
    *,
    count: int,
    limit: int | None,
) -> ImageSample:
    drawn: dict[str, ImageFile] = {}

    def batches() -> Iterator[tuple[list[str], ImageBatch, int]]:
        for batch in read_batches(files, preprocessing, batch_size=_READ_BATCH):
            readable = batch.readable
            drawn.update((each.name, each) for each in readable)
            yield [each.name for each in readable], batch.images, len(batch.files) - len(readable)

    return ImageSample("photos", printable(folder), count, batches(), expected, limit, drawn)


def generated_sample(count: int, size: Size) -> ImageSample:
    """Made images, for a user who gave none."""
    names = [f"generated {i}" for i in range(count)]
    return ImageSample("generated", "", count, [(names, generated_images(count, size), 0)])


def golden_sample(images: ImageBatch) -> ImageSample:
    """A bundle's own images."""
    names = [f"golden {i}" for i in range(len(images))]
    return ImageSample("golden", "", len(names), [(names, images, 0)])
