"""The photos of a training, as torch's datasets."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deploykit.errors import ImagesError
from deploykit.images.batches import read_batches
from deploykit.images.decode import DecodeError, decode_rgb
from deploykit.images.preprocess import preprocess
from deploykit.images.scan import IMAGE_EXTENSIONS, ImageFile, class_folders, escape_name
from deploykit.system.deps import need
from deploykit.system.progress import Note, Progress, Step

if TYPE_CHECKING:
    from PIL import Image
    from torch.utils.data import Subset

    from deploykit.specs.preprocessing import Preprocessing

_CHECKED_TOGETHER = 32
_SHOWN_FAILURES = 20


class TrainingImages(NamedTuple):
    """The readable photos of a folder, split in two.

    Attributes:
        classes: The names of the classes, in the order of the logits.
        train: Pairs of a photo, a float32 tensor (3, H, W), and the index of its class.
        test: The same.
        digest: SHA-256 of the classes and names, which tells whether the split is still the same.
    """

    classes: tuple[str, ...]
    train: Subset[Any]
    test: Subset[Any]
    digest: str


def read_images(
    folder: Path,
    preprocessing: Preprocessing,
    test_fraction: float,
    seed: int,
    progress: Progress,
) -> TrainingImages:
    """Find the photos of a folder with one sub-folder a class, check each, and split them.

    A photo that cannot be read is skipped, with a note. The others are decoded and resized by the
    code that ``predict`` uses, and normalised by torchvision.

    Args:
        folder: The photos.
        preprocessing: The steps from a photo to the input of the network.
        test_fraction: The share of the photos to test on, 0..1.
        seed: The seed of the split.
        progress: Told how many photos are checked, and which are skipped.

    Raises:
        UsageError: There is no such folder.
        ImagesError: There are fewer than two classes, a class has no readable photo, or there are
            too few photos to split.
        DependencyError: torchvision is not installed.
    """
    datasets, transforms = need("torchvision.datasets"), need("torchvision.transforms")
    from torch import Generator
    from torch.utils.data import Subset, random_split

    classes = tuple(class_folders(folder))
    if len(classes) < 2:
        raise ImagesError(
            f"{folder} has 1 class folder: {classes[0]}.",
            hint="Training needs one folder of photos for each of two classes or more.",
        )
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
        is_valid_file=_is_image,
        allow_empty=True,
    )
    names = [escape_name(Path(path).relative_to(folder).as_posix()) for path, _ in dataset.samples]
    failures = _check(folder, names, preprocessing, progress)
    readable = [i for i, name in enumerate(names) if name not in failures]
    present = {dataset.targets[i] for i in readable}
    if missing := [name for i, name in enumerate(classes) if i not in present]:
        raise ImagesError(
            f"{folder} has class folders without a single readable photo: {', '.join(missing)}.",
            hint="Add photos to these folders, or move the folders away.",
        )

    tested = int(len(readable) * test_fraction)
    counts = [len(readable) - tested, tested]
    if counts[0] < 2 or counts[1] < 1:
        raise ImagesError(
            f"{len(readable)} photos are too few to keep {test_fraction:.0%} for testing: "
            f"{counts[0]} to train on, {counts[1]} to test on.",
            hint="Add photos, or change --test-fraction.",
        )
    train, test = random_split(Subset(dataset, readable), counts, Generator().manual_seed(seed))
    trained = {dataset.targets[readable[i]] for i in train.indices}
    if untrained := [name for i, name in enumerate(classes) if i not in trained]:
        progress(
            Note(
                f"All photos of {', '.join(untrained)} are among the test photos, so that this "
                "cannot be learned. Add photos, or try another --seed."
            )
        )
    listed = "\0".join([*classes, *(names[i] for i in readable)])
    digest = hashlib.sha256(listed.encode()).hexdigest()
    return TrainingImages(classes, train, test, digest)


def _open_image(path: str) -> Image.Image:
    # A function of the module: a process that reads photos gets it pickled on Windows. The error is
    # one that comes whole from such a process.
    try:
        return decode_rgb(Path(path))
    except DecodeError as exc:
        raise OSError(exc.message) from exc


def _is_image(path: str) -> bool:
    return Path(path).suffix.lower() in IMAGE_EXTENSIONS


def _check(
    folder: Path, names: list[str], preprocessing: Preprocessing, progress: Progress
) -> dict[str, str]:
    """Read every photo once; the reasons of those that cannot be read, by name."""
    failures: dict[str, str] = {}
    done = 0
    files = [ImageFile(folder, name) for name in names]
    for batch in read_batches(files, preprocessing, batch_size=_CHECKED_TOGETHER):
        for file, failure in zip(batch.files, batch.failures, strict=True):
            if failure is not None:
                failures[file.name] = failure.reason
        done += len(batch.files)
        progress(Step("checking photos", done, len(files)))
    if failures:
        lines = [f"{name}: {reason}" for name, reason in failures.items()][:_SHOWN_FAILURES]
        if len(failures) > len(lines):
            lines.append(f"... and {len(failures) - len(lines)} more")
        header = f"{len(failures)} of {len(files)} photos cannot be read and are skipped:"
        progress(Note("\n  ".join([header, *lines])))
    return failures
