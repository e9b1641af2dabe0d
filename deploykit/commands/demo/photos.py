"""A small labelled folder to try deploykit on, cut from the photographs inside scikit-image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from deploykit.errors import DependencyError, UsageError
from deploykit.system.deps import need

if TYPE_CHECKING:
    from collections.abc import Iterator

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, right and bottom exclusive."""

#: The colour photographs among the files that scikit-image's wheel has had since 0.18: nothing is
#: downloaded.
PHOTOS = {
    "cat": "chelsea.png",
    "galaxies": "hubble_deep_field.jpg",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
}
TRAIN_CROPS, TEST_CROPS = 40, 12
#: Training crops lie left of the first share of the width, test crops right of the second.
TRAIN_END, TEST_START = 0.54, 0.56
#: A crop's sides as shares of the shorter side of the part it is cut from.
SMALLEST_CROP, LARGEST_CROP = 0.6, 0.98
JPEG_QUALITY = 90
#: Tells the demo's own folder from one of the user's that happens to have its name.
MARK = "made-by-deploykit-demo.txt"


@dataclass(frozen=True)
class DemoPhotos:
    """The folders that were made, each with one sub-folder a class.

    Attributes:
        train: Crops to train on.
        test: Crops from other parts of the same photographs; no pixel is in both.
        classes: The classes' names, sorted.
    """

    train: Path
    test: Path
    classes: tuple[str, ...]


def claim_folder(folder: Path) -> None:
    """Mark a folder as the demo's, which may then replace what is in it.

    Raises:
        UsageError: It has something in it and no mark, or cannot be written to.
    """
    mark = folder / MARK
    try:
        if mark.is_file():
            return
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(
                f"{folder} has files that are not the demo's, which would write over them.",
                hint="Choose another folder: deploykit demo --output NAME.",
            )
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text("`deploykit demo` replaces what is in this folder.\n", encoding="utf-8")
    except OSError as exc:
        raise _unwritable(folder, exc) from exc


def make_demo_photos(folder: Path, *, seed: int = 0) -> DemoPhotos:
    """Cut crops of varied size and place from four photographs, and save them as JPEG.

    A file's name tells where it was cut: ``cat_07_31-40-172-190.jpg`` has left, top, right, bottom.

    Args:
        folder: Gets the folders ``train`` and ``test``. What an earlier call made is made again.
        seed: Another seed cuts other crops; the same one always the same.

    Raises:
        DependencyError: scikit-image is not installed, or came without its photographs.
        UsageError: The folder has other files where the crops should be, or cannot be written to.
    """
    demo = DemoPhotos(folder / "train", folder / "test", tuple(sorted(PHOTOS)))
    crops = dict(_plan_crops(demo, seed))
    _refuse_other_files(demo, crops)
    try:
        for path, crop in crops.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            crop.save(path, quality=JPEG_QUALITY)
    except OSError as exc:
        raise _unwritable(folder, exc) from exc
    return demo


def _plan_crops(demo: DemoPhotos, seed: int) -> Iterator[tuple[Path, Image.Image]]:
    """Every crop with the path it is saved to."""
    for index, label in enumerate(demo.classes):
        random = np.random.default_rng((seed, index))
        photo = _open_photo(PHOTOS[label])
        width, height = photo.size
        train_part = (0, 0, int(TRAIN_END * width), height)
        test_part = (int(TEST_START * width), 0, width, height)
        parts = ((demo.train, train_part, TRAIN_CROPS), (demo.test, test_part, TEST_CROPS))
        for folder, part, count in parts:
            for number in range(count):
                box = _random_box(part, random)
                place = "-".join(map(str, box))
                yield folder / label / f"{label}_{number:02d}_{place}.jpg", photo.crop(box)


def _random_box(part: Box, random: np.random.Generator) -> Box:
    """A box of random size somewhere in a part of a photo."""
    left, top, right, bottom = part
    sides = random.uniform(SMALLEST_CROP, LARGEST_CROP, 2) * min(right - left, bottom - top)
    width, height = (int(side) for side in sides)
    x = int(random.integers(left, right - width, endpoint=True))
    y = int(random.integers(top, bottom - height, endpoint=True))
    return x, y, x + width, y + height


def _open_photo(name: str) -> Image.Image:
    # By its path: scikit-image's own loaders reach for the network when a file is not there.
    path = Path(str(need("skimage.data").__file__)).parent / name
    try:
        with Image.open(path) as photo:
            return photo.convert("RGB")
    except OSError as exc:
        raise DependencyError(
            f"scikit-image is installed without its photograph {name}: {exc}",
            hint="Install it from PyPI: pip install --force-reinstall scikit-image",
        ) from exc


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"The demo cannot write to {folder} ({error.strerror}).", hint="Choose another folder."
    )


def _refuse_other_files(demo: DemoPhotos, crops: dict[Path, Image.Image]) -> None:
    """A stranger's photo in these folders would be trained on."""
    for folder in (demo.train, demo.test):
        others = [path for path in folder.rglob("*") if path.is_file() and path not in crops]
        if others:
            raise UsageError(
                f"{folder} has {len(others)} files that are not the demo's: {others[0].name} ...",
                hint="Choose another folder, or move them away.",
            )
