"""Another bundle takes over only when it answers its golden images; nobody notices."""

import shutil
import tempfile
import threading
import time
from types import SimpleNamespace

import pytest
from serving import served, until

from deploykit.bundle.folder import open_bundle
from deploykit.bundle.packed import pack
from deploykit.errors import ParityError

FAILED = 'deploykit_reloads_total{outcome="failed"}'
DONE = 'deploykit_reloads_total{outcome="done"}'


def replace(bundle, by):
    """As ``export --overwrite`` does: the new one in one step."""
    old = bundle.folder.with_name(".old")
    shutil.copytree(by.folder, bundle.folder.with_name(".new"))
    bundle.folder.rename(old)
    bundle.folder.with_name(".new").rename(bundle.folder)
    shutil.rmtree(old)


def damaged(bundle, damage, folder):
    copy = folder / "damaged" / "colours"
    shutil.copytree(bundle.folder, copy)
    if damage == "graph":
        (copy / "deploy" / "fp32.onnx").write_bytes(b"damaged")
    if damage == "manifest":
        (copy / "bundle.json").write_text("{")
    return SimpleNamespace(folder=copy)


def test_watch_reloads_without_a_lost_request(bundle, other, photo):
    seen, is_over = [], threading.Event()

    def ask(server):
        while not is_over.is_set():
            answer = server.post("/predict", photo)
            row = answer.value
            seen.append((answer.status, row["label"] if "label" in row else row["labels"][0]))

    with served(bundle, watch=True) as server:
        clients = [threading.Thread(target=ask, args=(server,)) for _ in range(3)]
        for client in clients:
            client.start()
        until(lambda: len(seen) > 10)
        replace(bundle, by=other)
        until(lambda: server.metric(DONE) == 1)
        count = len(seen)
        until(lambda: len(seen) > count + 10)
        is_over.set()
        for client in clients:
            client.join()
    assert {*seen} == {(200, "red"), (200, "rose")}
    assert {*seen[-5:]} == {(200, "rose")}
    assert any(note.startswith("reloaded: colours: deploy/fp32.onnx") for note in server.notes)


@pytest.mark.parametrize("damage", ["graph", "answers", "manifest"])
def test_watch_keeps_the_old_one_when_the_new_one_fails(
    bundle, other, photo, damage, monkeypatch, tmp_path
):
    with served(bundle, watch=True) as server:
        if damage == "answers":
            monkeypatch.setattr(
                "deploykit.commands.serve.served.check_golden",
                lambda *args, **options: (_ for _ in ()).throw(ParityError("other answers")),
            )
        replace(bundle, by=damaged(other, damage, tmp_path))
        until(lambda: server.metric(FAILED) >= 1)
        assert server.metric(DONE) == 0
        assert server.post("/predict", photo).value["label"] == "red"
    assert any("answers as before" in note for note in server.notes)


def test_watch_sees_that_a_packed_bundle_is_another_one(
    bundle, other, photo, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    archive, new = tmp_path / "packed.zip", tmp_path / "new.zip"
    pack(bundle.folder, "colours", bundle.manifest.files, archive)
    pack(other.folder, "colours", other.manifest.files, new)
    with served(SimpleNamespace(folder=archive), watch=True) as server:
        assert server.ask("GET", "/v2/models/colours").value["name"] == "colours"
        assert server.post("/predict", photo).value["label"] == "red"
        content = new.read_bytes()
        archive.write_bytes(content[:-100])  # as it is while it is copied
        time.sleep(0.2)
        assert server.metric(DONE) == server.metric(FAILED) == 0
        new.replace(archive)
        until(lambda: server.metric(DONE) == 1)
        assert server.post("/predict", photo).value["labels"][0] == "rose"


def test_start_refuses_a_bundle_that_fails_its_golden_images(bundle, answers):
    answers("deploy/fp32.onnx", lambda logits: -logits)
    with pytest.raises(ParityError, match="does not give the recorded answers"), served(bundle):
        pass
    assert open_bundle(bundle.folder).manifest == bundle.manifest  # nothing is kept of it
