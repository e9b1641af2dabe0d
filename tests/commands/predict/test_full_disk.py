"""The disk is full at each moment of a run in turn: no false row, a clear error, and it goes on."""

import errno
import io
import itertools
import os
import shutil
from pathlib import Path

import pytest

from deploykit.commands.app import run
from deploykit.commands.predict import plan

TABLES = ("rows.csv", "rows.parquet")
OUTPUTS = (*TABLES, "page.html", "taps.npy")


class FullDisk:
    """From some moment on nothing more is written below a folder: no byte, no name.

    Args:
        folder: The folder.
        moment: Of all that asks for room, the number of the first that gets none, from 0.
    """

    def __init__(self, folder, moment):
        self.folder, self.left = folder, moment

    def fill(self, path):
        if self.folder in Path(os.fspath(path)).absolute().parents:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))

    def applied(self, monkeypatch):
        disk, opened = self, io.open

        class File(io.FileIO):
            def write(self, data):
                disk.fill(self.name)
                return super().write(data)

        def opening(file, mode="r", buffering=-1, encoding=None, errors=None, *rest, **options):
            if "w" not in mode or options or not isinstance(file, Path):
                return opened(file, mode, buffering, encoding, errors, *rest, **options)
            disk.fill(file)
            stream = io.BufferedWriter(File(os.fspath(file), "w"))
            return stream if "b" in mode else io.TextIOWrapper(stream, encoding, errors, *rest)

        monkeypatch.setattr(io, "open", opening)
        for name in ("mkdir", "link", "replace", "rename"):
            monkeypatch.setattr(os, name, self.limited(getattr(os, name)))

    def limited(self, call):
        def limited(*paths, **options):
            self.fill(paths[-1] if len(paths) > 1 and not isinstance(paths[-1], int) else paths[0])
            return call(*paths, **options)

        return limited


@pytest.fixture
def call(monkeypatch, tmp_path, embedded_bundle, photo_folder, capsys):
    """Run a command in an empty folder; gives exit code and stderr. ``predict`` has six photos."""
    monkeypatch.setattr(plan, "_SHARD_FILES", 4)
    for name in ("00.png", "01.png"):
        for colour in ("blue", "green", "red"):
            (tmp_path / "photos" / colour).mkdir(parents=True, exist_ok=True)
            shutil.copy(photo_folder / colour / name, tmp_path / "photos" / colour)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    tables = [word for name in TABLES for word in ("--output", name)]
    pages = ["--html", "page.html", "--embeddings", "taps.npy", "--bundle", embedded_bundle.folder]

    def call(command, *options, moment=None):
        words = ["predict", tmp_path / "photos", *tables, *pages]
        with pytest.MonkeyPatch.context() as patch:
            if moment is not None:
                FullDisk(Path.cwd(), moment).applied(patch)
            code = run([*map(str, [*(words if command == "predict" else [command]), *options])])
        return code, capsys.readouterr().err

    return call


def empty():
    for path in Path().iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def contents():
    """What is there of the outputs; of the page, which has times in it, the end."""
    made = {path.name: path.read_bytes() for path in Path().iterdir() if path.name in OUTPUTS}
    if "page.html" in made:
        made["page.html"] = made["page.html"][-8:]
    return made


@pytest.fixture
def whole(call):
    """The outputs of a run that has room."""
    assert call("predict")[0] == 0
    written = contents()
    assert written.keys() == {*OUTPUTS}
    empty()
    return written


def moments_that_fail(call, whole, *words):
    """Let a command have room for longer and longer; once after each time that it failed."""
    for moment in itertools.count():
        code, err = call(*words, moment=moment)
        if code == 0:
            assert moment > 5
            return
        assert code == 4, err
        assert "No space left on device" in err
        assert "Traceback" not in err
        assert contents().items() <= whole.items()
        assert [*Path().rglob(f".*.{'[0-9a-f]' * 8}")] == []  # what was begun and not finished
        yield


def test_full_disk_at_each_moment_of_a_run(call, whole):
    for _ in moments_that_fail(call, whole, "predict"):
        code, err = call("predict", "--resume")
        assert code == 0, err
        assert contents() == whole
        assert not Path("rows.csv.run").exists()
        empty()


def test_full_disk_at_each_moment_of_a_shard_and_of_collect(call, whole):
    for _ in moments_that_fail(call, whole, "predict", "--shard", "1/1"):
        code, err = call("predict", "--shard", "1/1")
        assert code == 0, err
        assert call("collect", "rows.csv.run")[0] == 0
        assert contents() == whole
        empty()
    success = Path("rows.csv.run", "_SUCCESS.json")
    for _ in moments_that_fail(call, whole, "collect", "rows.csv.run"):
        assert not success.exists()
        for name in contents():
            Path(name).unlink()
    assert success.exists()
    assert contents() == whole
