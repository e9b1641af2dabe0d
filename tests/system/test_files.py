import errno
import os

import pytest

from deploykit.system.files import move_into_place, replacing, staged


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    return path


def test_replacing_keeps_the_old_file_until_the_end(path):
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_replacing_failed_keeps_the_old_file(path):
    def fail():
        with replacing(path) as partial:
            partial.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_replacing_removes_what_cannot_be_renamed(path):
    folder = path.parent / "folder"
    folder.mkdir()
    (folder / "inside").touch()

    def fail():
        with replacing(folder) as partial:
            partial.write_text("new")

    with pytest.raises(OSError, match="folder"):
        fail()
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["file.txt", "folder"]


def test_move_into_place_from_staged_folder(tmp_path):
    with staged(tmp_path) as folder:
        assert folder.parent == tmp_path
        (folder / "graph").write_text("new")
        (folder / "rest").write_text("left behind")
        move_into_place(folder / "graph", tmp_path / "deploy" / "graph.onnx")
    assert (tmp_path / "deploy" / "graph.onnx").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["deploy"]


def test_staged_removes_folders_of_killed_runs(tmp_path):
    killed = tmp_path / ".new-killed"
    killed.mkdir()
    (killed / "in-use.lock").touch()
    (killed / "engine").write_bytes(b"half")
    with staged(tmp_path):
        assert killed.exists()  # it may have begun just now, and take its lock next
    os.utime(killed / "in-use.lock", (0, 0))
    with staged(tmp_path) as live:
        assert not killed.exists()
        with staged(tmp_path) as other:
            assert live.exists()
            assert other != live
        assert live.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("write", [replacing, staged])
def test_full_disk_names_what_is_written(path, write, number):
    """A write to a file that is open names none itself."""
    place = path if write is replacing else path.parent

    def fail():
        with write(place):
            raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        fail()
    assert caught.value.filename == str(place)


def test_replacing_of_a_missing_source_names_it(path):
    def fail():
        with replacing(path):
            (path.parent / "source.bin").read_bytes()

    with pytest.raises(FileNotFoundError) as caught:
        fail()
    assert caught.value.filename == str(path.parent / "source.bin")
