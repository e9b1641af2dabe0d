"""Bundles that change while a job works on them, and bundles that lost a part."""

import shutil

import msgspec
import pytest
from bundle_files import contents, edited
from fp16_networks import tune_fp16

from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import FileRecord, update_manifest
from deploykit.commands.build.engine_files import publish_engine
from deploykit.commands.build.run import BuildRequest, build_engine
from deploykit.commands.quantize.fp16 import Fp16
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import BundleError
from deploykit.inference.engines import engines_of
from deploykit.proof.auto import open_best
from deploykit.system.progress import Note


def export_again(bundle):
    """Give the bundle another FP32 graph, as ``export --overwrite`` does."""

    def change(manifest):
        other = FileRecord(sha256="0" * 64, bytes=1)
        files = {**manifest.files, "deploy/fp32.onnx": other}
        return msgspec.structs.replace(manifest, files=files, verdicts=())

    update_manifest(bundle.folder, change)


def test_fp16_search_of_a_bundle_exported_meanwhile(bundle, monkeypatch):
    run = Fp16.find

    def slow_run(strategy, start, seconds):
        found = run(strategy, start, seconds)
        export_again(bundle)
        return found

    monkeypatch.setattr(Fp16, "find", slow_run)
    with pytest.raises(BundleError, match="changed meanwhile") as caught:
        tune_fp16(bundle)
    assert "again" in caught.value.hint
    assert "fp16" not in open_bundle(bundle.folder).manifest.deploy
    assert not any("fp16" in name or "new-" in name for name in contents(bundle))


def test_publish_engine_of_a_graph_changed_meanwhile(engine_bundle, no_gpu):
    (engine,) = engines_of(engine_bundle)
    plan = (engine_bundle.folder / engine.file).read_bytes()
    tune_fp16(engine_bundle)  # the same graph: nothing has changed
    publish_engine(engine_bundle, engine.passport, plan)

    def change(manifest):
        files = {**manifest.files, "deploy/fp16.onnx": FileRecord(sha256="0" * 64, bytes=1)}
        return msgspec.structs.replace(manifest, files=files, verdicts=())

    update_manifest(engine_bundle.folder, change)
    before = contents(engine_bundle)
    with pytest.raises(BundleError, match=r"changed meanwhile: deploy/fp16\.onnx"):
        publish_engine(engine_bundle, engine.passport, plan)
    assert contents(engine_bundle) == before


def test_self_test_mends_a_failure_of_meanwhile(bundle):
    """What a slow ``verify`` keeps depends on the manifest as it is then."""
    photos = bundle.manifest.verdicts[-1]
    failed = msgspec.structs.replace(
        photos,
        reference_kind="golden",
        images=msgspec.structs.replace(photos.images, kind="golden", count=1),
        among=1,
        reasons=("it failed while the other was at work",),
    )
    now = edited(bundle, verdicts=(*bundle.manifest.verdicts, failed))
    assert not all(each.passed for each in now.manifest.verdicts)
    assert verify_bundle(bundle, VerifyRequest(self_test=True)).passed
    assert all(each.passed for each in open_bundle(bundle.folder).manifest.verdicts)


def test_build_engine_makes_a_torn_fp16_graph_again(engine_bundle, no_gpu):
    """As a crash between the graph and the manifest leaves it."""
    (engine_bundle.folder / "deploy/fp16.onnx").write_bytes(b"torn")
    result = build_engine(engine_bundle, BuildRequest())
    assert result.tuning is not None
    assert result.bundle.checked("deploy/fp16.onnx")


def lose_passport(bundle):
    (engine,) = bundle.manifest.engines
    (bundle.folder / f"{engine}.json").unlink()


def swap_passport(bundle):
    """Another engine's passport, under this one's name, and the manifest knows."""
    (engine,) = bundle.manifest.engines
    path = bundle.folder / f"{engine}.json"
    path.write_text(path.read_text().replace('"engine_sha256": "', '"engine_sha256": "00'))

    def change(manifest):
        from deploykit.bundle.manifest import record_file

        files = {**manifest.files, f"{engine}.json": record_file(path)}
        return msgspec.structs.replace(manifest, files=files)

    update_manifest(bundle.folder, change)


@pytest.mark.parametrize("damage", [lose_passport, swap_passport])
def test_bundle_with_a_damaged_engine_still_works(engine_bundle, photo_folder, no_gpu, damage):
    damage(engine_bundle)
    bundle = open_bundle(engine_bundle.folder)
    notes = []
    with open_best(bundle, progress=notes.append) as session:
        assert session.spec.runtime == "onnxruntime-cpu"
    assert any("skipped" in note.message and "build-trt" in note.message for note in notes)
    with open_best(bundle, runtime="onnxruntime-cpu") as session:
        assert session.spec.precision == "fp32"
    assert verify_bundle(bundle, VerifyRequest(self_test=True)).passed
    assert verify_bundle(bundle, VerifyRequest(runtime="onnxruntime-cpu", self_test=True)).passed
    with pytest.raises(BundleError) as caught:
        engines_of(bundle)
    assert "build-trt" in caught.value.hint


def test_self_test_without_copied_engines(engine_bundle, no_gpu):
    shutil.rmtree(engine_bundle.folder / "engines")
    notes = []
    result = verify_bundle(engine_bundle, VerifyRequest(self_test=True), notes.append)
    assert result.passed
    assert any("skipped" in e.message for e in notes if isinstance(e, Note))


def test_build_engine_forgets_missing_engines(engine_bundle, no_gpu):
    (gone,) = engine_bundle.manifest.engines
    (engine_bundle.folder / gone).unlink()
    bundle = build_engine(engine_bundle, BuildRequest(targets=("sm89",))).bundle
    (engine,) = bundle.manifest.engines
    assert "sm89" in engine
    assert not {gone, f"{gone}.json"} & bundle.manifest.files.keys()


def test_fp16_search_on_too_few_images_warns_first(engine_bundle, photo_folder, tmp_path):
    few = tmp_path / "few"
    for name in ("blue", "green", "red"):
        (few / name).mkdir(parents=True)
        for i in range(3):
            shutil.copy(photo_folder / name / f"{i:02}.png", few / name)
    (few / "red" / "broken.png").write_bytes(b"no image")
    notes = []
    tune_fp16(engine_bundle, images=few, progress=notes.append)
    messages = [event.message for event in notes if isinstance(event, Note)]
    assert any(
        text.startswith("UNPROVEN: what is made will be compared on 5 photos") for text in messages
    )
    assert any("cannot be read" in text for text in messages)
