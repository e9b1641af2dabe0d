import os
from pathlib import Path

import pytest

from deploykit.errors import InputError, UsageError
from deploykit.images.labels import LABELS_FILE, choose_labels, name_labels


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "training").mkdir()
    return tmp_path / "training" / "best_model.pth"


def test_choose_labels_from_a_folder(tmp_path, weights):
    for name in ("b", "a", "10", "9", "B"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    labels = choose_labels(str(tmp_path / "photos"), weights, 5)
    assert labels.names == ("10", "9", "B", "a", "b")
    assert labels.source == "folder photos"


def test_choose_labels_from_a_text_file(tmp_path, weights):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffmésange bleue\r\n鹰\r\n\r\n".encode())
    labels = choose_labels(str(path), weights, 2)
    assert labels.names == ("mésange bleue", "鹰")
    assert labels.source == "file names.txt"


def test_choose_labels_from_a_comma_list(weights):
    assert choose_labels("cat, dog", weights, 2).names == ("cat", "dog")


def test_choose_labels_from_classes_txt_beside_checkpoint(weights):
    weights.with_name("classes.txt").write_text("cat\ndog\n", encoding="utf-8")
    labels = choose_labels(None, weights, 2)
    assert labels.names == ("cat", "dog")
    assert labels.source == "classes.txt beside the checkpoint"


def test_choose_labels_without_names(weights):
    labels = choose_labels(None, weights, 3)
    assert labels.names == ("class_0", "class_1", "class_2")
    assert labels.source == "assumed"


def test_choose_labels_of_wrong_number(weights):
    with pytest.raises(InputError, match="weights have 4 classes, but --classes names 2: cat, dog"):
        choose_labels("cat,dog", weights, 4)


def test_choose_labels_from_classes_txt_of_wrong_number(weights):
    weights.with_name("classes.txt").write_text("cat\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"classes.txt beside the checkpoint names 1"):
        choose_labels(None, weights, 2)


def test_choose_labels_from_a_long_comma_list(weights):
    names = [f"a class with a long name, number {i}".replace(",", "") for i in range(200)]
    assert choose_labels(",".join(names), weights, 200).names == tuple(names)


def test_choose_labels_of_a_missing_folder(weights):
    with pytest.raises(UsageError, match="no such folder or file"):
        choose_labels("./bird_phots", weights, 2)
    with pytest.raises(UsageError, match="no such folder or file"):
        choose_labels("", weights, 2)


def test_choose_labels_refuses_repeated_names(weights):
    with pytest.raises(UsageError, match="--classes repeats 1: cat") as caught:
        choose_labels("cat,dog,cat", weights, 3)
    assert "--number-duplicates" in caught.value.hint


def test_choose_labels_numbers_duplicates(weights):
    given = "crane,crane 2,dog,crane,dog,crane"
    labels = choose_labels(given, weights, 6, number_duplicates=True)
    assert labels.names == ("crane", "crane 2", "dog", "crane 3", "dog 2", "crane 4")
    assert choose_labels("b,a", weights, 2, number_duplicates=True).names == ("b", "a")


@pytest.mark.parametrize(
    ("given", "count", "ways"),
    [
        ("cat,dog", 4, ["--classes cat,dog,class_2,class_3", "train again with 2 classes"]),
        ("cat,", 2, ["--classes cat,class_1", "train again with 1 class."]),
        ("cat,dog", 100, ["all 100", "--classes FILE", "train again with 2 classes"]),
        ("cat,dog,owl", 2, ["Give the 2", "--classes", "train again with 3 classes"]),
    ],
)
def test_choose_labels_of_wrong_number_says_how_to_go_on(weights, given, count, ways):
    with pytest.raises(InputError) as caught:
        choose_labels(given, weights, count)
    for way in ways:
        assert way in caught.value.hint


def test_a_file_that_powershell_wrote_is_read(tmp_path, weights):
    path = tmp_path / "names.txt"
    path.write_bytes("cat\r\ndog\r\n".encode("utf-16"))
    assert choose_labels(str(path), weights, 2).names == ("cat", "dog")


def test_choose_labels_from_a_binary_file(tmp_path, weights):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xff\xfe\x00caf\xe9")
    with pytest.raises(InputError, match=r"list of class names .* is not text in UTF-16"):
        choose_labels(str(path), weights, 2)


def test_name_labels_round_trip(tmp_path, weights):
    folder = tmp_path / "photos"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    assert name_labels(("a", "b"), folder) == str(folder)
    assert name_labels(("b", "a"), folder) == "b,a"
    assert name_labels(("a", "b", "c"), folder) == "a,b,c"
    assert name_labels(("a", "b"), tmp_path / "gone") == "a,b"
    assert name_labels(("a", "b"), None) == "a,b"


def test_name_labels_too_long_to_type():
    assert name_labels(("bird, big", "bird, small"), None) == LABELS_FILE
    assert name_labels([f"class {i}" for i in range(21)], None) == LABELS_FILE
    assert name_labels([f"class {i}" for i in range(20)], None) != LABELS_FILE


@pytest.mark.parametrize("name", ["bl\nue", "a\x1b[2J", "b\u2028c"])
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_choose_labels_from_a_folder_with_control_characters(tmp_path, weights, name):
    for each in ("green", name):
        (tmp_path / "photos" / each).mkdir(parents=True)
    with pytest.raises(InputError, match="has a control character") as caught:
        choose_labels(str(tmp_path / "photos"), weights, 2)
    assert caught.value.hint == "Rename that sub-folder."


def test_choose_labels_from_a_comma_list_with_control_characters(weights):
    with pytest.raises(UsageError, match="has a control character"):
        choose_labels("a\nb,c", weights, 2)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device here")
def test_choose_labels_from_a_device(weights):
    with pytest.raises(InputError, match="/dev/zero cannot be read: it is not a file"):
        choose_labels("/dev/zero", weights, 2)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no pipes in folders")
@pytest.mark.parametrize("place", ["named", "beside"])
def test_choose_labels_from_a_pipe(tmp_path, weights, place):
    pipe = weights.with_name("classes.txt")
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=r"classes.txt cannot be read: it is not a file"):
        choose_labels(str(pipe) if place == "named" else None, weights, 2)


def test_choose_labels_from_a_huge_file(tmp_path, weights):
    path = tmp_path / "names.txt"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="has more than 1073741824 bytes"):
        choose_labels(str(path), weights, 2)
