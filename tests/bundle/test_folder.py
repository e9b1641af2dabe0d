import contextlib
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import onnx
import pytest
from bundle_files import acknowledged

import deploykit
from deploykit.bundle.folder import (
    check_bundle_name,
    check_free,
    default_artifacts,
    find_bundle,
    new_bundle,
    open_bundle,
)
from deploykit.bundle.manifest import (
    MANIFEST_NAME,
    locked,
    update_manifest,
    write_manifest,
)
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
    """What is in a folder, locks included."""
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
    assert names(tmp_path) == []
    (tmp_path / "artifacts").mkdir()  # a home that was there stays
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == ["artifacts"]
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
    with pytest.raises(BundleError, match="There is no bundle in") as caught:
        find_bundle(None, artifacts)
    assert ".first.replaced" in caught.value.hint
    with pytest.raises(BundleError, match="killed while it replaced it"):
        deploykit.inspect("first", artifacts=artifacts)
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


def test_find_bundle_names_an_interrupted_replacement(artifacts, exported_bundle):
    add_bundle(artifacts, "second", "2999-01-01T00:00:00+00:00", exported_bundle)
    (artifacts / "first").rename(artifacts / ".first.replaced")
    told = []
    assert find_bundle(None, artifacts, told.append).name == "second"
    assert ".first.replaced" in told[0].message


def test_find_bundle_skips_a_damaged_one(artifacts, exported_bundle):
    add_bundle(artifacts, "damaged", "2999-01-01T00:00:00+00:00", exported_bundle)
    (artifacts / "damaged" / MANIFEST_NAME).write_text("{")
    told = []
    assert find_bundle(None, artifacts, told.append).name == "first"
    assert [note.message.partition(":")[0] for note in told] == [
        "skipped",
        f"using bundle {artifacts / 'first'}",
    ]
    assert str(artifacts / "damaged") in told[0].message
    with pytest.raises(BundleError, match="damaged"):
        find_bundle("damaged", artifacts)
    shutil.rmtree(artifacts / "first")
    with pytest.raises(BundleError, match="is damaged"):
        find_bundle(None, artifacts)


def test_new_bundle_removes_what_a_killed_replacement_left(artifacts, exported_bundle):
    shutil.copytree(artifacts / "first", artifacts / ".first.replaced")
    check_free(artifacts / "first", overwrite=True)
    assert names(artifacts) == ["first"]


def test_check_free_restores_into_an_empty_folder(artifacts):
    (artifacts / "first").rename(artifacts / ".first.replaced")
    (artifacts / "first").mkdir()
    with pytest.raises(BundleError, match="exists"):
        check_free(artifacts / "first", overwrite=False)
    assert names(artifacts) == ["first"]
    assert open_bundle(artifacts / "first").name == "first"


def test_open_bundle_waits_for_a_replacement(artifacts):
    """Between the two renames of a replacement there is no bundle, but there will be one."""
    folder, replaced = artifacts / "first", artifacts / ".first.replaced"
    with locked(folder):
        folder.rename(replaced)
        opened = []
        reader = threading.Thread(target=lambda: opened.append(open_bundle(folder)))
        reader.start()
        reader.join(0.2)
        assert reader.is_alive()
        replaced.rename(folder)
    reader.join()
    assert opened[0].name == "first"


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_open_bundle_with_a_link_to_itself(bundle):
    shutil.rmtree(bundle.folder / "deploy")
    (bundle.folder / "deploy").symlink_to("deploy")
    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(bundle.folder).checked("deploy/fp32.onnx")


#: A process of its own that says when it is between two steps, and waits until it may go on.
UPDATING = """
import sys, time
from pathlib import Path
import msgspec
from deploykit.bundle.manifest import record_file, update_manifest

folder, made = Path(sys.argv[1]), Path(sys.argv[2])

def change(manifest):
    print("deciding", flush=True)
    sys.stdin.readline()
    files = {**manifest.files, "deploy/fp16.onnx": record_file(made)}
    return msgspec.structs.replace(
        manifest, files=files, deploy={**manifest.deploy, "fp16": "deploy/fp16.onnx"}
    )

update_manifest(folder, change, {"deploy/fp16.onnx": made})
"""


def test_new_bundle_waits_for_an_update(artifacts, exported_bundle, tmp_path):
    """An export takes a bundle's place while another process is about to write into it."""
    folder, made = artifacts / "first", tmp_path / "made.onnx"
    shutil.copytree(exported_bundle.folder, folder, dirs_exist_ok=True)
    shutil.copy(exported_bundle.folder / "deploy" / "fp32.onnx", made)
    created = "2999-01-01T00:00:00+00:00"

    def export():
        with new_bundle(folder, overwrite=True) as staging:
            shutil.copytree(exported_bundle.folder, staging, dirs_exist_ok=True)
            write_manifest(
                staging, msgspec.structs.replace(exported_bundle.manifest, created=created)
            )

    command = [sys.executable, "-c", UPDATING, str(folder), str(made)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "deciding\n"
        exporting = threading.Thread(target=export)
        exporting.start()
        exporting.join(0.5)
        assert exporting.is_alive()  # it has its files, and waits for its place
        other.stdin.write("\n")
        other.stdin.close()
    exporting.join()
    assert other.returncode == 0
    bundle = open_bundle(folder)
    assert bundle.manifest.created == created
    assert [*bundle.manifest.deploy] == ["fp32"]  # nothing of what the other bundle was given
    for file in bundle.manifest.files:
        bundle.checked(file)
    assert names(folder / "deploy") == ["fp32.onnx"]


def test_update_manifest_of_a_replaced_bundle_decides_anew(bundle, exported_bundle):
    """What an export did meanwhile is seen by whoever decides under the lock."""
    seen = []
    with new_bundle(bundle.folder, overwrite=True) as staging:
        shutil.copytree(exported_bundle.folder, staging, dirs_exist_ok=True)
        write_manifest(staging, msgspec.structs.replace(exported_bundle.manifest, created="now"))
    update_manifest(bundle.folder, lambda manifest: seen.append(manifest.created) or manifest)
    assert seen == ["now"]
    assert names(bundle.folder.parent) == ["colours"]


@pytest.fixture
def impatient(monkeypatch):
    """Locks that are not waited for."""
    monkeypatch.setattr("deploykit.bundle.manifest._LOCK_SECONDS", 0.1)


def test_locked_where_the_parent_is_read_only(bundle, monkeypatch, impatient):
    """Who may write beside the bundle and who may not wait for each other."""
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != bundle.folder.parent)
    seen = []
    update_manifest(bundle.folder, lambda old: seen.extend(names(bundle.folder.parent)) or old)
    assert seen == ["colours"]
    before = names(bundle.folder)
    with locked(bundle.folder):
        monkeypatch.undo()
        monkeypatch.setattr("deploykit.bundle.manifest._LOCK_SECONDS", 0.1)
        assert_locked(bundle.folder)
    assert names(bundle.folder) == before


def assert_locked(folder):
    """Check that no other thread can change a bundle."""
    errors = []

    def change():
        try:
            update_manifest(folder, lambda old: old)
        except BundleError as exc:
            errors.append(exc.message)

    thread = threading.Thread(target=change)
    thread.start()
    thread.join()
    (message,) = errors
    assert "Another process has been changing" in message


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
@pytest.mark.parametrize("replacing", [False, True])
def test_locked_by_a_link(bundle, tmp_path, impatient, replacing):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "linked"
    link.symlink_to(bundle.folder)
    with locked(link, replacing=replacing):
        assert_locked(bundle.folder)
        assert_locked(link)
    with locked(bundle.folder, replacing=replacing):
        assert_locked(link)
    assert names(link.parent) == ["linked"]
    assert names(bundle.folder.parent) == ["colours", "elsewhere"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_new_bundle_replaces_a_link(bundle, tmp_path, exported_bundle):
    """What it leads to stays as it is."""
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "linked"
    link.symlink_to(bundle.folder)
    with new_bundle(link, overwrite=True) as staging:
        write_manifest(staging, msgspec.structs.replace(exported_bundle.manifest, created="now"))
    assert names(link.parent) == ["linked"]
    assert not link.is_symlink()
    assert open_bundle(link).manifest.created == "now"
    assert open_bundle(bundle.folder).manifest == bundle.manifest


def test_find_bundle_beside_one_that_is_being_replaced(artifacts, exported_bundle, impatient):
    add_bundle(artifacts, "other", "2999-01-01T00:00:00+00:00", exported_bundle)
    told = []
    with locked(artifacts / "other", replacing=True):
        (artifacts / "other").rename(artifacts / ".other.replaced")
        found = []
        finding = threading.Thread(
            target=lambda: found.append(find_bundle(None, artifacts, told.append).name)
        )
        finding.start()
        finding.join()
        assert found == ["first"]
        (artifacts / ".other.replaced").rename(artifacts / "other")
    assert any("Another process has been changing" in note.message for note in told)
    assert find_bundle(None, artifacts).name == "other"


@pytest.mark.parametrize("failing", [False, True])
def test_new_bundle_by_two_exports_at_once(tmp_path, exported_bundle, failing):
    """Those that are refused take no home away from those that are not."""
    home = tmp_path / "deep" / "artifacts"

    def export(place):
        for again in range(5):
            with (
                contextlib.suppress(ZeroDivisionError),
                new_bundle(home / f"net{place}-{again}", overwrite=False) as staging,
            ):
                if failing or again < 4:
                    raise ZeroDivisionError
                write_manifest(staging, exported_bundle.manifest)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(export, place) for place in range(4)]:
            done.result()
    if failing:  # of two that fail at once, neither knows that the home is the other's
        assert {path.name for path in tmp_path.rglob("*")} <= {"deep", "artifacts"}
    else:
        assert names(home) == [f"net{place}-4" for place in range(4)]


def test_bundle_checked_says_made_anew(bundle):
    path = bundle.folder / "model.onnx"
    onnx.save(onnx.load(path), path)
    path.write_bytes(path.read_bytes() + onnx.ModelProto(doc_string="x").SerializeToString())
    acknowledged(bundle, "model.onnx")
    with pytest.raises(BundleError, match="was made anew meanwhile") as caught:
        bundle.checked("model.onnx")
    assert caught.value.hint == "Run the command again."


def test_update_manifest_removes_partial_files_of_killed_runs(bundle):
    partial = bundle.folder / f".{MANIFEST_NAME}.0123abcd"
    partial.touch()
    update_manifest(bundle.folder, lambda manifest: manifest)
    assert not partial.exists()


def test_read_manifest_bounds_what_is_hashed(bundle):
    """A file of 1 TB takes no space on a disk if nothing is in it."""
    path, recorded = bundle.folder / MANIFEST_NAME, bundle.manifest.files["golden.npz"].bytes
    path.write_text(path.read_text().replace(f'"bytes": {recorded}', f'"bytes": {2**40}'))
    with pytest.raises(BundleError, match="too many bytes"):
        open_bundle(bundle.folder)


def test_find_bundle_in_what_nobody_may_read(artifacts, monkeypatch):
    """It is not passed over as if it were not there; root reads everything, so it is made."""
    stat = Path.stat

    def refuse(path, **options):
        if path.parent == artifacts / "first":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(BundleError, match="cannot be read: Permission denied"):
        find_bundle(None, artifacts)
    monkeypatch.undo()

    def refuse_all(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse_all)
    with pytest.raises(BundleError, match=r"folder of all bundles .* cannot be read"):
        find_bundle(None, artifacts)
