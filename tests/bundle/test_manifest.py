import json
import threading

import msgspec
import pytest
from filelock import FileLock

from deploykit.bundle import manifest as manifest_module
from deploykit.bundle.manifest import (
    MANIFEST_NAME,
    SCHEMA,
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


def test_read_manifest_round_trip(folder, exported_bundle):
    assert read_manifest(folder) == exported_bundle.manifest
    assert [path.name for path in folder.iterdir()] == [MANIFEST_NAME]


def test_write_manifest_of_what_json_cannot_hold_leaves_the_old_one(folder, exported_bundle):
    proof = exported_bundle.manifest.verdicts[0]
    endless = msgspec.structs.replace(proof.measurement, max_abs_error=float("inf"))
    wrong = msgspec.structs.replace(proof, measurement=endless)
    with pytest.raises(ValueError, match="max_abs_error"):
        write_manifest(folder, exported_bundle.manifest.with_verdict(wrong))
    assert read_manifest(folder) == exported_bundle.manifest


def test_read_manifest_of_a_folder_without_one(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle") as caught:
        read_manifest(tmp_path)
    assert "deploykit export" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"schema": "1"}', '{"name": "x"}', '{"schema": NaN}', "9" * 5000),
        *('{"schema": 1e999}', '{"schema": 4, "schema": 4}', "[" * 10**5, '{"a":' * 10**5),
        *(b"\xff{}", b'{"schema": 4, "name": "\xe9"}', '{"schema": 4}'.encode("utf-16")),
    ],
)
def test_read_manifest_refuses_a_damaged_file(tmp_path, text):
    (tmp_path / MANIFEST_NAME).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BundleError, match="damaged"):
        read_manifest(tmp_path)


def test_read_manifest_refuses_an_unknown_field(folder):
    edit(folder, lambda content: content.update(colour="red"))
    with pytest.raises(BundleError, match="colour"):
        read_manifest(folder)


def test_read_manifest_refuses_a_missing_field(folder):
    edit(folder, lambda content: content.pop("labels"))
    with pytest.raises(BundleError, match="labels"):
        read_manifest(folder)


def test_read_manifest_defaults_of_older_exports(folder):
    edit(folder, lambda content: (content.pop("golden"), content.pop("requested_opset")))
    manifest = read_manifest(folder)
    assert (manifest.golden, manifest.requested_opset) == ("photos", None)


def test_read_manifest_refuses_an_invalid_value(folder):
    edit(folder, lambda content: content["preprocessing"].update(std=[0, 1, 1]))
    with pytest.raises(BundleError, match="std above 0"):
        read_manifest(folder)


def test_read_manifest_refuses_what_json_cannot_hold_again(folder):
    """Half of a pair of surrogates."""
    edit(folder, lambda content: content["architecture"]["args"].update(width="\ud800"))
    with pytest.raises(BundleError, match="damaged"):
        read_manifest(folder)


def test_read_manifest_refuses_nesting_in_free_fields(folder):
    path = folder / MANIFEST_NAME
    deep = "[" * 5000 + "]" * 5000
    path.write_text(path.read_text().replace('"args": {}', f'"args": {{"width": {deep}}}'))
    assert deep in path.read_text()
    with pytest.raises(BundleError, match="damaged"):
        read_manifest(folder)


def test_read_manifest_bounds_its_size(folder):
    with (folder / MANIFEST_NAME).open("r+b") as file:
        file.truncate(2**40)  # takes no space
    with pytest.raises(BundleError, match="more than"):
        read_manifest(folder)


@pytest.mark.parametrize("graph", ["deploy/fp32.ort", "deploy/fp32.onnxtxt", "golden.npz"])
def test_read_manifest_refuses_a_graph_of_another_format(folder, graph):
    def change(content):
        content["files"][graph] = content["files"]["deploy/fp32.onnx"]
        content["deploy"]["fp32"] = graph

    edit(folder, change)
    with pytest.raises(BundleError, match="is no ONNX file"):
        read_manifest(folder)


def test_read_manifest_refuses_contradicting_parts(folder):
    edit(folder, lambda content: content["labels"]["names"].pop())
    with pytest.raises(BundleError, match="labels with 2 logits do not fit a network with 3"):
        read_manifest(folder)


def test_read_manifest_refuses_a_graph_without_record(folder):
    edit(folder, lambda content: content["files"].pop("deploy/fp32.onnx"))
    with pytest.raises(BundleError, match=r"no file is recorded for deploy/fp32.onnx"):
        read_manifest(folder)


@pytest.mark.parametrize(("schema", "action"), [(1, "Export"), (SCHEMA + 1, "Update deploykit")])
def test_read_manifest_of_another_schema(folder, schema, action):
    edit(folder, lambda content: content.update(schema=schema, of_another_time=True))
    with pytest.raises(BundleError, match=f"schema {schema}") as caught:
        read_manifest(folder)
    assert action in caught.value.hint


def test_update_manifest_from_several_threads(folder):
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


def test_update_manifest_failed_changes_nothing(folder):
    before = (folder / MANIFEST_NAME).read_bytes()
    with pytest.raises(ZeroDivisionError):
        update_manifest(folder, lambda old: 1 / 0)
    assert (folder / MANIFEST_NAME).read_bytes() == before


def test_update_manifest_while_lock_is_held(folder, monkeypatch):
    monkeypatch.setattr(manifest_module, "_LOCK_SECONDS", 0.05)
    with (
        FileLock(folder.with_name(f".{folder.name}.lock")),
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


def test_record_file_has_hash_and_size(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    record = record_file(tmp_path / "file")
    assert record.bytes == 3
    assert record.sha256 == sha256_of(tmp_path / "file")
    assert record.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
