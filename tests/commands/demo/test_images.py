"""The demo's folder of crops."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploykit.commands.demo import images as demo_images
from deploykit.commands.demo.images import MARK, claim_folder, make_demo_images
from deploykit.errors import DependencyError, UsageError

CLASSES = ["cat", "galaxies", "motorcycle", "rocket"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, Path]:
    return make_demo_images(tmp_path_factory.mktemp("demo"))


def box_of(path: Path) -> tuple[int, ...]:
    """Left, top, right and bottom, as the file's name has them."""
    return tuple(map(int, path.stem.rpartition("_")[2].split("-")))


def test_make_demo_images_varied_crops_of_each_class(demo):
    for folder, count in zip(demo, (40, 12), strict=True):
        assert sorted(path.name for path in folder.iterdir()) == CLASSES
        assert [len(list((folder / name).iterdir())) for name in CLASSES] == [count] * 4
    for name in CLASSES:
        boxes = [box_of(path) for path in (demo[0] / name).iterdir()]
        assert len(set(boxes)) == 40
        assert len({(right - left, bottom - top) for left, top, right, bottom in boxes}) > 30


def test_make_demo_images_named_by_their_crops(demo):
    skimage_data = pytest.importorskip("skimage.data")
    photo = Image.open(Path(skimage_data.__file__).parent / "chelsea.png").convert("RGB")
    for path in [path for folder in demo for path in (folder / "cat").iterdir()]:
        with Image.open(path) as crop:
            assert crop.format == "JPEG"
            expected = photo.crop(box_of(path))
            assert crop.size == expected.size
            difference = np.asarray(crop, np.int16) - np.asarray(expected, np.int16)
        assert np.abs(difference).mean() < 4, "more than JPEG's own loss"


def test_make_demo_images_train_and_test_are_disjoint(demo):
    train, test = demo
    for name in CLASSES:
        train_end = max(box_of(path)[2] for path in (train / name).iterdir())
        assert train_end < min(box_of(path)[0] for path in (test / name).iterdir())


def test_make_demo_images_is_deterministic(demo):
    folder = demo[0].parent
    before = {path: path.read_bytes() for path in folder.rglob("*.jpg")}
    next(iter(before)).write_bytes(b"broken")
    make_demo_images(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.jpg")} == before


def test_make_demo_images_without_photographs(tmp_path, monkeypatch):
    monkeypatch.setitem(demo_images.IMAGES, "cat", "not_shipped.png")
    with pytest.raises(DependencyError, match=r"without its photograph not_shipped\.png"):
        make_demo_images(tmp_path)


def test_claim_folder_twice(tmp_path):
    folder = tmp_path / "new" / "demo"
    claim_folder(folder)
    (folder / "best_model.pth").touch()
    claim_folder(folder)
    (folder / MARK).unlink()
    with pytest.raises(UsageError, match="has files that are not the demo's"):
        claim_folder(folder)
