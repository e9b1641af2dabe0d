import sys
from pathlib import Path

import pytest

from deploykit.errors import ImagesError
from deploykit.images.scan import read_file_list


def listed(folder: Path, content: bytes) -> list[str]:
    path = folder / "list.txt"
    path.write_bytes(content)
    return read_file_list(path)


def test_one_path_a_line_in_the_order_of_the_list(tmp_path: Path) -> None:
    assert listed(tmp_path, b"b.jpg\nsub/a.jpg\n-rf.png\n=1.png") == [
        "b.jpg",
        "sub/a.jpg",
        "-rf.png",
        "=1.png",
    ]


def test_blanks_empty_lines_and_repetitions_are_left_out(tmp_path: Path) -> None:
    assert listed(tmp_path, b"\n a.jpg\t\r\n\r\n   \nb c.jpg\n./a.jpg\na.jpg\n") == [
        "a.jpg",
        "b c.jpg",
    ]


def test_quotes_that_were_copied_with_a_path_are_no_part_of_it(tmp_path: Path) -> None:
    assert listed(tmp_path, b'"a b.jpg"\n"half.jpg\n"\n""\n') == ["a b.jpg", '"half.jpg', '"', '""']


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_text_is_unicode_as_editors_and_shells_write_it(tmp_path: Path, encoding: str) -> None:
    text = "\u5c71\u96c0.jpg\r\nseparated\u2028name.jpg\r\n\U0001f426.jpg\r\n"
    assert listed(tmp_path, text.encode(encoding)) == [
        "\u5c71\u96c0.jpg",
        "separated\u2028name.jpg",
        "\U0001f426.jpg",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="this system's file names are always Unicode")
def test_bytes_that_are_not_utf_8_name_the_file_that_has_them(tmp_path: Path) -> None:
    (name,) = listed(tmp_path, b"caf\xe9.jpg\n")
    assert name == "caf\\udce9.jpg"


def test_where_names_are_text_bytes_that_are_not_utf_8_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "getfilesystemencodeerrors", lambda: "surrogatepass")
    with pytest.raises(ImagesError, match=r"not text in UTF-8: .* at byte 3") as caught:
        listed(tmp_path, b"caf\xe9.jpg\n")
    assert "UTF-8" in str(caught.value.hint)


def test_half_a_character_of_utf_16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="not text in UTF-16"):
        listed(tmp_path, "a.jpg".encode("utf-16")[:-1])


def test_separators_are_the_systems_own(tmp_path: Path) -> None:
    (name,) = listed(tmp_path, bytes(Path("dog", "a.jpg")))
    assert name == "dog/a.jpg"


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_a_list_without_a_name_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ImagesError, match="names no file") as caught:
        listed(tmp_path, content)
    assert caught.value.hint


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="cannot be read") as caught:
        read_file_list(tmp_path)
    assert caught.value.hint
