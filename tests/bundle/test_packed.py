"""Bundles in one file: the same bytes again, and nothing written of what was made to do harm."""

import shutil
import stat
import struct
import tempfile
import time
import zipfile
from pathlib import Path

import pytest

from deploykit.bundle import packed
from deploykit.bundle.folder import find_bundle, open_bundle
from deploykit.bundle.manifest import MANIFEST_NAME, read_manifest, update_manifest
from deploykit.bundle.packed import bundles_cache, is_packed, pack, unpacked
from deploykit.errors import BundleError


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files of this test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def archive(tmp_path, exported_bundle):
    """``colours.zip``."""
    path = tmp_path / "colours.zip"
    pack(exported_bundle.folder, "colours", exported_bundle.manifest.files, path)
    return path


@pytest.fixture
def forged(tmp_path, archive):
    """Make an archive of that one's files with ``change`` applied to the list of members."""

    def forge(change):
        with zipfile.ZipFile(archive) as source:
            members = [(zipfile.ZipInfo(i.filename), source.read(i)) for i in source.infolist()]
        path = tmp_path / "forged.zip"
        with zipfile.ZipFile(path, "w") as target:
            for member, data in change(members):
                target.writestr(member, data)
        return path

    return forge


def left(temporary):
    """What is in the folder for temporary files, but empty folders and locks."""
    return [path for path in temporary.rglob("*") if path.is_file()]


def test_pack_gives_the_same_bytes(tmp_path, archive, exported_bundle):
    copy = tmp_path / "elsewhere" / "colours"
    shutil.copytree(exported_bundle.folder, copy)
    for file in copy.rglob("*"):
        if file.is_file():
            file.chmod(0o600)
            time.sleep(0.001)
            file.touch()
    again = tmp_path / "again.zip"
    pack(copy, "colours", sorted(exported_bundle.manifest.files, reverse=True), again)
    assert again.read_bytes() == archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        infos = opened.infolist()
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {info.external_attr >> 16 for info in infos} == {stat.S_IFREG | 0o644}
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}


def test_unpacked_is_the_bundle(archive, exported_bundle, temporary):
    opened = open_bundle(archive)
    assert opened.name == "colours"
    assert opened.place == archive
    assert opened.manifest == exported_bundle.manifest
    for file in opened.manifest.files:
        assert opened.checked(file).is_relative_to(temporary)
    assert str(archive) in opened.command("predict")
    assert not stat.S_IMODE(bundles_cache().stat().st_mode) & 0o077


def test_unpacked_is_unpacked_once_and_mended(archive):
    folder = unpacked(archive)
    graph = folder / "deploy" / "fp32.onnx"
    before = graph.stat().st_mtime_ns
    assert unpacked(archive) == folder
    assert graph.stat().st_mtime_ns == before
    graph.unlink()  # as who cleans up temporary files does
    assert unpacked(archive) == folder
    assert graph.is_file()


def test_unpacked_takes_no_additions(archive):
    opened = open_bundle(archive)
    with pytest.raises(BundleError, match="nothing is added to colours"):
        update_manifest(opened.folder, lambda manifest: manifest)


def test_find_bundle_takes_archives_only_where_nothing_is_added(archive):
    assert find_bundle(str(archive), packed=True).packed == archive
    with pytest.raises(BundleError, match="adds to a bundle's folder"):
        find_bundle(str(archive))


def test_unpacked_without_engines(tmp_path, engine_bundle):
    files = [name for name in engine_bundle.manifest.files if not name.startswith("engines/")]
    path = tmp_path / "without.zip"
    pack(engine_bundle.folder, "colours", files, path)
    assert read_manifest(unpacked(path)).engines == engine_bundle.manifest.engines


def renamed(old, new):
    def change(members):
        for member, data in members:
            member.filename = member.filename.replace(old, new)
            yield member, data

    return change


def added(name, mode=0, data=b"x", **fields):
    def change(members):
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        for field, value in fields.items():
            setattr(member, field, value)
        return [*members, (member, data)]

    return change


def without(name):
    return lambda members: [each for each in members if not each[0].filename.endswith(name)]


def changed(name):
    def change(members):
        for member, data in members:
            yield member, data[:-1] + b"?" if member.filename.endswith(name) else data

    return change


HOSTILE = {
    "absolute": (renamed("colours/", "/colours/"), "none of a bundle's files"),
    "parent": (added("colours/../../evil"), "none of a bundle's files"),
    "drive": (added("colours/C:evil"), "none of a bundle's files"),
    "backslash": (added("colours/..\\evil"), "none of a bundle's files"),
    "hidden": (added("colours/.bundle.json.lock"), "none of a bundle's files"),
    "line break": (added("colours/a\nb"), "has a character"),
    "link": (added("colours/link", stat.S_IFLNK | 0o777, b"/etc/passwd"), "no file"),
    "device": (added("colours/pipe", stat.S_IFIFO | 0o644), "no file"),
    "folder": (added("colours/deploy/", data=b""), "no file"),
    "case": (added("colours/GOLDEN.npz"), "the same file on some systems"),
    "compressed": (added("colours/bomb", compress_type=zipfile.ZIP_DEFLATED), "compressed"),
    "two folders": (added("other/file"), "those of one folder"),
    "no manifest": (without(MANIFEST_NAME), "those of one folder"),
    "cache": (added("colours/cache/x.runtime"), "has a folder cache"),
    "not named": (added("colours/more.txt"), "its manifest names no more.txt"),
    "missing": (without("fp32.onnx"), "it has no deploy/fp32.onnx"),
    "changed": (changed("model.onnx"), "the SHA-256 of model.onnx"),
    "manifest": (changed(MANIFEST_NAME), "is damaged"),
    "size": (
        lambda members: [
            (m, data + b"x" if m.filename.endswith("golden.npz") else data) for m, data in members
        ],
        "its manifest says",
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", HOSTILE)
def test_unpacked_refuses_and_leaves_nothing(case, forged, temporary, tmp_path):
    change, message = HOSTILE[case]
    path = forged(change)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match=message) as error:
        unpacked(path)
    assert str(path) in error.value.message
    assert left(temporary) == []
    outside = [each for each in sorted(tmp_path.rglob("*")) if temporary not in each.parents]
    assert outside == [each for each in before if temporary not in each.parents]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_unpacked_refuses_a_name_twice(forged):
    with pytest.raises(BundleError, match="the same file on some systems"):
        unpacked(forged(added("colours/golden.npz")))


def test_unpacked_refuses_overlapping_files(archive, temporary):
    """A bomb without compression: every entry is the same large file."""
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        large = max(opened.infolist(), key=lambda info: info.file_size)
    entries = [i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02"]
    for at in entries:
        struct.pack_into("<2L", data, at + 20, large.file_size, large.file_size)
    archive.write_bytes(data)
    with pytest.raises(BundleError, match="claim"):
        unpacked(archive)
    assert left(temporary) == []


@pytest.mark.parametrize("is_64", [False, True])
def test_unpacked_refuses_a_large_directory_before_reading_it(is_64, tmp_path, monkeypatch):
    path = tmp_path / "many.zip"
    end = packed._END.pack(b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    if is_64:
        record = packed._END_64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, 10**7, 10**7, 10**9, 0)
        end = record + packed._LOCATOR_64.pack(b"PK\x06\x07", 0, 0, 1) + end
    path.write_bytes(b"PK\x03\x04" + end)
    monkeypatch.setattr(packed.zipfile, "ZipFile", None)
    with pytest.raises(BundleError, match="its directory has"):
        unpacked(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"weights" * 100])
def test_unpacked_refuses_what_is_no_archive(content, tmp_path):
    path = tmp_path / "no.zip"
    path.write_bytes(content)
    assert not is_packed(path)
    with pytest.raises(BundleError, match="is no packed bundle"):
        open_bundle(path)


def test_unpacked_refuses_a_cache_of_somebody_else(archive, temporary):
    bundles_cache().chmod(0o777)
    with pytest.raises(BundleError, match="only this user may write to"):
        unpacked(archive)


def test_unpacked_names_the_archive_where_a_truncated_one_fails(archive, tmp_path):
    short = tmp_path / "short.zip"
    data = archive.read_bytes()
    short.write_bytes(data[: len(data) // 2] + data[len(data) // 2 + 100 :])
    with pytest.raises(BundleError, match=str(short)):
        unpacked(Path(short))
