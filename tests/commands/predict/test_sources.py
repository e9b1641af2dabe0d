"""Predicting what is in archives and videos: tables, resuming, and the page."""

import base64
import csv
import io
import re
import socket
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from interrupted_runs import interrupt_after
from PIL import Image

from deploykit.commands.app import run
from deploykit.commands.predict import plan
from deploykit.system.cloud import file_system


@pytest.fixture
def predict(capsys, monkeypatch, tmp_path, exported_bundle):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "_SHARD_FILES", 4)

    def predict(source, *options):
        code = run(["predict", str(source), "--bundle", str(exported_bundle.folder), *options])
        return code, *capsys.readouterr()

    return predict


def rows_of(table):
    return [*csv.DictReader(io.StringIO(table.read_text(encoding="utf-8-sig")))]


@pytest.fixture
def archive(tmp_path, photo_folder):
    """The photos in their order."""
    path = tmp_path / "birds.tar"
    with tarfile.open(path, "w") as archive:
        for photo in sorted(photo_folder.rglob("*.png")):
            archive.add(photo, photo.relative_to(photo_folder))
    return path


def test_archive_has_the_rows_of_the_folder(predict, archive, photo_folder, tmp_path):
    assert predict(photo_folder, "--output", "folder.csv")[0] == 0
    code, out, _ = predict(archive, "--output", "tar.csv", "--html", "tar.html")
    assert code == 0
    assert out.startswith("45 rows: 45 predicted\n")
    folder = (tmp_path / "folder.csv").read_bytes()
    assert (tmp_path / "tar.csv").read_bytes().replace(b"birds.tar/", b"") == folder
    assert (tmp_path / "tar.html").read_text(encoding="utf-8").count("/9j/") == 45  # JPEG


def test_archive_is_resumed(predict, archive, tmp_path, monkeypatch):
    assert predict(archive, "--output", "whole.csv")[0] == 0
    interrupt_after(monkeypatch, 18)
    assert predict(archive, "--output", "rows.csv")[0] == 130
    assert predict(archive, "--output", "rows.csv", "--resume")[0] == 0
    assert (tmp_path / "rows.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    interrupt_after(monkeypatch, 18)
    assert predict(archive, "--output", "rows.csv", "--overwrite")[0] == 130
    with tarfile.open(archive, "a") as changed:
        changed.add(__file__, "more.txt")
    code, _, err = predict(archive, "--output", "rows.csv", "--resume")
    assert code == 4
    assert "45 files changed or vanished since the run began" in err
    assert "birds.tar has changed since it was listed" in err


def test_page_opens_no_path_that_an_archive_names(predict, tmp_path):
    """Beside the archive lies what its member's name would lead to."""
    red, blue = (io.BytesIO(), io.BytesIO())
    Image.new("RGB", (64, 64), (250, 0, 0)).save(red, "PNG")
    Image.new("RGB", (64, 64), (0, 0, 250)).save(blue, "PNG")
    (tmp_path / "secret.png").write_bytes(red.getvalue())
    (tmp_path / "x.zip.folder").mkdir()
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("../secret.png", blue.getvalue())
    code, _, _ = predict("x.zip", "--output", "rows.csv", "--html", "page.html")
    assert code == 0
    (row,) = rows_of(tmp_path / "rows.csv")
    assert row["path"] == "x.zip/../secret.png"
    assert row["label"] == "blue"
    page = (tmp_path / "page.html").read_text("utf-8")
    (shown,) = re.findall(r'"(/9j/[A-Za-z0-9+/=]+)"', page)  # as each JPEG begins
    red, _, blue = Image.open(io.BytesIO(base64.b64decode(shown))).convert("RGB").getpixel((9, 9))
    assert blue > 200 > 50 > red


def test_video_rows_and_every(predict, tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    with av.open(tmp_path / "clip.mp4", "w") as video:
        stream = video.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(15):
            pixels = np.zeros((64, 64, 3), np.uint8)
            pixels[..., i // 5] = 200
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                video.mux(packet)
        for packet in stream.encode():
            video.mux(packet)
    assert predict("clip.mp4", "--output", "rows.csv")[0] == 0
    rows = rows_of(tmp_path / "rows.csv")
    assert [(row["path"], row["label"]) for row in rows] == [
        ("clip.mp4@00:00:00.000", "red"),
        ("clip.mp4@00:00:01.000", "green"),
        ("clip.mp4@00:00:02.000", "blue"),
    ]
    interrupt_after(monkeypatch, 8)
    assert predict("clip.mp4", "--output", "few.csv", "--every", "200ms")[0] == 130
    code, _, err = predict("clip.mp4", "--output", "few.csv", "--resume")
    assert code == 2
    assert "add --every 0.2s" in err
    assert predict("clip.mp4", "--output", "few.csv", "--every", "0.2s", "--resume")[0] == 0
    assert len((tmp_path / "few.csv").read_text().splitlines()) == 16
    code, _, err = predict("clip.mp4", "--every", "never")
    assert code == 2
    assert "--every never is no time" in " ".join(err.split())


def test_hosts_that_do_not_answer_are_rows(predict, tmp_path, photo_folder):
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    with socket.socket() as closed:  # nobody listens there
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        photo = photo_folder / "red" / "00.png"
        (tmp_path / "list.txt").write_text(f"https://{host}/a.png\n{photo}\nhttp://{host}/b.png\n")
        code, _, err = predict("list.txt", "--output", "rows.csv")
        assert code == 0, err
        first, second, third = rows_of(tmp_path / "rows.csv")
        assert [row["status"] for row in (first, second, third)] == [
            "unreadable",
            "ok",
            "unreadable",
        ]
        assert f"Cannot connect to host {host}" in first["reason"]
        code, _, err = predict(f"https://{host}/a.png", "--output", "rows.csv", "--overwrite")
    assert code == 4
    assert f"Cannot connect to host {host}" in err


def test_predict_without_the_extra_says_how_to_install_it(predict, monkeypatch):
    file_system.cache_clear()
    monkeypatch.setitem(sys.modules, "fsspec", None)
    code, _, err = predict("s3://photos/all")
    assert code == 5
    assert 'pip install "deploykit[cloud]"' in err
