"""The images of a training, as torch's datasets."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deploykit.errors import ImagesError
from deploykit.images.batches import read_batches
from deploykit.images.decode import DecodeError, decode_rgb
from deploykit.images.preprocess import preprocess
from deploykit.images.scan import class_folders, escape_name, scan_images
from deploykit.system.deps import need
from deploykit.system.progress import Note, Progress, Step
from deploykit.system.text import visible

if TYPE_CHECKING:
    from collections.abc import Collection

    from PIL import Image
    from torch.utils.data import Subset

    from deploykit.specs.preprocessing import Preprocessing

_CHECKED_TOGETHER = 32
_SHOWN_FAILURES = 20


class TrainingImages(NamedTuple):
    """The readable images of a folder, split in two.

    Attributes:
        classes: The names of the classes, in the order of the logits.
        train: Pairs of an image, a float32 tensor (3, H, W), and the index of its class.
        test: The same.
        names: Of all photos that can be read, relative to the folder: what is split.
    """

    classes: tuple[str, ...]
    train: Subset[Any]
    test: Subset[Any]
    names: list[str]


def read_images(
    folder: Path,
    preprocessing: Preprocessing,
    test_fraction: float,
    seed: int,
    progress: Progress,
) -> TrainingImages:
    """Find the images of a folder with one sub-folder a class, check each, and split them.

    One that cannot be read is skipped, with a note. The others are decoded and resized by the
    code that ``predict`` uses, and normalised by torchvision.

    Args:
        folder: The images.
        preprocessing: The steps from an image to the input of the network.
        test_fraction: The share of the images to test on, 0..1.
        seed: The seed of the split.
        progress: Told how many images are checked, and which are skipped.

    Raises:
        UsageError: There is no such folder.
        ImagesError: There are fewer than two classes, a class has no readable image, or there are
            too few to split.
        DependencyError: torchvision is not installed.
    """
    datasets, transforms = need("torchvision.datasets"), need("torchvision.transforms")
    from torch import Generator
    from torch.utils.data import random_split

    classes = tuple(class_folders(folder))
    if len(classes) < 2:
        raise ImagesError(
            f"{folder} has 1 class folder: {classes[0]}.",
            hint="Training needs one folder of photos for each of two classes or more.",
        )
    readable = _readable(folder, classes, preprocessing, progress)
    dataset = datasets.ImageFolder(
        folder,
        transform=transforms.Compose(
            [
                functools.partial(preprocess, preprocessing=preprocessing),
                transforms.ToTensor(),
                transforms.Normalize(preprocessing.mean, preprocessing.std),
            ]
        ),
        loader=_open_image,
        is_valid_file=lambda path: Path(path) in readable,
        allow_empty=True,
    )
    present = {*dataset.targets}
    if missing := [name for i, name in enumerate(classes) if i not in present]:
        raise ImagesError(
            f"{folder} has class folders without a single readable photo: {', '.join(missing)}.",
            hint="Add photos to these folders, or move the folders away.",
        )

    tested = int(len(dataset) * test_fraction)
    counts = [len(dataset) - tested, tested]
    if counts[0] < 2 or counts[1] < 1:
        raise ImagesError(
            f"{len(dataset)} photos are too few to keep {test_fraction:.0%} for testing: "
            f"{counts[0]} to train on, {counts[1]} to test on.",
            hint="Add photos, or change --test-fraction.",
        )
    train, test = random_split(dataset, counts, Generator().manual_seed(seed))
    trained = {dataset.targets[i] for i in train.indices}
    if untrained := [name for i, name in enumerate(classes) if i not in trained]:
        progress(
            Note(
                f"All photos of {', '.join(untrained)} are among the test photos, so that this "
                "cannot be learned. Add photos, or try another --seed."
            )
        )
    names = [escape_name(Path(path).relative_to(folder).as_posix()) for path, _ in dataset.samples]
    return TrainingImages(classes, train, test, names)


def _open_image(path: str) -> Image.Image:
    # A function of the module: a process that reads images gets it pickled on Windows. The error is
    # one that comes whole from such a process.
    try:
        return decode_rgb(Path(path))
    except DecodeError as exc:
        raise OSError(exc.message) from exc


def _readable(
    folder: Path, classes: Collection[str], preprocessing: Preprocessing, progress: Progress
) -> set[Path]:
    """Read every image once; those that can be read. A note has the reasons of the others."""
    files = [file for file in scan_images(folder, classes).files if file.expected is not None]
    readable: set[Path] = set()
    reasons: list[str] = []
    for batch in read_batches(files, preprocessing, batch_size=_CHECKED_TOGETHER):
        for file, failure in zip(batch.files, batch.failures, strict=True):
            if failure is None:
                readable.add(file.path)
            else:
                reasons.append(visible(f"{file.name}: {failure.reason}"))
        progress(Step("checking photos", len(readable) + len(reasons), len(files)))
    if reasons:
        header = f"{len(reasons)} of {len(files)} photos cannot be read and are skipped:"
        more = len(reasons) - _SHOWN_FAILURES
        last = [f"... and {more} more"] if more > 0 else []
        progress(Note("\n  ".join([header, *reasons[:_SHOWN_FAILURES], *last])))
    return readable
