"""The photos of a training run: found, read once, and dealt out in batches."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from deploykit.errors import ImagesError
from deploykit.images.batches import read_batches
from deploykit.images.scan import ImageFile, class_folders, scan_images
from deploykit.system.progress import Note, Progress, Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from deploykit.images.batches import Batch
    from deploykit.specs.preprocessing import Preprocessing
    from deploykit.specs.session import ImageBatch

#: The most memory that decoded photos are kept in; beyond it each epoch decodes them again.
CACHE_BYTES = 2**30
READING_BATCH = 32
NAMED_FAILURES = 20


class LabelledBatch(NamedTuple):
    """Photos with their classes.

    Attributes:
        images: (N, H, W, 3) uint8 RGB, valid until the next batch is asked for.
        targets: (N,) int64, the index of each photo's class.
        classes: How many classes there are.
    """

    images: ImageBatch
    targets: npt.NDArray[np.int64]
    classes: int


@dataclass(frozen=True)
class TrainingPhotos:
    """The readable photos of a folder of class folders.

    Attributes:
        classes: The classes' names, in the order of the logits.
        files: The photos' files.
        targets: (N,) int64, the index of each photo's class.
        preprocessing: How a photo becomes an image of the network's size.
        pixels: (N, H, W, 3) uint8, every photo decoded; None when that exceeds ``CACHE_BYTES``.
        threads: How many threads decode; None for the reader's default.
        digest: SHA-256 over names and pixels, which tells whether the photos are still the same.
    """

    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    targets: npt.NDArray[np.int64]
    preprocessing: Preprocessing
    pixels: ImageBatch | None
    threads: int | None
    digest: str

    def batches(
        self, order: npt.NDArray[np.int64], batch_size: int, *, drop_single: bool = False
    ) -> Iterator[LabelledBatch]:
        """Deal out the photos.

        Args:
            order: The positions of the photos wanted, in the order wanted.
            batch_size: How many a batch; the last has what is left.
            drop_single: Leave out a last batch of one photo.

        Raises:
            ImagesError: A photo that was readable at first no longer is.
        """
        if drop_single and len(order) % batch_size == 1 and len(order) > 1:
            order = order[:-1]
        starts = range(0, len(order), batch_size)
        parts = (order[start : start + batch_size] for start in starts)
        for part, images in zip(parts, self._images(order, batch_size), strict=True):
            yield LabelledBatch(images, self.targets[part], len(self.classes))

    def _images(self, order: npt.NDArray[np.int64], batch_size: int) -> Iterator[ImageBatch]:
        if self.pixels is not None:
            for start in range(0, len(order), batch_size):
                yield self.pixels[order[start : start + batch_size]]
            return
        files = [self.files[i] for i in order]
        for batch in read_batches(
            files, self.preprocessing, batch_size=batch_size, threads=self.threads
        ):
            if failures := _failures(batch):
                raise ImagesError(
                    _describe(failures, "photos could be read at first and no longer can"),
                    hint="Is the folder still there and complete? Then go on with --resume.",
                )
            yield batch.images


def read_photos(
    folder: Path,
    preprocessing: Preprocessing,
    *,
    threads: int | None = None,
    progress: Progress,
) -> TrainingPhotos:
    """Read every photo of a folder of class folders once; the unreadable ones are left out, aloud.

    Raises:
        ImagesError: Fewer than two classes, or a class without a readable photo.
    """
    classes = tuple(class_folders(folder))
    found = [file for file in scan_images(folder, classes).files if file.expected is not None]
    _check_classes(folder, classes, found, "photo")
    height, width = preprocessing.input_size
    fits = len(found) * height * width * 3 <= CACHE_BYTES
    pixels = np.empty((len(found) if fits else 0, height, width, 3), dtype=np.uint8)
    readable: list[ImageFile] = []
    failures: list[str] = []
    digest = hashlib.sha256()
    for batch in read_batches(found, preprocessing, batch_size=READING_BATCH, threads=threads):
        start = len(readable)
        readable += batch.readable
        failures += _failures(batch)
        digest.update("\0".join(file.name for file in readable[start:]).encode())
        digest.update(batch.images.data)
        if fits:
            pixels[start : len(readable)] = batch.images
        progress(Step("reading photos", len(readable) + len(failures), len(found)))
    if failures:
        progress(Note(_describe(failures, "photos cannot be read and are left out")))
    _check_classes(folder, classes, readable, "readable photo")
    index = {name: i for i, name in enumerate(classes)}
    return TrainingPhotos(
        classes=classes,
        files=tuple(readable),
        targets=np.array([index[str(file.expected)] for file in readable], np.int64),
        preprocessing=preprocessing,
        pixels=pixels[: len(readable)] if fits else None,
        threads=threads,
        digest=digest.hexdigest(),
    )


def split_photos(
    count: int, test_fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split at random: the positions for training and those for testing.

    The same split as ``torch.utils.data.random_split`` makes of ``[int((1 - test_fraction) * n),
    rest]`` with a generator of that seed, so that a tutorial's run can be compared with ours.

    Raises:
        ImagesError: Nothing would be left to test on, or fewer than two photos to train on.
    """
    import torch

    # 10 * (1 - 0.9) is 0.9999999999999998, and means 1.
    train_count = int(round(count * (1 - test_fraction), 6))
    if train_count < 2 or train_count == count:
        raise ImagesError(
            f"{count} photos are too few to keep {test_fraction:.0%} for testing: "
            f"{train_count} to train on, {count - train_count} to test on.",
            hint="Add photos, or change --test-fraction.",
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    return order[:train_count], order[train_count:]


def _failures(batch: Batch) -> list[str]:
    pairs = zip(batch.files, batch.failures, strict=True)
    return [f"{file.name}: {failure.reason}" for file, failure in pairs if failure is not None]


def _describe(failures: Sequence[str], what: str) -> str:
    """One line for the count, then one line a failure, as far as anyone reads on."""
    more = len(failures) - NAMED_FAILURES
    rest = [f"... and {more} more"] if more > 0 else []
    return "\n  ".join([f"{len(failures)} {what}:", *failures[:NAMED_FAILURES], *rest])


def _check_classes(
    folder: Path, classes: Sequence[str], files: Sequence[ImageFile], what: str
) -> None:
    """Refuse a folder that cannot teach a difference."""
    if len(classes) < 2:
        raise ImagesError(
            f"{folder} has {len(classes)} class folder: {', '.join(classes)}.",
            hint="Training needs one folder of photos for each of two classes or more.",
        )
    present = {file.expected for file in files}
    empty = [name for name in classes if name not in present]
    if empty:
        raise ImagesError(
            f"{folder} has class folders without a single {what}: {', '.join(empty)}.",
            hint="Add photos to these folders, or move the folders away.",
        )
