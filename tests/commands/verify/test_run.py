import shutil

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import record_file, update_manifest
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import (
    BundleError,
    CheckpointError,
    DeviceError,
    ImagesError,
    UsageError,
)
from deploykit.inference.candidates import Candidate
from deploykit.inference.engines import engines_not_copied
from deploykit.proof.policy import status
from deploykit.proof.reference import ReferenceRequest, open_reference
from deploykit.runtime.opener import CPU
from deploykit.system.progress import Note

FP32 = "deploy/fp32.onnx"


@pytest.fixture
def named(network_file):
    """The user's own architecture, named as on the command line."""
    return ReferenceRequest(arch=f"{network_file}:Net")


def perturb(bundle, name="deploy/fp32.onnx", factor=1.05):
    """Change one weight of a graph, and let the manifest call it its own."""
    path = bundle.folder / name
    model = onnx.load(path)
    weight = next(item for item in model.graph.initializer if item.name == "head.weight")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] *= factor
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)

    def change(manifest):
        files = {**manifest.files, name: record_file(path)}
        return msgspec.structs.replace(manifest, files=files)

    update_manifest(bundle.folder, change)
    return open_bundle(bundle.folder)


def known(bundle, graph=FP32):
    """What is known of a graph as it is now."""
    return status(open_bundle(bundle.folder), Candidate(graph, CPU, "fp32"), "CPU")


def test_verify_compares_both_graphs_with_the_checkpoint(bundle, named, photo_folder, no_openvino):
    result = verify_bundle(bundle, VerifyRequest(images=photo_folder, reference=named))
    assert result.passed
    assert result.reference.description.startswith("torch module")
    assert [v.candidate.graph for v in result.verdicts] == ["model.onnx", "deploy/fp32.onnx"]
    assert (result.images.kind, result.images.count, result.unreadable) == ("photos", 45, 0)
    for verdict in result.verdicts:
        assert verdict.measurement.batch_sizes == (1, 2, 5, 32)
        assert verdict.measurement.images == 45
        assert verdict.measurement.flips == 0
        assert verdict.measurement.flip_rate_bound == pytest.approx(1 - 0.05 ** (1 / 45))


def test_verify_passed_keeps_the_proof(bundle, named, photo_folder):
    verify_bundle(bundle, VerifyRequest(images=photo_folder, reference=named))
    proofs = {proof.graph: proof for proof in open_bundle(bundle.folder).manifest.verdicts}
    assert len(proofs) == 2
    assert proofs["deploy/fp32.onnx"].images.count == 45
    assert proofs["deploy/fp32.onnx"].reference.startswith("torch module")


def test_verify_interrupted_in_its_diagnosis_keeps_nothing(
    bundle, named, photo_folder, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    request = VerifyRequest(images=photo_folder, reference=named, stages=True)
    before = (bundle.folder / "bundle.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("deploykit.commands.verify.diagnosis.diagnose", interrupted)
        with pytest.raises(KeyboardInterrupt):
            verify_bundle(bundle, request)
    assert (bundle.folder / "bundle.json").read_bytes() == before
    verify_bundle(bundle, request)
    assert (bundle.folder / "bundle.json").read_bytes() != before


def test_verify_on_fewer_images_keeps_the_proof(bundle, named, photo_folder):
    verify_bundle(bundle, VerifyRequest(images=photo_folder, reference=named))
    strong = open_bundle(bundle.folder)
    request = VerifyRequest(images=photo_folder, max_images=9, reference=named)
    assert verify_bundle(strong, request).passed
    assert open_bundle(bundle.folder).manifest.verdicts == strong.manifest.verdicts


def test_verify_refuses_a_failed_graph_as_reference(bundle, named, photo_folder):
    """Or a plain verify would bring back the proof that a comparison with torch took away."""
    changed = perturb(perturb(bundle), "model.onnx")
    assert not verify_bundle(changed, VerifyRequest(reference=named)).passed
    again = verify_bundle(open_bundle(bundle.folder), VerifyRequest(images=photo_folder))
    assert not again.passed
    assert "itself not proven" in again.verdicts[0].reasons[-1]
    assert [known(bundle, graph).word for graph in ("model.onnx", FP32)] == ["failed", "failed"]


def test_verify_of_other_weights_changes_no_proof(bundle, network_file, checkpoint, tmp_path):
    weights = torch.load(checkpoint, weights_only=True)
    for factor in (1.0, 1.5):
        weights["head.bias"] = weights["head.bias"] * factor
        torch.save({"state_dict": weights}, tmp_path / "other.pth")
        reference = ReferenceRequest(arch=f"{network_file}:Net", checkpoint=tmp_path / "other.pth")
        notes = []
        result = verify_bundle(bundle, VerifyRequest(reference=reference), notes.append)
        assert "other.pth" in result.reference.description
        assert (result.reference.kind, result.reference.is_recorded) == ("module", False)
        assert open_bundle(bundle.folder).manifest == bundle.manifest
        assert any("other weights" in e.message for e in notes if isinstance(e, Note))


def test_verify_of_a_bundle_replaced_meanwhile(bundle, named, photo_folder):
    path = bundle.folder / "deploy/fp32.onnx"

    def replace_graph(manifest):
        other = msgspec.structs.replace(record_file(path), sha256="0" * 64)
        files = {**manifest.files, "deploy/fp32.onnx": other}
        return msgspec.structs.replace(manifest, files=files, verdicts=())

    update_manifest(bundle.folder, replace_graph)
    assert verify_bundle(bundle, VerifyRequest(images=photo_folder, reference=named)).passed
    kept = open_bundle(bundle.folder).manifest.verdicts
    assert [proof.graph for proof in kept] == ["model.onnx"]


def test_verify_of_a_read_only_bundle(bundle, named, monkeypatch):
    def read_only(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("deploykit.bundle.manifest.write_manifest", read_only)
    notes = []
    assert verify_bundle(bundle, VerifyRequest(reference=named), notes.append).passed
    assert any("the proof is not kept" in e.message for e in notes if isinstance(e, Note))


def test_verify_runs_user_code_only_if_named(bundle, photo_folder, no_openvino):
    notes = []
    result = verify_bundle(bundle, VerifyRequest(images=photo_folder), notes.append)
    assert result.reference.description == "model.onnx on onnxruntime-cpu"
    assert (result.reference.kind, result.reference.is_recorded) == ("graph", True)
    assert [v.candidate.graph for v in result.verdicts] == ["deploy/fp32.onnx"]
    assert any("code of its own" in e.message for e in notes if isinstance(e, Note))


def test_verify_fails_a_changed_weight(bundle, named, photo_folder, no_openvino):
    changed = perturb(bundle)
    result = verify_bundle(changed, VerifyRequest(images=photo_folder, reference=named))
    assert not result.passed
    canonical, deploy = result.verdicts
    assert canonical.passed
    assert not deploy.passed
    assert "of the scale" in deploy.reasons[0]
    assert known(bundle, "model.onnx").word == "proven"
    assert known(bundle).verdict.reasons == deploy.reasons


def test_verify_takes_the_recorded_images(bundle, named, photo_folder):
    notes = []
    result = verify_bundle(bundle, VerifyRequest(reference=named), notes.append)
    assert result.images.source == str(photo_folder.resolve())
    assert any("given at export" in e.message for e in notes if isinstance(e, Note))


def test_verify_without_images_takes_golden_images(bundle, named):
    update_manifest(bundle.folder, lambda m: msgspec.structs.replace(m, images="/gone"))
    result = verify_bundle(open_bundle(bundle.folder), VerifyRequest(reference=named))
    assert (result.images.kind, result.images.count) == ("golden", 8)
    assert result.passed
    assert {verdict.measurement.flip_rate_bound for verdict in result.verdicts} == {None}


def test_verify_max_images(bundle, named, photo_folder):
    request = VerifyRequest(images=photo_folder, max_images=9, reference=named)
    assert verify_bundle(bundle, request).images.count == 9


def test_self_test_needs_only_the_bundle(bundle, no_openvino):
    result = verify_bundle(bundle, VerifyRequest(self_test=True))
    assert result.passed
    assert result.reference.description == "answers recorded in golden.npz"
    assert (result.reference.kind, result.reference.is_recorded) == ("golden", True)
    assert result.verdicts[0].measurement.flip_rate_bound is None
    assert result.images.count == 8
    assert [v.candidate.graph for v in result.verdicts] == ["deploy/fp32.onnx"]


def test_self_test_fails_a_changed_weight(bundle):
    assert not verify_bundle(perturb(bundle), VerifyRequest(self_test=True)).passed
    assert known(bundle, "model.onnx").word == "proven"
    assert known(bundle).word == "failed"
    assert "it failed on 8 golden images" in known(bundle).reason


@pytest.mark.parametrize("change", ["labels", "preprocessing"])
def test_verify_refuses_an_edited_manifest(bundle, change):
    """Swapped labels would pass every comparison of logits."""

    def edit(manifest):
        if change == "labels":
            names = manifest.labels.names[::-1]
            labels = msgspec.structs.replace(manifest.labels, names=names)
            return msgspec.structs.replace(manifest, labels=labels)
        steps = msgspec.structs.replace(manifest.preprocessing, mean=(0.5, 0.5, 0.5))
        return msgspec.structs.replace(manifest, preprocessing=steps)

    update_manifest(bundle.folder, edit)
    for self_test in (False, True):
        with pytest.raises(BundleError, match=f"exported with deploykit.{change}"):
            verify_bundle(open_bundle(bundle.folder), VerifyRequest(self_test=self_test))


def test_self_test_checks_every_file(bundle):
    (bundle.folder / "model.onnx").write_bytes(b"truncated")
    with pytest.raises(BundleError, match=r"model.onnx is not the file that was exported"):
        verify_bundle(bundle, VerifyRequest(self_test=True))


def test_self_test_without_copied_engines(bundle):
    engine = bundle.folder / "engines" / "a.engine"
    engine.parent.mkdir()
    engine.write_bytes(b"plan")
    passport = engine.with_name("a.engine.json")
    passport.write_bytes(b"{}")
    records = {f"engines/{path.name}": record_file(path) for path in (engine, passport)}

    def add(manifest):
        files = {**manifest.files, **records}
        return msgspec.structs.replace(manifest, files=files, engines=("engines/a.engine",))

    update_manifest(bundle.folder, add)
    request = VerifyRequest(self_test=True)
    passport.unlink()
    assert not engines_not_copied(open_bundle(bundle.folder))
    engine.unlink()
    assert engines_not_copied(open_bundle(bundle.folder)) == records.keys()
    assert verify_bundle(open_bundle(bundle.folder), request).passed


def test_self_test_refuses_a_damaged_graph(bundle):
    (bundle.folder / "deploy/fp32.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="not the file that was exported"):
        verify_bundle(bundle, VerifyRequest(self_test=True))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip"])
def test_self_test_refuses_a_damaged_golden_file(bundle, content):
    path = bundle.folder / "golden.npz"
    path.write_bytes(content)
    update_manifest(
        bundle.folder,
        lambda m: msgspec.structs.replace(m, files={**m.files, "golden.npz": record_file(path)}),
    )
    with pytest.raises(BundleError, match="damaged"):
        verify_bundle(open_bundle(bundle.folder), VerifyRequest(self_test=True))


def test_self_test_with_non_finite_golden_answers(bundle):
    path = bundle.folder / "golden.npz"
    with np.load(path) as data:
        logits = data["logits"].copy()
        images = data["images"]
    logits[0, 0] = np.nan
    np.savez(path, images=images, logits=logits)
    update_manifest(
        bundle.folder,
        lambda m: msgspec.structs.replace(m, files={**m.files, "golden.npz": record_file(path)}),
    )
    with pytest.raises(BundleError, match=r"golden\.npz is damaged: its logits are not all finite"):
        verify_bundle(open_bundle(bundle.folder), VerifyRequest(self_test=True))


def test_verify_counts_unreadable_images(bundle, named, tmp_path, photo_folder):
    shutil.copytree(photo_folder / "red", tmp_path / "photos")
    (tmp_path / "photos" / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = verify_bundle(bundle, VerifyRequest(images=tmp_path / "photos", reference=named))
    assert (result.images.count, result.unreadable) == (14, 1)
    assert result.passed


def test_verify_without_readable_image_is_refused(bundle, named, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    with pytest.raises(ImagesError, match="Not one"):
        verify_bundle(bundle, VerifyRequest(images=tmp_path / "photos", reference=named))


def test_verify_fails_another_checkpoint(bundle, network_file, checkpoint, tmp_path):
    weights = torch.load(checkpoint, weights_only=True)
    weights["head.bias"] += torch.tensor([0.5, 0.0, 0.0])
    torch.save(weights, tmp_path / "other.pth")
    reference = ReferenceRequest(arch=f"{network_file}:Net", checkpoint=tmp_path / "other.pth")
    assert not verify_bundle(bundle, VerifyRequest(reference=reference)).passed


def test_verify_refuses_a_checkpoint_of_other_classes(bundle, network_file, tmp_path):
    from deploykit.models.registry import resolve_architecture

    module = resolve_architecture(f"{network_file}:Net", allow_user_code=True).build(5)
    torch.save(module.state_dict(), tmp_path / "five.pth")
    reference = ReferenceRequest(arch=f"{network_file}:Net", checkpoint=tmp_path / "five.pth")
    with pytest.raises(CheckpointError, match="5 classes; the bundle has 3"):
        verify_bundle(bundle, VerifyRequest(reference=reference))


def test_verify_of_user_network_needs_arch(bundle, checkpoint):
    request = VerifyRequest(reference=ReferenceRequest(checkpoint=checkpoint))
    with pytest.raises(UsageError, match="code of its own") as caught:
        verify_bundle(bundle, request)
    assert "--arch" in caught.value.hint


def test_verify_of_a_missing_precision(bundle):
    with pytest.raises(BundleError, match="no fp16 graph; it has fp32"):
        verify_bundle(bundle, VerifyRequest(precision="fp16"))


def test_verify_on_a_missing_device(bundle, no_gpu):
    with pytest.raises(DeviceError):
        verify_bundle(bundle, VerifyRequest(runtime="onnxruntime-cuda"))


def test_verify_rebuilds_a_zoo_network(tmp_path, photo_folder):
    from deploykit.commands.export.request import ExportRequest
    from deploykit.commands.export.run import export_bundle
    from deploykit.models.registry import resolve_architecture

    torch.manual_seed(0)
    arguments = {"growth_rate": 4, "block_config": (1, 1), "num_init_features": 8}
    module = resolve_architecture("densenet", allow_user_code=False).build(3, arguments)
    torch.save(module.state_dict(), tmp_path / "best_model.pth")
    from deploykit.specs.preprocessing_options import PreprocessingOptions

    request = ExportRequest(
        arch="densenet",
        arch_args=arguments,
        checkpoint=tmp_path / "best_model.pth",
        preprocessing=PreprocessingOptions(input_size=(32, 32)),
        artifacts=tmp_path / "artifacts",
    )
    bundle = export_bundle(request).bundle
    result = verify_bundle(bundle, VerifyRequest(images=photo_folder))
    assert result.reference.description.startswith("torch module densenet from best_model.pth (")
    assert result.passed

    (tmp_path / "best_model.pth").write_bytes(b"changed")
    notes = []
    result = verify_bundle(bundle, VerifyRequest(images=photo_folder), notes.append)
    assert result.reference.description == "model.onnx on onnxruntime-cpu"
    assert any("has changed since the export" in e.message for e in notes if isinstance(e, Note))

    (tmp_path / "best_model.pth").unlink()
    notes = []
    verify_bundle(bundle, VerifyRequest(images=photo_folder), notes.append)
    assert any("is not there" in e.message for e in notes if isinstance(e, Note))


def put_golden(bundle, count):
    """Let the bundle's golden file hold so many of its images."""
    path = bundle.folder / "golden.npz"
    with np.load(path) as data:
        images, logits = data["images"][:count], data["logits"][:count]
    np.savez(path, images=images, logits=logits)
    files = {**bundle.manifest.files, "golden.npz": record_file(path)}
    update_manifest(bundle.folder, lambda m: msgspec.structs.replace(m, files=files, images=None))
    return open_bundle(bundle.folder)


@pytest.mark.parametrize("request_", [VerifyRequest(), VerifyRequest(self_test=True)])
def test_verify_refuses_an_empty_golden_file(bundle, request_):
    with pytest.raises(BundleError, match="holds no image") as caught:
        verify_bundle(put_golden(bundle, 0), request_)
    assert caught.value.hint


def test_verify_limits_golden_images(bundle, named):
    request = VerifyRequest(max_images=3, reference=named)
    assert verify_bundle(put_golden(bundle, 8), request).images.count == 3


def test_self_test_refuses_max_images(bundle):
    with pytest.raises(UsageError, match="--max-images"):
        verify_bundle(bundle, VerifyRequest(self_test=True, max_images=3))


def test_verify_refuses_a_changed_golden_file(bundle, photo_folder):
    with (bundle.folder / "golden.npz").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"golden.npz is not the file"):
        verify_bundle(bundle, VerifyRequest(images=photo_folder))


def test_verify_keeps_a_given_reference_open(bundle, named, photo_folder):
    reference = open_reference(bundle, named, lambda event: None)
    with reference.session:
        request = VerifyRequest(images=photo_folder, max_images=4, reference=named)
        assert verify_bundle(bundle, request, reference=reference).passed
        images = np.zeros((1, *reference.session.spec.input_size, 3), np.uint8)
        assert reference.session.run(images).shape == (1, 3)


def test_self_test_refuses_another_reference(bundle, named):
    """Or what it passes would be kept as a proof."""
    reference = open_reference(bundle, named, lambda event: None)
    with reference.session, pytest.raises(UsageError, match="with no other reference") as caught:
        verify_bundle(bundle, VerifyRequest(self_test=True), reference=reference)
    assert caught.value.hint


def test_verify_on_undecidable_images_keeps_the_proof(bundle, tmp_path, monkeypatch, no_openvino):
    """A doubt: the numbers agree, and the reference has two best classes."""
    from PIL import Image

    from deploykit.runtime._onnxruntime import OnnxRuntimeSession

    run = OnnxRuntimeSession._run

    def tie_the_black_ones(self, images):
        logits = run(self, images)
        logits[images.max(axis=(1, 2, 3)) == 0] = 0
        return logits

    monkeypatch.setattr(OnnxRuntimeSession, "_run", tie_the_black_ones)
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (20, 20)).save(folder / "black.png")
    result = verify_bundle(bundle, VerifyRequest(images=folder))
    assert not result.passed
    assert "does not decide 1 of 1 image" in result.verdicts[0].reasons[0]
    assert not any(verdict.failed for verdict in result.verdicts)
    assert open_bundle(bundle.folder).manifest == bundle.manifest
