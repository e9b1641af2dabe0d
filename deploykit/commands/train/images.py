"""The images of a training, as torch's datasets."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deploykit.commands.train.labels import find_labels
from deploykit.errors import ImagesError
from deploykit.images.batches import read_batches
from deploykit.images.decode import DecodeError, decode_rgb
from deploykit.images.preprocess import preprocess
from deploykit.system.deps import need
from deploykit.system.progress import Note, Progress, Step
from deploykit.system.text import counted, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from PIL import Image
    from torch import Tensor
    from torch.utils.data import Dataset, Subset

    from deploykit.images.preprocess import Pixels
    from deploykit.images.scan import ImageFile
    from deploykit.specs.heads import Decisions, HeadName
    from deploykit.specs.model import Labels
    from deploykit.specs.preprocessing import Preprocessing

_CHECKED_TOGETHER = 32
_SHOWN_FAILURES = 20


class TrainingImages(NamedTuple):
    """The readable images of a folder, split in two.

    Attributes:
        labels: The names of the classes, in the order of the logits, and the head.
        train: Pairs of an image, a float32 tensor (3, H, W), and its decision, (D,) as the head has
            it.
        test: The same.
        classes_of: The classes of each photo that can be read, by its name relative to the folder:
            what is split.
    """

    labels: Labels
    train: Subset[Any]
    test: Subset[Any]
    classes_of: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Photos:
    """A dataset as torch takes it: photos, each with its decision."""

    paths: list[Path]
    decisions: Decisions
    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Decisions]:
        return self.transform(_open_image(self.paths[index])), self.decisions[index]


def read_images(
    folder: Path,
    table: Path | str | None,
    head: HeadName | None,
    preprocessing: Preprocessing,
    test_fraction: float,
    seed: int,
    progress: Progress,
) -> TrainingImages:
    """Find the images of a folder and their classes, check each, and split them.

    One that cannot be read is skipped, with a note. The others are decoded and resized by the
    code that ``predict`` uses, and normalised by torchvision.

    Args:
        folder: The images; without a table in one sub-folder a class.
        table: A table with the classes of each image.
        head: What the network's answers are to mean; None to take it from the labels.
        preprocessing: The steps from an image to the input of the network.
        test_fraction: The share of the images to test on, 0..1.
        seed: The seed of the split.
        progress: Told how many images are checked, and which are skipped.

    Raises:
        UsageError: There is no such folder, or the labels do not fit the head.
        InputError: The table cannot be read, or is not clear.
        ImagesError: There are fewer than two classes, a class has no readable image, or there are
            too few to split.
        DependencyError: torchvision is not installed.
    """
    datasets, transforms = need("torchvision.datasets"), need("torchvision.transforms")
    from torch import Generator
    from torch.utils.data import random_split

    found = find_labels(folder, None if table is None else Path(table), head, progress)
    labels = found.labels
    files = _readable(found.files, preprocessing, progress)
    if table is None:  # in ImageFolder's order, so that the split is the tutorials'
        by_path = {file.path: file for file in files}
        samples = datasets.ImageFolder(
            folder, is_valid_file=lambda path: Path(path) in by_path, allow_empty=True
        ).samples
        files = [by_path[Path(path)] for path, _ in samples]
    classes_of = {file.name: found.classes_of[file.name] for file in files}
    if missing := _without(labels, classes_of.values()):
        what = "class folders" if table is None else "classes in the table"
        raise ImagesError(
            f"{folder} has {what} without a single readable photo: {missing}.",
            hint="Add photos to these folders, or move the folders away."
            if table is None
            else "Add photos of these classes, or take the classes out of the table.",
        )

    tested = int(len(files) * test_fraction)
    counts = [len(files) - tested, tested]
    if counts[0] < 2 or counts[1] < 1:
        raise ImagesError(
            f"{len(files)} photos are too few to keep {test_fraction:.0%} for testing: "
            f"{counts[0]} to train on, {counts[1]} to test on.",
            hint="Add photos, or change --test-fraction.",
        )
    photos: Dataset[Any] = _Photos(  # type: ignore[assignment]  # as DataLoader takes it
        paths=[file.path for file in files],
        decisions=_decisions(labels, classes_of.values()),
        transform=transforms.Compose(
            [
                functools.partial(preprocess, preprocessing=preprocessing),
                _tensor_of,
                transforms.Normalize(preprocessing.mean, preprocessing.std),
            ]
        ),
    )
    train, test = random_split(photos, counts, Generator().manual_seed(seed))
    each = [*classes_of.values()]
    for part, purpose in ((train, "train"), (test, "test")):
        if not any(each[i] for i in part.indices):
            raise ImagesError(
                f"Of {counted(len(part), 'photo')} to {purpose} on none is of any class.",
                hint="Add photos of the classes, or try another --seed.",
            )
    if untrained := _without(labels, (each[i] for i in train.indices)):
        progress(
            Note(
                f"All photos of {untrained} are among the test photos, so that this "
                "cannot be learned. Add photos, or try another --seed."
            )
        )
    return TrainingImages(labels, train, test, classes_of)


def _tensor_of(pixels: Pixels) -> Tensor:
    """As torchvision's ``ToTensor``, which takes floats to be in 0..1 already."""
    import torch

    channels_first = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return channels_first.to(torch.float32).div(255)


def _without(labels: Labels, photos: Iterable[Sequence[str]]) -> str:
    """The classes, in words, that none of some photos is of."""
    there = {*itertools.chain.from_iterable(photos)}
    return ", ".join(name for name in labels.names if name not in there)


def _decisions(labels: Labels, photos: Iterable[Sequence[str]]) -> Decisions:
    """(N, D) the decisions that are right; an image at a time, for (N, K) may be large."""
    index = {name: i for i, name in enumerate(labels.names)}
    rows = []
    for classes in photos:
        chosen = np.zeros((1, len(labels)), np.bool_)
        chosen[0, [index[name] for name in classes]] = True
        rows.append(labels.head.decisions(chosen)[0])
    return np.stack(rows)


def _open_image(path: Path) -> Image.Image:
    # A function of the module: a process that reads images gets it pickled on Windows. The error is
    # one that comes whole from such a process.
    try:
        return decode_rgb(path)
    except DecodeError as exc:
        raise OSError(exc.message) from exc


def _readable(
    files: Sequence[ImageFile], preprocessing: Preprocessing, progress: Progress
) -> list[ImageFile]:
    """Read every image once; those that can be read. A note has the reasons of the others."""
    readable: list[ImageFile] = []
    reasons: list[str] = []
    for batch in read_batches(files, preprocessing, batch_size=_CHECKED_TOGETHER):
        for file, failure in zip(batch.files, batch.failures, strict=True):
            if failure is None:
                readable.append(file)
            else:
                reasons.append(visible(f"{file.name}: {failure.reason}"))
        progress(Step("checking photos", len(readable) + len(reasons), len(files)))
    if reasons:
        header = f"{len(reasons)} of {len(files)} photos cannot be read and are skipped:"
        more = len(reasons) - _SHOWN_FAILURES
        last = [f"... and {more} more"] if more > 0 else []
        progress(Note("\n  ".join([header, *reasons[:_SHOWN_FAILURES], *last])))
    return readable
