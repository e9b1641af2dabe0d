"""Whatever a file is called, wherever it is and whatever becomes of it: one row, the right one."""

import os
import socket
import sys

import numpy as np
import pytest
from answered_files import answers, as_in_training, write_photo

from deploykit.images import batches
from deploykit.images.decode import DecodeError, decode_rgb, decoded_rgb
from deploykit.images.scan import ImageFile, scan_images

ODD_NAMES = [
    "-rf.png",
    "--help.png",
    "=HYPERLINK(1).png",
    "@SUM(A1).png",
    "emoji \U0001f426\u200d\u2b1b.png",
    "עברית-العربية.png",
    "e\u0301 decomposed.png",
    "two  spaces.png",
    "'quotes'.png",
    "$HOME;`id`&.png",
    "100%25.png",
    "UPPER.PNG",
    "two.dots.jpg.png",
    ".hidden.png",
    ".png",
    "x" * 200 + ".png",
]
NAMES_OF_POSIX = [
    "line\nbreak.png",
    "tab\tand\rreturn.png",
    '<script>alert("1")<!-- & -->.png',
    "C:\\back\\slash.png",
    "what?*.png",
    " blanks .png",
    "\x1b[31mred.png",
]


def test_read_batches_of_odd_names(tmp_path):
    posix = [] if sys.platform == "win32" else NAMES_OF_POSIX
    pixels = {}
    for name in [*ODD_NAMES, *posix]:
        pixels[name] = as_in_training(write_photo(tmp_path / name))
    found = answers(tmp_path)
    assert len(found) == len(ODD_NAMES) + len(posix)
    for file in scan_images(tmp_path).files:
        # What the file system calls it, which on some is another spelling of what we did.
        np.testing.assert_array_equal(found[file.name], as_in_training(file.path))
    assert {tuple(answer) for answer in found.values()} == {tuple(p) for p in pixels.values()}


@pytest.mark.skipif(
    sys.platform in {"win32", "darwin"}, reason="this system's file names are always Unicode"
)
def test_read_batches_of_names_that_are_not_unicode(tmp_path):
    shown = {
        "caf\\udce9.png": b"caf\xe9.png",
        "caf\\\\udce9.png": b"caf\\udce9.png",
        "\\udcff\\\\\\udcfe.png": b"\xff\\\xfe.png",
    }
    paths = {name: write_photo(tmp_path / os.fsdecode(raw)) for name, raw in shown.items()}
    found = answers(tmp_path)
    assert list(found) == sorted(shown)
    for name, path in paths.items():
        np.testing.assert_array_equal(found[name], as_in_training(path))


def test_read_batches_follows_links(tmp_path):
    folder = tmp_path / "photos"
    elsewhere = tmp_path / "elsewhere"
    (folder / "album.jpg").mkdir(parents=True)
    elsewhere.mkdir()
    own = as_in_training(write_photo(folder / "album.jpg" / "own.png"))
    far = as_in_training(write_photo(elsewhere / "far.png"))
    link(folder / "circle.png", "circle.png")
    link(folder / "dangling.png", "nothing.png")
    link(folder / "linked.png", "album.jpg/own.png")
    link(folder / "album.jpg" / "up", "..", folder=True)
    link(folder / "x", elsewhere, folder=True)
    link(folder / "y", elsewhere, folder=True)
    found = answers(folder)
    assert list(found) == [
        "album.jpg/own.png",
        "circle.png",
        "dangling.png",
        "linked.png",
        "x/far.png",
    ]
    np.testing.assert_array_equal(found["album.jpg/own.png"], own)
    np.testing.assert_array_equal(found["linked.png"], own)
    np.testing.assert_array_equal(found["x/far.png"], far)
    assert found["circle.png"].status == "unreadable"
    assert found["dangling.png"].status == "vanished"
    assert "link" in found["dangling.png"].reason


def link(path, target, *, folder=False):
    try:
        path.symlink_to(target, target_is_directory=folder)
    except OSError as exc:
        pytest.skip(f"this system does not let us make links: {exc}")


@pytest.mark.timeout(20)
@pytest.mark.skipif(sys.platform == "win32", reason="here pipes and sockets are no files")
def test_scan_images_opens_no_pipes_or_sockets(tmp_path, monkeypatch):
    write_photo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)  # a socket's whole path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        (tmp_path / "list.txt").write_text("pipe.png\nsocket.png\na.png\n/dev/null\n")
        assert list(answers(tmp_path)) == ["a.png"]
        assert scan_images(tmp_path).skipped == 3
        named = answers(tmp_path / "list.txt")
    for name in ("pipe.png", "socket.png", "/dev/null"):
        assert named[name].status == "unreadable"
        assert "neither a file nor a folder" in named[name].reason


def test_scan_images_skips_outputs_of_a_run(tmp_path):
    write_photo(tmp_path / "a.png")
    for name in (
        "predictions.csv",
        ".predictions.csv.lock",
        ".predictions.csv.1a2b",
        "x.partial",
    ):
        (tmp_path / name).write_bytes(b"rows")
    assert list(answers(tmp_path)) == ["a.png"]
    assert scan_images(tmp_path).skipped == 4


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permission bits do not bind here"
)
def test_read_batches_without_permission(tmp_path):
    good = as_in_training(write_photo(tmp_path / "b.png"))
    write_photo(tmp_path / "a.png").chmod(0)
    (tmp_path / "closed").mkdir(mode=0)
    found = answers(tmp_path)
    assert list(found) == ["a.png", "b.png", "closed/"]
    assert found["a.png"].status == found["closed/"].status == "unreadable"
    np.testing.assert_array_equal(found["b.png"], good)


def test_read_batches_of_a_file_the_system_refuses(tmp_path, monkeypatch):
    good = as_in_training(write_photo(tmp_path / "b.png"))
    write_photo(tmp_path / "a.png")
    opened = type(tmp_path).open

    def guarded(path, *args, **options):
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(type(tmp_path), "open", guarded)
    found = answers(tmp_path)
    assert found["a.png"].status == "unreadable"
    assert "Permission denied" in found["a.png"].reason
    np.testing.assert_array_equal(found["b.png"], good)


def as_a_folder(path):
    path.unlink()
    path.mkdir()


def as_a_pipe(path):
    if sys.platform == "win32":
        pytest.skip("here pipes are no files")
    path.unlink()
    os.mkfifo(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (lambda path: path.unlink(), "vanished", "not there"),
        (lambda path: path.write_bytes(b""), "truncated", "empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "truncated", "too early"),
        (lambda path: path.write_text("<html>gone</html>"), "unsupported", "web page"),
        (as_a_folder, "unreadable", "folder"),
        (as_a_pipe, "unreadable", "neither a file nor a folder"),
    ],
    ids=["vanished", "emptied", "cut", "overwritten", "folder", "pipe"],
)
def test_read_batches_of_a_file_changed_before_reading(
    tmp_path, monkeypatch, change, status, reason
):
    neighbours = [write_photo(tmp_path / name) for name in ("a.png", "c.png")]
    change_just_before_reading(write_photo(tmp_path / "b.png"), change, monkeypatch)
    found = answers(tmp_path)
    assert list(found) == ["a.png", "b.png", "c.png"]
    assert found["b.png"].status == status
    assert reason in found["b.png"].reason
    for path in neighbours:
        np.testing.assert_array_equal(found[path.name], as_in_training(path))


def test_read_batches_of_a_file_replaced_before_reading(tmp_path, monkeypatch):
    path = write_photo(tmp_path / "b.png")
    change_just_before_reading(path, write_photo, monkeypatch)
    before = as_in_training(path)
    found = answers(tmp_path)
    np.testing.assert_array_equal(found["b.png"], as_in_training(path))
    assert not np.array_equal(found["b.png"], before)


def change_just_before_reading(path, change, monkeypatch):
    """Let the run meet another thing under this name than the scan did."""

    def decode(asked):
        if asked == path:
            change(path)
        return decoded_rgb(asked)

    monkeypatch.setattr(batches, "decoded_rgb", decode)


@pytest.mark.parametrize("name", ["nul\0byte.png", "\\ud800.png", "x" * 5000 + ".png"])
def test_decode_rgb_of_impossible_names(tmp_path, name):
    """As a list can hold it, or another system's run."""
    with pytest.raises(DecodeError) as caught:
        decode_rgb(ImageFile(tmp_path, name).path)
    assert caught.value.failure.status in {"unreadable", "vanished"}  # systems differ
