import shutil

import msgspec
import pytest

from deploykit.bundle.folder import (
    check_bundle_name,
    check_free,
    default_artifacts,
    find_bundle,
    new_bundle,
    open_bundle,
)
from deploykit.bundle.manifest import MANIFEST_NAME, write_manifest
from deploykit.errors import BundleError, UsageError


@pytest.fixture
def artifacts(tmp_path, exported_bundle):
    """A home with one bundle, ``first``, of which only the manifest is real."""
    folder = tmp_path / "artifacts" / "first"
    folder.mkdir(parents=True)
    write_manifest(folder, exported_bundle.manifest)
    return folder.parent


def add_bundle(artifacts, name, created, exported_bundle):
    (artifacts / name).mkdir()
    manifest = msgspec.structs.replace(exported_bundle.manifest, created=created)
    write_manifest(artifacts / name, manifest)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_find_bundle_tells_the_only_one(artifacts):
    told = []
    assert find_bundle(None, artifacts, told.append).name == "first"
    assert "first" in told[0].message


def test_find_bundle_names_the_newest(artifacts, exported_bundle):
    add_bundle(artifacts, "newest", "2999-01-01T00:00:00+00:00", exported_bundle)
    add_bundle(artifacts, "oldest", "1999-01-01T00:00:00+00:00", exported_bundle)
    told = []
    assert find_bundle(None, artifacts, told.append).name == "newest"
    assert "newest of 3 bundles" in told[0].message


def test_find_bundle_by_name_and_by_path(artifacts):
    assert find_bundle("first", artifacts).folder == artifacts / "first"
    assert find_bundle(str(artifacts / "first"), artifacts).name == "first"


def test_find_bundle_without_any_bundle(tmp_path):
    with pytest.raises(BundleError, match="no bundle") as caught:
        find_bundle(None, tmp_path / "nowhere")
    assert "deploykit export" in caught.value.hint


def test_find_bundle_by_an_unknown_name(artifacts):
    with pytest.raises(BundleError, match="There is no bundle second in") as caught:
        find_bundle("second", artifacts)
    assert caught.value.hint == "There are: first."


def test_bundle_checked_refuses_a_changed_file(tmp_path, exported_bundle):
    folder = tmp_path / "copy"
    shutil.copytree(exported_bundle.folder, folder)
    bundle = open_bundle(folder)
    assert bundle.checked("model.onnx") == folder / "model.onnx"
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"!")
    with pytest.raises(BundleError, match="is not the file that was exported"):
        bundle.checked("model.onnx")
    (folder / "model.onnx").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.checked("model.onnx")
    with pytest.raises(BundleError, match=r"has no deploy/fp16.onnx; it has model.onnx"):
        bundle.checked("deploy/fp16.onnx")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\\b", "a:b", "x ", "tab\there", "x."])
def test_check_bundle_name_of_forbidden_names(name):
    with pytest.raises(UsageError, match="cannot name a bundle"):
        check_bundle_name(name)


def test_new_bundle_appears_whole(tmp_path, exported_bundle):
    folder = tmp_path / "artifacts" / "new"
    with new_bundle(folder, overwrite=False) as staging:
        write_manifest(staging, exported_bundle.manifest)
        assert not folder.exists()
    assert names(folder) == [MANIFEST_NAME]
    assert names(folder.parent) == ["new"]


def test_new_bundle_failed_leaves_nothing(tmp_path):
    folder = tmp_path / "artifacts" / "new"

    def interrupted():
        with new_bundle(folder, overwrite=False) as staging:
            (staging / "model.onnx").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(folder.parent) == []


def test_new_bundle_replaces_only_on_request(artifacts, exported_bundle):
    folder = artifacts / "first"
    (folder / "old").touch()
    with pytest.raises(BundleError, match="exists") as caught:
        check_free(folder, overwrite=False)
    assert "--overwrite" in caught.value.hint
    with new_bundle(folder, overwrite=True) as staging:
        write_manifest(staging, exported_bundle.manifest)
        assert (folder / "old").exists()
    assert names(folder) == [MANIFEST_NAME]
    assert names(artifacts) == ["first"]


def test_find_bundle_by_its_manifest_file(artifacts):
    with pytest.raises(BundleError, match="is a file") as caught:
        find_bundle(str(artifacts / "first" / MANIFEST_NAME), artifacts)
    assert caught.value.hint.endswith("first")


def test_new_bundle_failed_keeps_the_old_one(artifacts):
    folder = artifacts / "first"
    with pytest.raises(ZeroDivisionError), new_bundle(folder, overwrite=True):
        raise ZeroDivisionError
    assert open_bundle(folder).name == "first"
    assert names(artifacts) == ["first"]


def test_open_bundle_undoes_a_killed_replacement(artifacts):
    folder = artifacts / "first"
    folder.rename(artifacts / ".first.replaced")
    with pytest.raises(BundleError, match="killed while it replaced it") as caught:
        open_bundle(folder)
    assert ".first.replaced" in caught.value.hint
    with pytest.raises(BundleError, match="killed while it replaced it"):
        find_bundle("first", artifacts)
    with pytest.raises(BundleError, match="exists"):
        check_free(folder, overwrite=False)
    assert open_bundle(folder).name == "first"
    assert names(artifacts) == ["first"]


def test_new_bundle_spares_a_bundle_made_meanwhile(tmp_path, exported_bundle):
    folder = tmp_path / "artifacts" / "new"

    def overtaken():
        with new_bundle(folder, overwrite=False) as staging:
            write_manifest(staging, exported_bundle.manifest)
            folder.mkdir()
            write_manifest(folder, exported_bundle.manifest)

    with pytest.raises(BundleError, match="exists"):
        overtaken()
    assert names(folder.parent) == ["new"]


def test_find_bundle_in_current_folder(artifacts, monkeypatch):
    monkeypatch.chdir(artifacts / "first")
    assert find_bundle(".", artifacts).name == "first"


def test_check_free_refuses_a_folder_without_bundle(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").touch()
    with pytest.raises(BundleError, match="is not a bundle"):
        check_free(folder, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="is not a bundle"):
        check_free(tmp_path / "file", overwrite=True)


def test_default_artifacts_from_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("DEPLOYKIT_ARTIFACTS", raising=False)
    assert str(default_artifacts()) == "artifacts"
    monkeypatch.setenv("DEPLOYKIT_ARTIFACTS", str(tmp_path))
    assert default_artifacts() == tmp_path
