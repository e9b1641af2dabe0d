"""The status of a candidate, and what ``--verify`` makes of what is unproven."""

import shutil

import msgspec
import pytest
from bench_runs import FP32, OPENVINO, ORT, benched
from bundle_files import edited
from PIL import Image

from deploykit.bundle.folder import CANONICAL_GRAPH, open_bundle
from deploykit.commands.bench import run as bench
from deploykit.commands.bench.results import PLAIN
from deploykit.commands.bench.run import accept_recommended
from deploykit.errors import InputError, ParityError
from deploykit.parity.tolerance import Tolerance
from deploykit.proof.auto import open_best
from deploykit.proof.policy import status
from deploykit.runtime._onnxruntime import OnnxRuntimeSession
from deploykit.system.progress import Note


def test_bench_status_from_manifest(bundle, only):
    only(PLAIN, ORT, OPENVINO)
    before = open_bundle(bundle.folder).manifest
    found, _ = benched(bundle)
    assert open_bundle(bundle.folder).manifest == before
    words = {each.candidate: each.word for each in found.measured}
    assert words == {PLAIN: "proven", ORT: "proven", OPENVINO: "unproven"}
    (proof,) = (each.proof for each in found.measured if each.candidate == ORT)
    assert proof.measurement.flips == 0
    assert found.recommended.candidate == ORT


def canonical_alone(bundle):
    """The bundle with the proof of its reference, and no other."""
    proofs = tuple(p for p in bundle.manifest.verdicts if p.graph == CANONICAL_GRAPH)
    return edited(bundle, verdicts=proofs)


def test_bench_verify_proves_only_the_fastest(bundle, only):
    only(ORT, OPENVINO)
    found, events = benched(canonical_alone(bundle), verify=True)
    fastest, slower = found.measured
    assert (fastest.word, slower.word) == ("proven", "unproven")
    assert found.recommended == fastest
    assert found.verified
    kept = status(open_bundle(bundle.folder), fastest.candidate, fastest.spec.device)
    assert kept.proof.measurement == fastest.proof.measurement
    notes = [event.message for event in events if isinstance(event, Note)]
    assert f"verifying {fastest.name}, faster than what is proven" in notes


def test_bench_verify_of_a_bundle_with_embeddings(embedded_bundle, tmp_path, only):
    """Beside the FP32 graph, the one with embeddings is compared, which bench does not measure."""
    only(ORT)
    folder = shutil.copytree(embedded_bundle.folder, tmp_path / "colours")
    found, _ = benched(canonical_alone(open_bundle(folder)), verify=True)
    assert [(each.candidate, each.word) for each in found.measured] == [(ORT, "proven")]


def test_bench_verify_failed_is_not_recommended(bundle, only, monkeypatch):
    only(ORT)
    compute = OnnxRuntimeSession._run

    def otherwise(self, images):
        logits = compute(self, images)
        return -logits if self.spec.graph == FP32 else logits

    monkeypatch.setattr(OnnxRuntimeSession, "_run", otherwise)
    found, _ = benched(canonical_alone(bundle), verify=True)
    (failed,) = found.measured
    assert failed.word == "failed"
    assert "changed their class" in failed.status.reason
    assert found.recommended is None


def test_bench_verify_renews_proof_of_older_version(bundle, only):
    only(ORT)
    (proof,) = (p for p in bundle.manifest.verdicts if p.graph == FP32)
    (canonical,) = (p for p in bundle.manifest.verdicts if p.graph == CANONICAL_GRAPH)
    many = msgspec.structs.replace(proof.measurement, images=9999)
    old = msgspec.structs.replace(proof, measurement=many, versions={"onnxruntime": "1.0"})
    found, _ = benched(edited(bundle, verdicts=(canonical, old)), verify=True)
    assert found.recommended.candidate == ORT
    again, _ = benched(open_bundle(bundle.folder))
    assert again.recommended.candidate == ORT


def test_bench_status_of_proof_by_another_version(bundle, only):
    only(ORT)
    versions = {"onnxruntime-gpu": "1.0"}
    proofs = tuple(msgspec.structs.replace(p, versions=versions) for p in bundle.manifest.verdicts)
    found, _ = benched(edited(bundle, verdicts=proofs))
    assert "passed with onnxruntime-cpu 1.0, and " in found.measured[0].status.reason
    with pytest.raises(ParityError, match="Nothing can be accepted") as caught:
        accept_recommended(bundle, found)
    assert "--verify --accept" in caught.value.hint


def test_bench_accept_within_budget(bundle, only, monkeypatch):
    """Auto does not take it by itself."""
    # No flip is within the budget of FP32, which is what this bundle has.
    monkeypatch.setattr(
        "deploykit.proof.policy.tolerance_for", lambda *_: Tolerance(max_flip_rate=1)
    )
    only(ORT)
    flips = tuple(
        msgspec.structs.replace(p, measurement=msgspec.structs.replace(p.measurement, flips=1))
        for p in bundle.manifest.verdicts
    )
    bundle = edited(bundle, verdicts=flips)
    with pytest.raises(ParityError):
        open_best(bundle)
    found, _ = benched(bundle)
    assert found.recommended.word == "within budget"
    assert accept_recommended(bundle, found).status == "within budget"
    with open_best(open_bundle(bundle.folder)) as session:
        assert session.spec.runtime == ORT.runtime


def test_bench_verify_max_images(bundle, only):
    only(ORT)
    found, _ = benched(canonical_alone(bundle), verify=True, max_images=12)
    assert found.measured[0].proof.images.count == 12


def test_bench_verify_of_a_read_only_bundle(bundle, only, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(30, "Read-only file system")

    only(ORT)
    bundle = canonical_alone(bundle)
    monkeypatch.setattr("deploykit.bundle.manifest.write_manifest", refuse)
    found, events = benched(bundle, verify=True)
    assert found.recommended.candidate == ORT
    assert found.recommended.proof.measurement.flips == 0
    assert any("cannot be changed" in e.message for e in events if isinstance(e, Note))


def test_bench_verify_that_breaks_keeps_measurements(bundle, only, monkeypatch):
    def fail(*arguments, **options):
        raise InputError("the disk is full")

    only(ORT)
    bundle = canonical_alone(bundle)
    monkeypatch.setattr(bench, "verify_bundle", fail)
    found, _ = benched(bundle, verify=True)
    assert found.measured[0].status[::2] == ("unproven", "the disk is full")


def test_bench_verify_with_unproven_reference(bundle, only, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("compared in vain")

    only(ORT)
    bundle = edited(bundle, verdicts=())
    monkeypatch.setattr(bench, "verify_bundle", never)
    found, _ = benched(bundle, verify=True)
    assert "is itself not proven against the checkpoint" in found.measured[0].status.reason
    assert found.measured[0].word == "unproven"
    with pytest.raises(ParityError) as caught:
        accept_recommended(bundle, found)
    assert "--verify" not in caught.value.hint


def test_bench_verify_on_mostly_unreadable_images(bundle, only, tmp_path):
    """Nothing is known of photos that cannot be read; nobody changed a decision."""
    only(ORT)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.new("RGB", (20, 20), (80 * i, 0, 200)).save(photos / f"good{i}.png")
        for k in range(4):
            (photos / f"bad{i}{k}.png").write_bytes(b"")
    found, _ = benched(canonical_alone(bundle), images=photos, verify=True)
    (measured,) = found.measured
    assert measured.word == "unproven"
    assert "12 of 15 photos cannot be read" in measured.status.reason


def test_bench_verify_skips_what_failed_before(bundle, only, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("compared in vain")

    only(ORT)
    reasons = ("2 of 45 images changed their class",)
    failed = tuple(
        msgspec.structs.replace(each, reasons=reasons) if each.graph == FP32 else each
        for each in bundle.manifest.verdicts
    )
    monkeypatch.setattr(bench, "verify_bundle", never)
    found, _ = benched(edited(bundle, verdicts=failed), verify=True)
    (candidate,) = found.measured
    assert candidate.word == "failed"
    assert "2 of 45 images changed their class" in candidate.status.reason
