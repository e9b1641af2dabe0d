"""OpenVINO among a bundle's candidates: verified, proven, chosen, and left out."""

import sys

import msgspec
import pytest
from bundle_files import edited
from openvino_cpu import needs_bf16

from deploykit.bundle.folder import open_bundle
from deploykit.bundle.golden import Golden
from deploykit.commands.predict.run import PredictionRun, PredictRequest
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import DependencyError, ParityError, UsageError
from deploykit.inference.candidates import Candidate, named_candidates
from deploykit.proof import self_test
from deploykit.proof.auto import open_best
from deploykit.proof.policy import status
from deploykit.system.progress import Note

FP32 = "deploy/fp32.onnx"
OPENVINO = Candidate(FP32, "openvino", "fp32")
BF16 = Candidate(FP32, "openvino", "bf16")
ANOTHER_CPU = "CPU (some_bf16)"


def verified(bundle, **options):
    """What was compared, the bundle with the proofs, and what was said meanwhile."""
    events = []
    result = verify_bundle(bundle, VerifyRequest(**options), events.append)
    assert result.passed
    kinds = [(each.candidate.runtime, each.candidate.precision) for each in result.verdicts]
    return kinds, open_bundle(bundle.folder), notes_of(events)


def chosen(bundle, **options):
    """What opens, and what is said meanwhile."""
    events = []
    with open_best(bundle, progress=events.append, **options) as session:
        return session.spec, notes_of(events)


def notes_of(events):
    return [event.message for event in events if isinstance(event, Note)]


def proven_elsewhere(bundle):
    """The bundle whose BF16 proof is of a CPU with other instruction sets."""
    return edited(
        bundle,
        verdicts=tuple(
            msgspec.structs.replace(proof, device=ANOTHER_CPU)
            if proof.precision == "bf16"
            else proof
            for proof in bundle.manifest.verdicts
        ),
    )


@pytest.fixture
def proven_bf16(bundle):
    _, proven, _ = verified(bundle, precision="bf16")
    return proven


def test_named_candidates_of_openvino(bundle):
    assert named_candidates(bundle, "openvino", None) == [OPENVINO]
    assert named_candidates(bundle, None, "bf16") == [BF16]
    assert str(OPENVINO) == "deploy/fp32.onnx on openvino"
    assert str(BF16) == "deploy/fp32.onnx in bf16 on openvino"


def test_verify_without_options_compares_openvino_in_fp32(bundle):
    kinds, proven, _ = verified(bundle)
    assert ("openvino", "fp32") in kinds
    assert all(precision != "bf16" for _, precision in kinds)
    proof = status(proven, OPENVINO).proof
    assert (proof.runtime, proof.device, proof.kind) == ("openvino", "CPU", "executed")
    assert "openvino" in proof.versions


@pytest.mark.parametrize("options", [{}, {"runtime": "openvino"}])
def test_verify_compares_bf16_only_if_named(bundle, options):
    """It is no graph's own precision: a bundle is not at fault when its network needs more bits."""
    kinds, _, _ = verified(bundle, **options)
    assert ("openvino", "bf16") not in kinds


@needs_bf16
def test_bf16_proof_names_instruction_set(proven_bf16):
    proof = status(proven_bf16, BF16).proof
    assert (proof.graph, proof.precision) == (FP32, "bf16")
    assert proof.device not in ("CPU", ANOTHER_CPU)
    assert proof.tolerance.max_probability_change == 0.05
    assert status(proven_bf16, OPENVINO).proof is None


def test_auto_takes_proven_openvino(bundle):
    spec, _ = chosen(bundle)
    assert spec.runtime == "onnxruntime-cpu"
    _, proven, _ = verified(bundle, runtime="openvino")
    spec, notes = chosen(proven)
    assert (spec.runtime, spec.precision, notes) == ("openvino", "fp32", [])


@needs_bf16
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_auto_takes_proven_bf16(proven_bf16, precision):
    spec, notes = chosen(proven_bf16, precision=precision)
    assert (spec.runtime, spec.precision, notes) == ("openvino", "bf16", [])


def test_auto_refuses_bf16_that_is_not_proven(bundle):
    with pytest.raises(ParityError, match="No BF16 graph of bundle colours is proven") as caught:
        open_best(bundle, precision="bf16")
    assert "--precision bf16" in caught.value.hint


@needs_bf16
def test_named_bf16_on_openvino_runs_unproven(bundle):
    spec, (note,) = chosen(bundle, runtime="openvino", precision="bf16")
    assert spec.precision == "bf16"
    how = bundle.command(
        "verify", "--runtime", "openvino", "--precision", "bf16", "--images", "DIR"
    )
    assert note.endswith(f"it is not proven; this compares it:\n{how}")


@needs_bf16
def test_named_bf16_of_another_cpu_runs_self_test(proven_bf16):
    bundle = proven_elsewhere(proven_bf16)
    spec, notes = chosen(bundle, runtime="openvino", precision="bf16")
    assert f"{FP32} gives the recorded answers on {spec.device}" in notes
    _, notes = chosen(open_bundle(bundle.folder), runtime="openvino", precision="bf16")
    assert not any("recorded answers" in note for note in notes)


@needs_bf16
def test_named_bf16_that_fails_its_self_test(proven_bf16, monkeypatch):
    read = self_test.read_golden

    def other_answers(bundle):
        golden = read(bundle)
        return Golden(golden.images, -golden.logits)

    monkeypatch.setattr(self_test, "read_golden", other_answers)
    with pytest.raises(ParityError, match="does not give the recorded answers") as caught:
        open_best(proven_elsewhere(proven_bf16), runtime="openvino", precision="bf16")
    assert "--precision fp32" in caught.value.hint


def test_named_openvino_takes_fp32(bundle):
    spec, _ = chosen(bundle, runtime="openvino")
    assert (spec.runtime, spec.precision) == ("openvino", "fp32")


def test_named_bf16_needs_openvino(bundle):
    with pytest.raises(UsageError, match="onnxruntime-cpu does not compute in bf16"):
        open_best(bundle, runtime="onnxruntime-cpu", precision="bf16")


def test_verify_without_the_extra(bundle, no_openvino):
    kinds, _, notes = verified(bundle)
    assert all(runtime != "openvino" for runtime, _ in kinds)
    assert not any("openvino" in note for note in notes)


@pytest.mark.parametrize("options", [{"runtime": "openvino"}, {"precision": "bf16"}])
def test_verify_named_openvino_not_installed(bundle, no_openvino, options):
    with pytest.raises(DependencyError, match="openvino is not installed") as caught:
        verify_bundle(bundle, VerifyRequest(**options))
    assert 'pip install "deploykit[openvino]"' in caught.value.hint


def test_auto_notes_proven_openvino_not_installed(bundle, monkeypatch):
    _, proven, _ = verified(bundle, runtime="openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    spec, (note,) = chosen(proven)
    assert spec.runtime == "onnxruntime-cpu"
    assert note.startswith("not taken: deploy/fp32.onnx on openvino: openvino is not installed")


def test_predict_on_openvino_equals_onnx_runtime(bundle, photo_folder):
    rows = {}
    for runtime in ("onnxruntime-cpu", "openvino"):
        request = PredictRequest(photo_folder, runtime=runtime, batch_size=3)
        with PredictionRun(bundle, request) as run:
            rows[runtime] = list(run)
            assert run.spec.runtime == runtime
    assert rows["openvino"]
    for found, expected in zip(rows["openvino"], rows["onnxruntime-cpu"], strict=True):
        assert (found.path, found.label) == (expected.path, expected.label)
        assert found.probability == pytest.approx(expected.probability, abs=1e-4)
