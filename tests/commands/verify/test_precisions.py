"""``verify`` where a bundle has more than its FP32 graph: FP16 graphs, TF32, engines."""

import shutil

import msgspec
import numpy as np
import onnx
import pytest
from bundle_files import acknowledged, contents, kept
from fake_session import FakeSession
from fp16_networks import BRIGHT, make_photos, tune_fp16
from onnx import numpy_helper

from deploykit.bundle.folder import open_bundle
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import BundleError, DependencyError, DeviceError, UsageError

FP16 = "deploy/fp16.onnx"
REHEARSAL = VerifyRequest(runtime="rehearsal", precision="fp16")


def renamed(source, target):
    shutil.copy(source, f"{target}.copy.png")


def candidates(result):
    return [(each.candidate.graph, each.candidate.runtime, each.kind) for each in result.verdicts]


def notes_of(events):
    return [event.message for event in events if hasattr(event, "message")]


@pytest.fixture
def tuned(bundle):
    return tune_fp16(bundle).bundle


@pytest.mark.parametrize("name", ["Overflow", "Underflow", "SensitiveSum"])
def test_verify_rehearses_fp16_on_other_images_than_search(toy, name):
    tuned = tune_fp16(toy(name)).bundle
    result = verify_bundle(tuned, REHEARSAL)
    assert result.passed
    assert candidates(result) == [(FP16, "rehearsal", "rehearsed")]
    assert result.verdicts[0].tolerance.max_flip_rate == 0.005
    assert (result.images.count, result.images.calibration, result.unreadable) == (23, 22, 0)
    assert kept(open_bundle(tuned.folder), FP16, "rehearsal", "CPU").images == result.images


def test_verify_max_images_makes_up_for_calibration_images(tuned):
    """The sample would be the very images that the search drew."""
    request = VerifyRequest(max_images=8, runtime="rehearsal", precision="fp16")
    assert verify_bundle(tuned, request).images.count == 8


def test_verify_on_more_images_replaces_the_rehearsal(tuned, tmp_path):
    folder = make_photos(tmp_path / "more", BRIGHT - 20)
    shutil.copytree(tuned.manifest.images, folder, dirs_exist_ok=True, copy_function=renamed)
    assert verify_bundle(
        tuned, VerifyRequest(images=folder, runtime="rehearsal", precision="fp16")
    ).passed
    photos = kept(open_bundle(tuned.folder), FP16, "rehearsal", "CPU").images
    assert (photos.count, photos.calibration) == (53, 22)


def test_verify_fails_a_changed_fp16_weight(tuned):
    path = tuned.folder / FP16
    model = onnx.load(path)
    weight = next(w for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT16)
    values = -numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    result = verify_bundle(acknowledged(tuned, FP16), REHEARSAL)
    assert not result.passed
    manifest = open_bundle(tuned.folder).manifest
    assert not kept(manifest, FP16, "rehearsal", "CPU").passed
    assert kept(manifest, "deploy/fp32.onnx", "onnxruntime-cpu", "CPU").passed


def test_verify_without_options_rehearses(tuned, no_openvino):
    result = verify_bundle(tuned)
    assert result.passed
    assert candidates(result) == [
        ("deploy/fp32.onnx", "onnxruntime-cpu", "executed"),
        (FP16, "rehearsal", "rehearsed"),
    ]


def test_self_test_rehearses_and_changes_nothing(tuned, no_openvino):
    before = contents(tuned)
    result = verify_bundle(tuned, VerifyRequest(self_test=True))
    assert result.passed
    assert [graph for graph, _, _ in candidates(result)] == ["deploy/fp32.onnx", FP16]
    assert contents(tuned) == before


@pytest.mark.parametrize("self_test", [False, True])
def test_verify_without_onnx_skips_the_rehearsal(tuned, no_onnx, self_test, no_openvino):
    events = []
    result = verify_bundle(tuned, VerifyRequest(self_test=self_test), events.append)
    assert result.passed
    assert [graph for graph, _, _ in candidates(result)] == ["deploy/fp32.onnx"]
    (note,) = (note for note in notes_of(events) if "skipped" in note)
    assert note.startswith(f"skipped: {FP16} on rehearsal: onnx is not installed")


def test_verify_named_rehearsal_needs_onnx(tuned, no_onnx):
    with pytest.raises(DependencyError, match="onnx is not installed"):
        verify_bundle(tuned, REHEARSAL)


def test_verify_refuses_fp16_on_onnx_runtime_cpu(tuned):
    """It would compute in FP32."""
    request = VerifyRequest(runtime="onnxruntime-cpu", precision="fp16")
    with pytest.raises(UsageError, match="onnxruntime-cpu does not compute in fp16") as caught:
        verify_bundle(tuned, request)
    assert caught.value.exit_code == 2


def test_verify_of_missing_fp16_graph_names_quantize(bundle):
    with pytest.raises(BundleError, match="has no fp16 graph") as caught:
        verify_bundle(bundle, REHEARSAL)
    assert caught.value.hint.endswith("deploykit quantize --precision fp16")


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "rehearsal", None])
def test_verify_tf32_needs_cuda(tuned, runtime):
    with pytest.raises(UsageError, match=r"has( no)? TF32") as caught:
        verify_bundle(tuned, VerifyRequest(runtime=runtime, tf32=True))
    assert "onnxruntime-cuda" in caught.value.hint


class CudaSession(FakeSession):
    """Says that it is ONNX Runtime on a GPU."""

    def __init__(self, answer, *, tf32):
        super().__init__(answer, classes=3, input_size=(16, 16))
        self._spec = msgspec.structs.replace(
            self._spec,
            runtime="onnxruntime-cuda",
            graph="deploy/fp32.onnx",
            device="NVIDIA GeForce RTX 4070",
            tf32=tf32,
        )


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_verify_in_tf32_keeps_no_verdict(bundle, monkeypatch, tf32, right):
    """Without TF32 the same answers are a proof, or take one away."""
    from deploykit.inference.candidates import Candidate, open_candidate

    key = "deploy/fp32.onnx", "onnxruntime-cuda", "NVIDIA GeForce RTX 4070"
    graph = open_candidate(bundle, Candidate("deploy/fp32.onnx", "onnxruntime-cpu", "fp32"))
    answers = {True: graph.run, False: lambda images: -graph.run(images)}

    def verify(*, right, tf32):
        session = CudaSession(answers[right], tf32=tf32)
        monkeypatch.setattr("deploykit.commands.verify.run.open_candidate", lambda *a, **k: session)
        request = VerifyRequest(runtime="onnxruntime-cuda", precision="fp32", tf32=tf32)
        result = verify_bundle(open_bundle(bundle.folder), request)
        assert result.passed == right
        assert session.closed
        return kept(open_bundle(bundle.folder), *key)

    before = None if right else verify(right=True, tf32=False)
    after = verify(right=right, tf32=tf32)
    assert (after == before) == tf32


def test_verify_skips_an_engine_without_gpu(engine_bundle, no_gpu, no_openvino):
    events = []
    result = verify_bundle(engine_bundle, progress=events.append)
    assert result.passed
    assert [graph for graph, _, _ in candidates(result)] == ["deploy/fp32.onnx", FP16]
    (note,) = (note for note in notes_of(events) if "skipped" in note)
    assert "portable-fp16-b1-8-32.engine on tensorrt_rtx: There is no NVIDIA driver" in note


@pytest.mark.parametrize("by", ["runtime", "engine"])
def test_verify_named_engine_needs_a_gpu(engine_bundle, no_gpu, by):
    named = {"runtime": "tensorrt_rtx", "engine": engine_bundle.manifest.engines[0]}
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        verify_bundle(engine_bundle, VerifyRequest(**{by: named[by]}))


def test_verify_executes_and_proves_an_engine(engine_bundle, engines):
    (engine,) = engine_bundle.manifest.engines
    result = verify_bundle(engine_bundle, VerifyRequest(runtime="tensorrt_rtx"))
    assert result.passed
    assert candidates(result) == [(engine, "tensorrt_rtx", "executed")]
    manifest = open_bundle(engine_bundle.folder).manifest
    proof = kept(manifest, engine, "tensorrt_rtx", "NVIDIA GeForce RTX 4070")
    assert (proof.kind, proof.reference_kind, proof.images.count) == ("executed", "graph", 23)
    assert engines.sessions[0].closed


def test_verify_fails_a_wrong_engine(engine_bundle, engines):
    engines.distort = np.negative
    result = verify_bundle(engine_bundle, VerifyRequest(runtime="tensorrt_rtx"))
    assert not result.passed
    assert "changed their class" in result.verdicts[0].reasons[0]


def test_verify_of_an_unknown_engine(engine_bundle):
    with pytest.raises(BundleError, match=r"has no engine other\.engine; it has tensorrt_rtx-"):
        verify_bundle(engine_bundle, VerifyRequest(engine="other.engine"))
