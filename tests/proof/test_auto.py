"""Which runtime a bundle runs on: what was asked for, or the best that is proven."""

import msgspec
import numpy as np
import pytest
from bundle_files import acknowledged, edited
from fp16_networks import BRIGHT, make_photos

from deploykit.bundle.folder import open_bundle
from deploykit.commands.build.run import BuildRequest, build_engine
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import BundleError, DependencyError, DeviceError, ParityError, UsageError
from deploykit.inference.candidates import all_candidates
from deploykit.proof.auto import open_best
from deploykit.proof.policy import status
from deploykit.runtime.opener import RUNTIMES
from deploykit.system.progress import Note

FP32 = "deploy/fp32.onnx"
RTX_4070 = "NVIDIA GeForce RTX 4070"


def chosen(bundle, **options):
    """What opens, and what is said meanwhile."""
    events = []
    with open_best(bundle, progress=events.append, **options) as session:
        return session.spec, [event.message for event in events if isinstance(event, Note)]


def with_verdicts(bundle, *, of=None, **fields):
    """The bundle whose verdicts (on one file) say something else."""
    verdicts = tuple(
        msgspec.structs.replace(each, **fields) if of in (None, each.graph) else each
        for each in bundle.manifest.verdicts
    )
    return edited(bundle, verdicts=verdicts)


def engine_of(bundle):
    (engine,) = bundle.manifest.engines
    return engine


@pytest.fixture
def proven_engine(engine_bundle, engines, tmp_path):
    """The bundle with an engine that has been executed on the GPU, on photos of no search."""
    others = make_photos(tmp_path / "others", BRIGHT - 20)
    request = VerifyRequest(runtime="tensorrt_rtx", images=others)
    assert verify_bundle(engine_bundle, request).passed
    engines.sessions.clear()
    return open_bundle(engine_bundle.folder)


def test_auto_takes_proven_candidates(exported_bundle):
    words = {
        candidate.runtime: status(exported_bundle, candidate).word
        for candidate in all_candidates(exported_bundle)
    }
    unproven = dict.fromkeys(("onnxruntime-cuda", "openvino"), "unproven")
    assert words == {"onnxruntime-cpu": "proven", **unproven}
    spec, notes = chosen(exported_bundle)
    assert (spec.runtime, spec.precision, spec.graph) == ("onnxruntime-cpu", "fp32", FP32)
    assert notes == []


def test_named_runtime_runs_unproven_with_a_note(bundle):
    spec, notes = chosen(edited(bundle, verdicts=()), runtime="onnxruntime-cpu")
    assert spec.runtime == "onnxruntime-cpu"
    assert notes == [
        "deploy/fp32.onnx on onnxruntime-cpu, CPU: it is not proven; this compares it:\n"
        f"deploykit verify --bundle {bundle.folder} --runtime onnxruntime-cpu --precision fp32"
    ]


def test_auto_notes_a_missing_proven_device(bundle, no_gpu):
    proof = next(p for p in bundle.manifest.verdicts if p.graph == FP32)
    cuda = msgspec.structs.replace(proof, runtime="onnxruntime-cuda", device="NVIDIA GPU")
    spec, notes = chosen(edited(bundle, verdicts=(*bundle.manifest.verdicts, cuda)))
    assert spec.runtime == "onnxruntime-cpu"
    assert any("onnxruntime-cuda: There is no NVIDIA" in note for note in notes)


def test_open_best_of_a_missing_precision(bundle):
    for runtime in ("onnxruntime-cpu", "auto"):
        with pytest.raises(BundleError, match="no int8 graph"):
            open_best(bundle, runtime=runtime, precision="int8")


def test_named_device_is_not_replaced(bundle, no_gpu):
    with pytest.raises(DeviceError):
        open_best(bundle, runtime="onnxruntime-cuda")


@pytest.mark.parametrize("runtime", ["auto", "onnxruntime-cpu", "rehearsal", "tensorrt_rtx"])
def test_open_best_refuses_tf32_without_cuda(engine_bundle, engines, runtime):
    with pytest.raises(UsageError, match="TF32") as caught:
        open_best(engine_bundle, runtime=runtime, tf32=True)
    assert "--runtime onnxruntime-cuda" in caught.value.hint


def test_auto_never_takes_a_rehearsal(engine_bundle, no_gpu):
    """It is proven, and runs here, but it is a model of another machine."""
    spec, _ = chosen(engine_bundle)
    assert (spec.runtime, spec.precision) == ("onnxruntime-cpu", "fp32")
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        open_best(engine_bundle, precision="fp16")


def test_auto_without_gpu_notes_the_skipped_engine(engine_bundle, no_gpu):
    spec, notes = chosen(engine_bundle)
    assert spec.runtime == "onnxruntime-cpu"
    (note,) = notes
    assert note.startswith(f"not taken: {engine_of(engine_bundle)} on tensorrt_rtx: There is no")


def test_auto_fails_on_the_graph_before_the_engine(engine_bundle, no_gpu):
    """What helps is to prove the FP32 graph, which runs here."""
    with pytest.raises(ParityError, match="No graph of bundle colours is proven"):
        open_best(edited(engine_bundle, verdicts=()))


def test_auto_skips_an_unproven_engine(engine_bundle, engines):
    spec, notes = chosen(engine_bundle)
    assert spec.runtime == "onnxruntime-cpu"
    (note,) = notes
    how = engine_bundle.command("verify", "--runtime", "tensorrt_rtx")
    assert f"not proven on a GPU; this compares it:\n{how}" in note
    assert engines.sessions == []


def test_auto_takes_an_engine_proven_on_this_gpu(proven_engine, engines):
    spec, notes = chosen(proven_engine)
    assert (spec.runtime, spec.graph) == ("tensorrt_rtx", engine_of(proven_engine))
    assert (spec.device, spec.precision, notes) == (RTX_4070, "fp16", [])
    assert engines.sessions[0].closed


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_auto_keeps_to_named_precision(proven_engine, precision):
    spec, _ = chosen(proven_engine, precision=precision)
    assert spec.precision == precision


def test_auto_skips_an_engine_proven_on_another_gpu(proven_engine, engines):
    other = with_verdicts(proven_engine, of=engine_of(proven_engine), device="NVIDIA H100")
    spec, notes = chosen(other)
    assert spec.runtime == "onnxruntime-cpu"
    assert f"it is proven on NVIDIA H100, not on {RTX_4070}" in notes[0]
    assert engines.sessions[0].closed


def test_auto_skips_an_engine_of_an_older_graph(proven_engine, engines):
    path = proven_engine.folder / "deploy/fp16.onnx"
    path.write_bytes(path.read_bytes() + b"\x00")
    spec, notes = chosen(acknowledged(proven_engine, "deploy/fp16.onnx"))
    assert spec.runtime == "onnxruntime-cpu"
    assert "another deploy/fp16.onnx than the bundle has now" in notes[0]
    assert "deploykit build-trt" in notes[0]
    assert engines.sessions == []


def test_named_engine_runtime_first_runs_the_self_test(engine_bundle, engines):
    spec, notes = chosen(engine_bundle, runtime="tensorrt_rtx")
    engine = engine_of(engine_bundle)
    assert (spec.runtime, spec.graph) == ("tensorrt_rtx", engine)
    assert f"{engine} gives the recorded answers on {RTX_4070}" in notes
    assert sum(engines.sessions[0].batch_sizes) == 8


def test_self_test_runs_once_and_is_no_proof(engine_bundle, engines):
    chosen(engine_bundle, runtime="tensorrt_rtx")
    tested = open_bundle(engine_bundle.folder)
    _, notes = chosen(tested, runtime="tensorrt_rtx")
    (note,) = notes
    how = tested.command("verify", "--runtime", "tensorrt_rtx", "--images", "DIR")
    assert note.endswith(f"nothing shows more; this compares it:\n{how}")
    assert engines.sessions[1].batch_sizes == []
    spec, _ = chosen(tested)
    assert spec.runtime == "onnxruntime-cpu"


def test_named_engine_runtime_proven_has_no_note(proven_engine, engines):
    spec, notes = chosen(proven_engine, runtime="tensorrt_rtx")
    assert (spec.graph, notes) == (engine_of(proven_engine), [])
    assert engines.sessions[0].batch_sizes == []


def test_self_test_runs_again_on_another_gpu(proven_engine, engines):
    other = with_verdicts(proven_engine, of=engine_of(proven_engine), device="NVIDIA H100")
    _, notes = chosen(other, runtime="tensorrt_rtx")
    assert any("gives the recorded answers" in note for note in notes)


def test_self_test_failed_stops_the_engine(engine_bundle, engines):
    engines.distort = np.negative
    with pytest.raises(ParityError, match="does not give the recorded answers") as caught:
        open_best(engine_bundle, runtime="tensorrt_rtx")
    assert caught.value.exit_code == 3
    assert engines.sessions[0].closed
    assert open_bundle(engine_bundle.folder).manifest == engine_bundle.manifest


def test_self_test_interrupted_closes_the_engine(engine_bundle, engines):
    def interrupt(logits):
        raise KeyboardInterrupt

    engines.distort = interrupt
    with pytest.raises(KeyboardInterrupt):
        open_best(engine_bundle, runtime="tensorrt_rtx")
    assert engines.sessions[0].closed


def test_named_runtime_takes_newest_engine_that_fits(engine_bundle, engines):
    bundle = build_engine(engine_bundle, BuildRequest(targets=("sm120",))).bundle
    spec, _ = chosen(bundle, runtime="tensorrt_rtx")
    assert "portable" in spec.graph


@pytest.mark.parametrize("precision", [None, "fp16"])
def test_named_flavour_without_gpu_names_an_alternative(engine_bundle, no_gpu, precision):
    with pytest.raises(DeviceError) as caught:
        open_best(engine_bundle, runtime="tensorrt_rtx", precision=precision)
    message = caught.value.message
    assert message.startswith("tensorrt_rtx cannot run here: There is no NVIDIA driver")
    assert message.endswith(f"Without --runtime, {FP32} on onnxruntime-cpu would run.")
    assert "\n" not in message
    assert caught.value.hint is None
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt_rtx"])
def test_named_flavour_without_gpu_or_engine(bundle, no_gpu, runtime):
    """Or the user would build one first, and in vain."""
    with pytest.raises(DeviceError, match=f"{runtime} cannot run here"):
        open_best(bundle, runtime=runtime)


def test_named_flavour_without_alternative(engine_bundle, no_gpu):
    with pytest.raises(DeviceError) as caught:
        open_best(edited(engine_bundle, verdicts=()), runtime="tensorrt_rtx")
    assert "would run" not in caught.value.message


def test_named_flavour_without_tensorrt(engine_bundle, engines, monkeypatch):
    def open_none(flavour):
        raise DependencyError(f"{flavour} is not installed.", hint="Install it.")

    monkeypatch.setattr("deploykit.engine.flavour.open_flavour", open_none)
    with pytest.raises(DeviceError, match=r"tensorrt_rtx is not installed.*would run") as caught:
        open_best(engine_bundle, runtime="tensorrt_rtx")
    assert caught.value.hint == "Install it."


def test_named_flavour_without_fitting_engine(engine_bundle, engines):
    built = build_engine(engine_bundle, BuildRequest(targets=("sm120",)))
    only = edited(built.bundle, engines=(built.engine,))
    with pytest.raises(DeviceError, match="was built for compute capability sm120") as caught:
        open_best(only, runtime="tensorrt_rtx")
    assert "deploykit build-trt --flavour tensorrt_rtx --target sm89" in caught.value.hint


@pytest.mark.parametrize("suffix", ["", ".json"], ids=["engine", "passport"])
def test_auto_skips_a_damaged_engine_unless_named(proven_engine, engines, suffix):
    path = proven_engine.folder / f"{engine_of(proven_engine)}{suffix}"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BundleError, match=path.name) as caught:
        open_best(proven_engine, runtime="tensorrt_rtx")
    assert "deploykit build-trt" in caught.value.hint
    spec, notes = chosen(proven_engine)
    assert spec.runtime == "onnxruntime-cpu"
    assert path.name in notes[0]
    assert engines.sessions == []


def test_open_best_beside_a_damaged_engine(proven_engine):
    damaged = proven_engine.folder / engine_of(proven_engine)
    other = build_engine(proven_engine, BuildRequest(flavour="tensorrt_rtx", targets=("sm120",)))
    damaged.with_name(f"{damaged.name}.json").unlink()
    with pytest.raises(DeviceError, match="was built for compute capability sm120"):
        open_best(other.bundle, runtime="tensorrt_rtx")
    spec, _ = chosen(other.bundle, runtime="onnxruntime-cpu")
    assert spec.runtime == "onnxruntime-cpu"


def test_named_flavour_without_engine(bundle, rtx_4070):
    with pytest.raises(BundleError, match="has no engine for tensorrt_rtx") as caught:
        open_best(bundle, runtime="tensorrt_rtx")
    assert caught.value.hint == "Build one: deploykit build-trt --flavour tensorrt_rtx"
    with pytest.raises(BundleError, match="has no fp32 engine for tensorrt"):
        open_best(bundle, runtime="tensorrt", precision="fp32")


def test_open_best_lists_runtimes(bundle):
    with pytest.raises(UsageError, match=f"there are {', '.join(RUNTIMES)}") as caught:
        open_best(bundle, runtime="tensort")
    assert caught.value.hint == "Did you mean tensorrt?"


def test_auto_notes_a_missing_gpu_once(engine_bundle, no_gpu):
    bundle = build_engine(engine_bundle, BuildRequest(targets=("sm89",))).bundle
    _, notes = chosen(bundle)
    (line,) = [note for note in notes if "There is no NVIDIA driver" in note]
    assert all(engine in line for engine in bundle.manifest.engines)


def test_named_rehearsal_has_no_unproven_note(engine_bundle, no_gpu):
    spec, notes = chosen(engine_bundle, runtime="rehearsal")
    assert spec.runtime == "rehearsal"
    assert not any("not proven" in note for note in notes)


def test_self_test_runs_once_beside_an_older_proof(proven_engine, engines):
    engine = engine_of(proven_engine)
    older = with_verdicts(proven_engine, of=engine, versions={"tensorrt_rtx": "0.1"})
    _, notes = chosen(older, runtime="tensorrt_rtx")
    assert f"{engine} gives the recorded answers on {RTX_4070}" in notes
    _, notes = chosen(open_bundle(older.folder), runtime="tensorrt_rtx")
    assert not any("gives the recorded answers" in note for note in notes)
