"""The demo's folder of crops."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploykit.commands.demo import photos as demo_photos
from deploykit.commands.demo.photos import MARK, DemoPhotos, claim_folder, make_demo_photos
from deploykit.errors import DependencyError, UsageError


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> DemoPhotos:
    return make_demo_photos(tmp_path_factory.mktemp("demo"))


def box_of(path: Path) -> tuple[int, ...]:
    """Left, top, right and bottom, as the file's name has them."""
    return tuple(map(int, path.stem.rpartition("_")[2].split("-")))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))


def test_has_enough_crops_of_each_class(demo):
    assert demo.classes == ("cat", "galaxies", "motorcycle", "rocket")
    for folder, count in ((demo.train, 40), (demo.test, 12)):
        assert sorted(path.name for path in folder.iterdir()) == list(demo.classes)
        assert [len(list((folder / name).iterdir())) for name in demo.classes] == [count] * 4


def test_crops_vary_in_size_and_place(demo):
    for name in demo.classes:
        boxes = [box_of(path) for path in (demo.train / name).iterdir()]
        assert len(set(boxes)) == 40
        assert len({(right - left, bottom - top) for left, top, right, bottom in boxes}) > 30


def test_a_crop_is_what_its_name_says(demo):
    skimage_data = pytest.importorskip("skimage.data")
    photo = Image.open(Path(skimage_data.__file__).parent / "chelsea.png").convert("RGB")
    for path in [*(demo.train / "cat").iterdir(), *(demo.test / "cat").iterdir()]:
        with Image.open(path) as crop:
            assert crop.format == "JPEG"
            expected = photo.crop(box_of(path))
            assert crop.size == expected.size
            difference = np.asarray(crop, np.int16) - np.asarray(expected, np.int16)
        assert np.abs(difference).mean() < 4, "more than JPEG's own loss"


def test_train_and_test_crops_share_no_pixel(demo):
    for name in demo.classes:
        train_end = max(box_of(path)[2] for path in (demo.train / name).iterdir())
        test_start = min(box_of(path)[0] for path in (demo.test / name).iterdir())
        assert train_end < test_start


def test_the_same_seed_cuts_the_same_and_another_others(demo, tmp_path):
    again = make_demo_photos(tmp_path / "again")
    assert names(again.train) == names(demo.train)
    for name in names(demo.train):
        assert (again.train / name).read_bytes() == (demo.train / name).read_bytes()
    assert names(make_demo_photos(tmp_path / "other", seed=1).train) != names(demo.train)


def test_makes_again_what_it_made(demo):
    path = demo.test / names(demo.test)[0]
    before = path.read_bytes()
    path.write_bytes(b"broken")
    make_demo_photos(demo.test.parent)
    assert path.read_bytes() == before


def test_does_not_mix_with_other_photos(tmp_path):
    mine = tmp_path / "train" / "cat" / "mine.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"files that are not the demo's: mine\.jpg"):
        make_demo_photos(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]


def test_photographs_that_are_not_installed_are_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(demo_photos.PHOTOS, "cat", "not_shipped.png")
    with pytest.raises(DependencyError, match=r"without its photograph not_shipped\.png"):
        make_demo_photos(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_claimed_once_and_recognised_later(tmp_path):
    folder = tmp_path / "new" / "demo"
    claim_folder(folder)
    (folder / "best_model.pth").touch()
    claim_folder(folder)
    (folder / MARK).unlink()
    with pytest.raises(UsageError, match="has files that are not the demo's"):
        claim_folder(folder)
