"""Engines that fit the GPU at hand, on which running them is pretended."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from bundle_files import contents, edited, kept
from fp16_networks import DIM, make_photos

from deploykit.bundle.folder import find_bundle
from deploykit.bundle.manifest import sha256_of
from deploykit.commands.build.run import BuildRequest, build_engine
from deploykit.engine.audit import Audit
from deploykit.engine.passport import read_passport
from deploykit.errors import BundleError, ParityError, UsageError
from deploykit.parity.budget import Budget

IN_FP16 = Audit(Counter(fp16=3, fp32=1))
ADA = BuildRequest(flavour="tensorrt_rtx", targets=("sm89",))


def notes_of(events):
    return [event.message for event in events if hasattr(event, "message")]


@pytest.fixture
def audited(monkeypatch):
    """What the engine's inspector tells, which needs a GPU."""

    def tell(audit):
        monkeypatch.setattr("deploykit.commands.build.run.audit_engine", lambda *a, **k: audit)

    tell(IN_FP16)
    return tell


def test_build_engine_audits_executes_and_proves(engine_bundle, engines, audited):
    events = []
    result = build_engine(engine_bundle, ADA, events.append)
    assert result.passed
    assert result.audit == IN_FP16
    (verdict,) = result.verification.verdicts
    assert (verdict.kind, verdict.candidate.graph) == ("executed", result.engine)
    proof = kept(result.bundle, result.engine, "tensorrt_rtx", engines.sessions[0].spec.device)
    assert (proof.kind, proof.measurement) == ("executed", verdict.measurement)
    assert engines.plans == [(result.bundle.folder / result.engine).read_bytes()]
    assert result.passport.proof.kind == "rehearsed"  # what it rested on when it was built


def test_build_engine_verifies_on_given_images(engine_bundle, engines, audited, tmp_path):
    """On those of them that a search would not use."""
    photos = make_photos(tmp_path / "few", DIM, count=3)
    request = BuildRequest(flavour="tensorrt_rtx", images=photos)
    result = build_engine(engine_bundle, request)
    assert result.verification.images.source == str(photos)
    assert result.verification.images.count == 5


def test_build_engine_without_labels_is_refused_before(engine_bundle, engines, audited):
    """The graph is there, and only the engine's comparison needs the classes."""
    bundle = edited(engine_bundle, images=None)
    before, events = contents(bundle), []
    request = replace(ADA, budget=Budget(max_accuracy_drop=1))
    with pytest.raises(UsageError, match=r"of golden\.npz no class is known"):
        build_engine(bundle, request, events.append)
    assert contents(bundle) == before
    assert not any("building" in getattr(event, "stage", "") for event in events)


def test_build_engine_failed_is_kept_and_diagnosed(engine_bundle, engines, audited):
    engines.distort = np.negative
    before = contents(engine_bundle)
    with pytest.raises(ParityError, match="does not give the checkpoint's answers") as caught:
        build_engine(engine_bundle, ADA)
    lines = caught.value.message.splitlines()
    assert "images changed their class" in lines[1]
    # The graph is right: the engine alone is wrong.
    assert lines[-2].startswith("Diagnosis of deploy/fp16.onnx against fp32.onnx: no node adds too")
    folder = engine_bundle.folder.with_name(".failed") / engine_bundle.name
    assert lines[-1] == f"What failed is kept in {folder}, which is no bundle."
    assert "--precision fp32" in caught.value.hint
    (engine,) = (folder / "engines").glob("*.engine")
    passport = read_passport(folder / "engines" / f"{engine.name}.json")
    assert passport.engine_sha256 == sha256_of(engine)
    for graph in ("fp16", "fp32"):
        assert (folder / f"deploy/{graph}.onnx").read_bytes() == before[f"deploy/{graph}.onnx"]
    after = contents(engine_bundle)
    assert {*after} == {*before}
    assert after["bundle.json"] == before["bundle.json"]
    for wanted in (None, str(folder)):
        with pytest.raises(BundleError):
            find_bundle(wanted, folder.parent)


def test_build_engine_without_fp16_layer_is_kept_aside(engine_bundle, engines, audited):
    audited(Audit(Counter(fp32=4)))
    before = contents(engine_bundle)
    with pytest.raises(ParityError, match="none of the engine's computing layers is in fp16"):
        build_engine(engine_bundle, ADA)
    folder = engine_bundle.folder.with_name(".failed") / engine_bundle.name
    assert len([*(folder / "engines").iterdir()]) == 2
    assert contents(engine_bundle) == before
    assert engines.sessions == []


def test_build_engine_of_unknown_layer_precisions(engine_bundle, engines, audited):
    audited(Audit(Counter(unknown=4)))
    events = []
    result = build_engine(engine_bundle, ADA, events.append)
    assert result.passed
    assert "the engine does not tell in which precision its layers compute" in notes_of(events)


def test_build_engine_for_another_gpu_runs_nothing(engine_bundle, engines):
    result = build_engine(engine_bundle, BuildRequest(targets=("sm120",), flavour="tensorrt_rtx"))
    assert (result.audit, result.verification) == (None, None)
    assert engines.sessions == []
