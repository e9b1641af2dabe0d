"""Which classes images are of: tables and folders, for each head."""

import pytest
from PIL import Image

from deploykit.errors import InputError
from deploykit.images.scan import scan_images
from deploykit.images.truth import known_classes, table_order
from deploykit.specs.heads import Binary, MultiLabel
from deploykit.specs.model import Labels

ONE = Labels(names=("cat", "dog"), source="test")
MANY = Labels(names=("cat", "dog"), source="test", head=MultiLabel(thresholds=(0.5, 0.5)))
BINARY = Labels(names=("cat", "dog"), source="test", head=Binary(thresholds=(0.5,)))


@pytest.fixture
def folder(tmp_path):
    """Two photos below folders that are named after classes."""
    for name in ("cat/a.png", "dog/b.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def known(folder, labels, text=None, place="labels.csv"):
    table = None
    if text is not None:
        table = folder.parent / place
        table.write_text(text)
    return dict(known_classes(scan_images(folder, labels.folder_names), labels, table))


def test_known_classes_of_folders(folder):
    for labels in (ONE, BINARY):
        assert known(folder, labels) == {"cat/a.png": ("cat",), "dog/b.png": ("dog",)}
    assert known(folder, MANY) == {}  # a cat's photo may show a dog as well


@pytest.mark.parametrize("prefix", ["", "photos/", "./photos/"])
def test_known_classes_of_a_table_and_its_paths(folder, prefix):
    text = f"path,cat,dog\n{prefix}cat/a.png,1,1\n{prefix}dog/b.png,0,0\nelsewhere.png,1,0\n"
    assert known(folder, MANY, text) == {"cat/a.png": ("cat", "dog"), "dog/b.png": ()}
    text = f"{folder}/cat/a.png,dog\n"
    assert known(folder, ONE, text) == {"cat/a.png": ("dog",)}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("path,dog\ncat/a.png,1\ndog/b.png,0\n", ("dog", "cat")),
        ("path,label\ncat/a.png,1\ndog/b.png,0\n", ("dog", "cat")),
        ("cat/a.png,1\ndog/b.png,0\n", ("dog", "cat")),
        ("path,cat\ncat/a.png,1\ndog/b.png,0\n", ("cat", "dog")),
        ("path,label\ncat/a.png,dog\ndog/b.png,cat\n", ("dog", "cat")),
        ("path,cat,dog\ncat/a.png,0,1\ndog/b.png,1,0\n", ("dog", "cat")),
    ],
)
def test_known_classes_of_one_logit(folder, text, found):
    (first, second) = found
    assert known(folder, BINARY, text) == {"cat/a.png": (first,), "dog/b.png": (second,)}


@pytest.mark.parametrize(
    ("labels", "text", "message"),
    [
        (ONE, "cat/a.png,cat|dog\n", r"cat/a\.png is of 2 classes"),
        (BINARY, "cat/a.png,\n", r"cat/a\.png is of no classes"),
        (MANY, "c.png,cat\n", r"it has c\.png, and there is cat/a\.png"),
        (MANY, "path,label\ncat/a.png,1\n", "'cat' is a class without a column"),
    ],
)
def test_known_classes_refuses_what_does_not_fit(folder, labels, text, message):
    with pytest.raises(InputError, match=message):
        known(folder, labels, text)


def test_table_order_is_that_of_the_columns(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("path,dog,cat\na.png,0,1\n")
    assert table_order(table, MANY) == ("dog", "cat")
    table.write_text("path,label\na.png,cat\n")
    assert table_order(table, MANY) == ()
