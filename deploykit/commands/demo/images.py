"""A small labelled folder to try deploykit on, cut from the photographs inside scikit-image."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from deploykit.errors import DependencyError, UsageError
from deploykit.system.deps import need

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, right and bottom exclusive."""

#: The colour photographs that scikit-image's wheel has had since 0.18: nothing is downloaded.
IMAGES = {
    "cat": "chelsea.png",
    "galaxies": "hubble_deep_field.jpg",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
}
TRAIN_CROPS, TEST_CROPS = 40, 12
#: Training crops lie left of the first share of the width, test crops right of the second.
TRAIN_END, TEST_START = 0.54, 0.56
#: The sides of a crop, as shares of the shorter side of the part that it is cut from.
SMALLEST_CROP, LARGEST_CROP = 0.6, 0.98
#: Marks a folder as the demo's own: a user's folder may have the same name.
MARK = "made-by-deploykit-demo.txt"


def claim_folder(folder: Path) -> None:
    """Mark a folder as the demo's, which may then replace its files.

    Raises:
        UsageError: It has files and no mark, or cannot be written to.
    """
    mark = folder / MARK
    try:
        if not mark.is_file() and folder.exists() and any(folder.iterdir()):
            raise UsageError(
                f"{folder} has files that are not the demo's.",
                hint="Choose another folder: deploykit demo --output NAME",
            )
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text("The demo of deploykit replaces files in this folder.\n", encoding="utf-8")
    except OSError as exc:
        raise UsageError(
            f"The demo cannot write to {folder} ({exc.strerror}).", hint="Choose another folder."
        ) from exc


def make_demo_images(folder: Path) -> tuple[Path, Path]:
    """Cut crops of different sizes from four photographs, always the same, and save them as JPEG.

    A file is named after its place: ``cat_07_31-40-172-190.jpg`` has left, top, right and bottom.

    Returns:
        The folders to train and to test on, with one sub-folder a class. No pixel is in both.

    Raises:
        DependencyError: scikit-image is not installed, or came without its photographs.
    """
    train, test = folder / "train", folder / "test"
    for index, (label, file) in enumerate(sorted(IMAGES.items())):
        random = np.random.default_rng((0, index))
        photo = _open_image(file)
        width, height = photo.size
        train_part = (0, 0, int(TRAIN_END * width), height)
        test_part = (int(TEST_START * width), 0, width, height)
        for part, box, count in ((train, train_part, TRAIN_CROPS), (test, test_part, TEST_CROPS)):
            (part / label).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                crop = _random_box(box, random)
                place = "-".join(map(str, crop))
                path = part / label / f"{label}_{number:02d}_{place}.jpg"
                photo.crop(crop).save(path, quality=90)
    return train, test


def _random_box(part: Box, random: np.random.Generator) -> Box:
    """A box of random size somewhere in a part of a photo."""
    left, top, right, bottom = part
    sides = random.uniform(SMALLEST_CROP, LARGEST_CROP, 2) * min(right - left, bottom - top)
    width, height = (int(side) for side in sides)
    x = int(random.integers(left, right - width, endpoint=True))
    y = int(random.integers(top, bottom - height, endpoint=True))
    return x, y, x + width, y + height


def _open_image(name: str) -> Image.Image:
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
