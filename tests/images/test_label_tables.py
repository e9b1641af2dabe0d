"""The classes of images out of the tables that people have."""

import pytest

from deploykit.errors import InputError
from deploykit.images.label_tables import read_label_table

NAMES = ("cat", "dog", "african crane")


@pytest.mark.parametrize(
    "text",
    [
        "path,labels\na.jpg,cat|dog\nb/c.png,african crane\nd.jpg,\n",
        "a.jpg,cat,dog\nb/c.png,african crane\nd.jpg\n",
        "a.jpg;dog; cat\nb\\c.png;african crane\nd.jpg;\n",
        "image\tlabels\na.jpg\tdog cat\n./b/c.png\tafrican crane\nd.jpg\t\n",
        'file,labels\na.jpg,"cat, dog"\nb/c.png,african crane\nd.jpg,\n',
        "path,cat,dog,african crane\na.jpg,1,1,0\nb/c.png,0,0,1\nd.jpg,0,0,0\n",
        "path,african crane,dog,cat\na.jpg,0.0,1.0,1.0\nb/c.png,1,0,0\nd.jpg,0,0,0\n",
        "path,cat,dog,african crane\r\na.jpg,True,True,False\r\nb/c.png,false,false,true\r\n"
        "d.jpg,false,false,false\r\n",
    ],
)
def test_read_label_table_of_usual_forms(text, tmp_path):
    (tmp_path / "labels.csv").write_bytes(text.encode())
    found = read_label_table(tmp_path / "labels.csv", NAMES)
    assert found.labels == NAMES
    assert found.rows == {
        "a.jpg": ("cat", "dog"),
        "b/c.png": ("african crane",),
        "d.jpg": (),
    }


def test_read_label_table_finds_the_classes(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("a.jpg,dog|african crane\nb.jpg,cat\n")
    assert read_label_table(path).labels == ("african crane", "cat", "dog")
    path.write_text("path,dog,cat\na.jpg,1,0\n")
    assert read_label_table(path).labels == ("dog", "cat")
    assert read_label_table(path).rows == {"a.jpg": ("dog",)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no image"),
        ("path,labels\n", "no image"),
        ("a.jpg,cat\na.jpg,dog\n", "a.jpg twice"),
        ("a.jpg,cat|emu\n", "'emu', which is no class"),
        ("path,cat,dog\na.jpg,1,0\n", "'african crane' is a class without a column"),
        ("path,cat,dog,african crane,emu\na.jpg,1,0,0,0\n", "'emu' is no class"),
        ("path,cat,dog,african crane\na.jpg,1,0\n", "2 values for 3 classes"),
        ("path\na.jpg\nb.jpg\n", "only paths"),
        ("a.jpg\nb.jpg\n", "only paths"),
        ("path,cat,hund,african crane\na.jpg,1,0,0\n", "column, and the column 'hund' is no"),
        ("path,cat,dog,african crane\na.jpg,1,0,0\n\nb.jpg,1,,0\n", r"b.jpg \(line 4\) has ''"),
        ("path,cat,dog,african crane\na.jpg,1,-1,0\n", "'-1' in the column 'dog', .* 0 nor 1"),
        ("path,cat,dog,african crane\na.jpg,nan,1,0\n", "'nan' in the column 'cat'"),
        (
            "path,cat,dog,african crane,note\na.jpg,1,1,0,blurry\n",
            "'blurry' in the column 'note', which is neither 0 nor 1, and 'note' is no class",
        ),
        ("a.jpg,1,0,0\nb.jpg,0,0,1\n", r"a.jpg \(line 1\) has '1', and no header"),
        ("a.jpg,cat|dog; african crane\n", "'dog; african crane', which is no class"),
        ('path,labels\na.jpg,"' + "x" * 140_000, "line 2 is no row of a table"),
        ("path,cat,cat,dog,african crane\na.jpg,1,0,0,0\n", "a class twice"),
    ],
)
def test_read_label_table_refuses_what_is_not_clear(text, reason, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_label_table(tmp_path / "labels.csv", NAMES)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("no", "yes"), "path,yes\na.jpg,1\nb.jpg,0\n"),
        (("no", "yes"), "path,no\na.jpg,0\nb.jpg,1\n"),
        (("no", "yes"), "path,no,yes\na.jpg,0,1\nb.jpg,1,0\n"),
        (("0", "1"), "path,label\na.jpg,1\nb.jpg,0\n"),
        (("0", "1"), "path,0,1\na.jpg,0,1\nb.jpg,1,0\n"),
    ],
)
def test_read_label_table_of_one_class_an_image(names, text, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    found = read_label_table(tmp_path / "labels.csv", names, several=False)
    assert found.rows == {"a.jpg": (names[1],), "b.jpg": (names[0],)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.jpg,no|yes\n", "a.jpg is of 2 classes"),
        ("a.jpg,\n", "a.jpg is of no classes"),
        ("path,no,yes\na.jpg,0,0\n", "a.jpg is of no classes"),
        ("path,maybe\na.jpg,0\n", "'maybe' is no class"),
    ],
)
def test_read_label_table_of_one_class_refuses_others(text, reason, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_label_table(tmp_path / "labels.csv", ("no", "yes"), several=False)
    if "maybe" not in text:  # of several classes, any number is clear
        assert read_label_table(tmp_path / "labels.csv", ("no", "yes")).rows


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.jpg,0\nb.jpg,1\n",
        "path,dog\na.jpg,0\nb.jpg,1\n",
        "path,cat\na.jpg,1\nb.jpg,0\n",
        "a.jpg,cat\nb.jpg,dog\n",
        "a.jpg,0\nb.jpg,1\n",
    ],
)
def test_read_label_table_of_two_classes_takes_one_column(text, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    found = read_label_table(tmp_path / "labels.csv", ("cat", "dog"), several=False)
    assert found.rows == {"a.jpg": ("cat",), "b.jpg": ("dog",)}


@pytest.mark.parametrize("text", ["path,cat,dog\na.jpg,1,\nb.jpg,0,1\n", "a.jpg,1,0\nb.jpg,0,1\n"])
def test_read_label_table_without_known_classes_makes_none_of_0_and_1(text, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=r"^The labels .*: a\.jpg"):
        read_label_table(tmp_path / "labels.csv")


def test_read_label_table_splits_a_cell_with_bars_only_there(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('a.jpg,"Doe, Jane|x"\nb.jpg,"Doe, Jane"\n')
    known = read_label_table(path, ("Doe, Jane", "x"))
    assert known.rows == {"a.jpg": ("Doe, Jane", "x"), "b.jpg": ("Doe, Jane",)}
    path.write_text('a.jpg,"Doe, Jane|x"\nb.jpg,"x, y"\n')
    assert read_label_table(path).rows == {"a.jpg": ("Doe, Jane", "x"), "b.jpg": ("x", "y")}


def test_read_label_table_takes_the_line_ends_of_old_macs(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"path,cat,dog\ra.jpg,1,0\rb.jpg,1,1\r")
    found = read_label_table(tmp_path / "labels.csv", ("cat", "dog"))
    assert found.rows == {"a.jpg": ("cat",), "b.jpg": ("cat", "dog")}


def test_read_label_table_allows_an_image_of_no_class(tmp_path):
    for text in ("path,labels\na.jpg\n", "a.jpg,\n"):
        (tmp_path / "labels.csv").write_text(text)
        assert read_label_table(tmp_path / "labels.csv", NAMES).rows == {"a.jpg": ()}
