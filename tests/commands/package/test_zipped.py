"""``--format zip``, and the commands that open the file."""

import json
import pickle
import tempfile

import pytest

import deploykit
from deploykit.commands.app import run
from deploykit.errors import BundleError, UsageError


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files of this test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def archive(package, exported_bundle):
    """``colours.zip``."""
    return package(exported_bundle, "zip", "colours.zip").output


def test_zip_holds_what_the_manifest_names(package, bundle):
    (bundle.folder / "cache").mkdir()
    (bundle.folder / "cache" / "timing").write_text("x")
    (bundle.folder / "reports").mkdir()
    (bundle.folder / "reports" / "page.html").write_text("x")
    first = package(bundle, "zip", "first.zip")
    assert f"with {len(bundle.manifest.files) + 1} files" in first.written.content
    (bundle.folder / "cache" / "timing").write_text("y")
    assert package(bundle, "zip", "second.zip").output.read_bytes() == first.output.read_bytes()


def test_zip_has_engines_unless_they_were_not_copied(package, engine_bundle):
    whole = package(engine_bundle, "zip", "whole.zip")
    for file in engine_bundle.manifest.engines:
        (engine_bundle.folder / file).unlink()
        (engine_bundle.folder / f"{file}.json").unlink()
    without = package(engine_bundle, "zip", "without.zip")
    assert "without 2 files of engines" in without.written.notes[0]
    assert not whole.written.notes[0].startswith("without")
    opened = deploykit.inspect(without.output)
    assert opened.sound
    assert opened.engines == ()


def test_zip_wants_its_ending(package, exported_bundle):
    with pytest.raises(UsageError, match=r"does not end in \.zip"):
        package(exported_bundle, "zip", "colours.bundle")


def test_zip_of_a_changed_bundle_is_refused(package, bundle, tmp_path):
    (bundle.folder / "golden.npz").write_bytes(b"x")
    with pytest.raises(BundleError, match="is not the file that was exported"):
        package(bundle, "zip", "colours.zip")
    assert not (tmp_path / "packages").exists()


def test_load_opens_a_zip_and_pickles(archive, photo_folder, exported_bundle, temporary):
    photo = sorted(photo_folder.rglob("*.png"))[0]
    with deploykit.load(str(archive)) as model, deploykit.load(exported_bundle) as plain:
        assert model(photo) == plain(photo)
        assert str(archive) in repr(model)
        data = pickle.dumps(model)
    assert str(temporary).encode() not in data  # which another host does not have
    with pickle.loads(data) as again:
        assert again(photo).label == "blue"


def test_package_again_from_a_zip(package, archive):
    bundle = deploykit.inspect(archive)
    again = deploykit.package(archive.with_name("again.zip"), format="zip", bundle=archive)
    assert again.output.read_bytes() == archive.read_bytes()
    assert bundle.folder == str(archive)


def test_commands_open_a_zip(archive, photo_folder, tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    bundle = ["--bundle", str(archive)]
    assert run(["predict", str(photo_folder), *bundle, "--output", str(rows)]) == 0
    assert len(rows.read_text("utf-8-sig").splitlines()) == 46
    assert run(["verify", "--self-test", *bundle]) == 0
    capsys.readouterr()
    assert run(["inspect", str(archive), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["folder"] == str(archive)
    assert run(["quantize", "--precision", "fp16", *bundle]) == 4
    assert "adds to a bundle's folder" in capsys.readouterr().err


def test_commands_refuse_a_damaged_zip(archive, photo_folder, temporary, capsys):
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    assert run(["predict", str(photo_folder), "--bundle", str(archive)]) == 4
    assert str(archive) in capsys.readouterr().err
    assert not [path for path in temporary.rglob("*") if path.is_file()]
