"""Which classes images are of: tables and folders, for each head."""

import os
import shutil
import sys
from pathlib import Path

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


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
@pytest.mark.parametrize(
    "path",
    [
        "cat/a.png",
        "cat//../cat/a.png",
        ".\\cat\\a.png",
        "photos/cat/a.png",
        "./photos/cat/a.png",
        "photos/../photos/cat/a.png",
        "{folder}/cat/a.png",
        "{given}/cat/a.png",
        "a.png",
    ],
)
@pytest.mark.parametrize("listed", ["{folder}", "{link}", "{list}"])
def test_known_classes_of_a_table_and_its_paths(folder, path, listed, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "files.txt").write_text(f"photos/dog/b.png\n{folder}/cat/a.png\n")
    places = {"folder": folder, "link": tmp_path / "link", "list": tmp_path / "files.txt"}
    table = tmp_path / "labels.csv"
    path = path.format(folder=folder, given=tmp_path / "link" if "link" in listed else folder)
    table.write_text(f"path,cat,dog\n{path},1,1\nelsewhere.png,1,0\n")
    scan = scan_images(Path(listed.format(**places)))
    image = next(file.name for file in scan.files if file.name.endswith("a.png"))
    told = []
    assert known_classes(scan, MANY, table, told.append) == {image: ("cat", "dog")}
    other = next(file.name for file in scan.files if file.name.endswith("b.png"))
    assert [*map(str, told)] == [
        f"{table}: 1 of 2 rows match no image, the first is elsewhere.png",
        f"{table} has no row for 1 of 2 images, the first is {other}",
    ]


def test_known_classes_of_names_that_occur_twice(folder):
    """The folder of the table tells which is meant; a name alone does not."""
    (folder / "photos" / "cat").mkdir(parents=True)
    shutil.copy(folder / "cat" / "a.png", folder / "photos" / "cat")
    text = "photos/cat/a.png,cat\n{}/cat/a.png,dog\n"
    found = {"photos/cat/a.png": ("cat",), "cat/a.png": ("dog",)}
    assert known(folder, ONE, text.format(folder)) == found
    assert known(folder, ONE, "a.png,cat\nb.png,dog\n") == {"dog/b.png": ("dog",)}
    # The row of another b.png, which is not there.
    assert known(folder, ONE, "b.png,cat\ndog/b.png,dog\n") == {"dog/b.png": ("dog",)}
    assert known(folder, ONE, "b.png,cat\nx/b.png,dog\ng/b.png,cat\n") == {"dog/b.png": ("cat",)}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_known_classes_of_names_that_are_not_unicode(tmp_path):
    folder = tmp_path / os.fsdecode(b"gr\xfcn") / "photos"
    folder.mkdir(parents=True)
    for name in (b"caf\xe9.png", b"a\\b.png", "caf\u00e9.png".encode()):
        (folder / os.fsdecode(name)).touch()
    scan = scan_images(folder)
    # As the rows of predict show them.
    text = "{}caf\\udce9.png,cat\n{}a\\b.png,dog\n{}caf\u00e9.png,dog\n"
    shown = scan_images(tmp_path).files[0].name.rpartition("/")[0]
    for prefix in ("", "photos/", f"{tmp_path}/{shown}/"):
        table = folder.parent / "labels.csv"
        table.write_text(text.format(*[prefix] * 3), encoding="utf-8")
        found = known_classes(scan, ONE, table)
        assert {name: found[name] for name in sorted(found)} == {
            "a\\b.png": ("dog",),
            "caf\\udce9.png": ("cat",),
            "caf\u00e9.png": ("dog",),
        }


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
        (MANY, "c.png,cat\n", r"the first row is c\.png, the first image cat/a\.png"),
        (MANY, "cat/a.png,cat\nphotos/cat/a.png,dog\n", "photos/cat/a.png are the same image"),
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
