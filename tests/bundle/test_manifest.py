import json
import threading

import msgspec
import pytest
from filelock import FileLock

from deploykit.bundle import manifest as manifest_module
from deploykit.bundle.manifest import (
    MANIFEST_NAME,
    read_manifest,
    record_file,
    sha256_of,
    update_manifest,
    write_manifest,
)
from deploykit.errors import BundleError


@pytest.fixture
def folder(tmp_path, exported_bundle):
    """A bundle's folder with only its manifest."""
    write_manifest(tmp_path, exported_bundle.manifest)
    return tmp_path


def edit(folder, change):
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_what_is_written_is_read_again(folder, exported_bundle):
    assert read_manifest(folder) == exported_bundle.manifest
    assert [path.name for path in folder.iterdir()] == [MANIFEST_NAME]


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle") as caught:
        read_manifest(tmp_path)
    assert "deploykit export" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": "1"}', '{"name": "x"}'])
def test_a_damaged_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(BundleError, match="damaged"):
        read_manifest(tmp_path)


def test_an_unknown_field_is_refused(folder):
    edit(folder, lambda content: content.update(colour="red"))
    with pytest.raises(BundleError, match="colour"):
        read_manifest(folder)


def test_a_missing_field_is_refused(folder):
    edit(folder, lambda content: content.pop("labels"))
    with pytest.raises(BundleError, match="labels"):
        read_manifest(folder)


def test_what_older_exports_did_not_record_is_what_they_did_unasked(folder):
    edit(folder, lambda content: (content.pop("golden"), content.pop("requested_opset")))
    manifest = read_manifest(folder)
    assert (manifest.golden, manifest.requested_opset) == ("photos", None)


def test_a_value_that_makes_no_sense_is_refused(folder):
    edit(folder, lambda content: content["preprocessing"].update(std=[0, 1, 1]))
    with pytest.raises(BundleError, match="std above 0"):
        read_manifest(folder)


def test_parts_that_do_not_fit_each_other_are_refused(folder):
    edit(folder, lambda content: content["labels"]["names"].pop())
    with pytest.raises(BundleError, match="2 labels do not fit 3 classes"):
        read_manifest(folder)


def test_a_graph_without_a_recorded_file_is_refused(folder):
    edit(folder, lambda content: content["files"].pop("deploy/fp32.onnx"))
    with pytest.raises(BundleError, match=r"no file is recorded for deploy/fp32.onnx"):
        read_manifest(folder)


@pytest.mark.parametrize(("schema", "action"), [(1, "Export"), (4, "Update deploykit")])
def test_another_schema_says_what_to_do(folder, schema, action):
    edit(folder, lambda content: content.update(schema=schema, of_another_time=True))
    with pytest.raises(BundleError, match=f"schema {schema}") as caught:
        read_manifest(folder)
    assert action in caught.value.hint


def test_updates_of_several_threads_are_all_kept(folder):
    def add(name):
        def change(old):
            return msgspec.structs.replace(old, versions={**old.versions, name: "1"})

        update_manifest(folder, change)

    threads = [threading.Thread(target=add, args=(f"package{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"package{i}" for i in range(8)} <= set(read_manifest(folder).versions)


def test_a_failed_change_leaves_the_manifest_alone(folder):
    before = (folder / MANIFEST_NAME).read_bytes()
    with pytest.raises(ZeroDivisionError):
        update_manifest(folder, lambda old: 1 / 0)
    assert (folder / MANIFEST_NAME).read_bytes() == before


def test_a_lock_that_is_held_is_reported(folder, monkeypatch):
    monkeypatch.setattr(manifest_module, "_LOCK_SECONDS", 0.05)
    with (
        FileLock(folder / f".{MANIFEST_NAME}.lock"),
        pytest.raises(BundleError, match="Another process"),
    ):
        update_manifest(folder, lambda old: old)


def test_a_bundle_that_cannot_be_written_says_so(folder, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("deploykit.bundle.manifest.write_manifest", refuse)
    with pytest.raises(BundleError, match="cannot be changed: Permission denied") as caught:
        update_manifest(folder, lambda old: old)
    assert "writable" in caught.value.hint


def test_a_file_is_recorded_with_hash_and_size(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    record = record_file(tmp_path / "file")
    assert record.bytes == 3
    assert record.sha256 == sha256_of(tmp_path / "file")
    assert record.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
