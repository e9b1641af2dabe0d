import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import Timeout

from deploykit.errors import InputError
from deploykit.system.files import held, home_of, move_into_place, read_file, replacing, staged


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
    """At once: a running process holds its lock, whatever time it is."""
    code = "import os, sys\nfrom pathlib import Path\nfrom deploykit.system.files import staged\n"
    code += f"with staged(Path({str(tmp_path)!r})) as path:\n"
    code += "    (path / 'engine').write_bytes(b'half')\n    os.kill(os.getpid(), 9)\n"
    subprocess.run([sys.executable, "-c", code])
    killed = [path.name for path in tmp_path.iterdir()]
    assert len(killed) == 2
    without_lock = tmp_path / ".new-0123"
    without_lock.mkdir()
    with staged(tmp_path) as live:
        assert sorted(path.name for path in tmp_path.iterdir()) == [live.name, f"{live.name}.lock"]
        with staged(tmp_path) as other:
            assert live.exists()
            assert other != live
        assert live.exists()
    assert list(tmp_path.iterdir()) == []


def test_read_file_bounds_its_size(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", limit=5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_file(tmp_path / "file", limit=4)


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


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no such file system here")
def test_read_file_of_one_that_tells_no_size():
    """What the system makes as it is read has 0 bytes by its size, and may never end."""
    whole = read_file(Path("/proc/self/maps"), limit=2**24)
    assert whole.endswith(b"\n")
    assert Path("/proc/self/maps").stat().st_size == 0
    with pytest.raises(OSError, match="more than 100 bytes"):
        read_file(Path("/proc/self/maps"), limit=100)


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_read_file_up_to_its_limit(tmp_path, monkeypatch, size):
    monkeypatch.setattr("deploykit.system.files._PART_BYTES", 7)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(size)))
    assert read_file(path, limit=100) == bytes(range(size))
    path.write_bytes(bytes(101))
    with pytest.raises(OSError, match="more than 100 bytes"):
        read_file(path, limit=100)


def test_held_by_one_at_a_time(tmp_path):
    """The file goes each time, and yet nobody holds another one of that name meanwhile."""
    lock, inside, most = tmp_path / ".x.lock", [], []

    def hold():
        for _ in range(20):
            with held(lock, seconds=60):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(hold) for _ in range(4)]:
            done.result()
    assert most == [1] * 80
    assert list(tmp_path.iterdir()) == []


def test_held_leaves_the_lock_of_another(tmp_path):
    """The folder was replaced by one in which somebody else holds the same lock."""
    lock = tmp_path / "bundle" / ".x.lock"
    lock.parent.mkdir()
    with held(lock):
        lock.parent.rename(tmp_path / "old")
        lock.parent.mkdir()
        lock.touch()
    assert lock.exists()


def test_held_already_is_not_waited_for(tmp_path):
    with held(tmp_path / "lock"), ThreadPoolExecutor(1) as pool, pytest.raises(Timeout):
        pool.submit(held(tmp_path / "lock").__enter__).result()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no file")
def test_home_of_where_the_system_makes_no_folder():
    with (
        pytest.raises(InputError, match="/proc/art cannot be made: the system makes no files"),
        home_of(Path("/proc/art/net")),
    ):
        pass
