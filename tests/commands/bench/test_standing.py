"""What is proven of an option, and what ``--verify`` makes of what is not."""

import msgspec
import pytest
from bench_runs import FP32, OPENVINO, ORT, benched
from bundle_files import edited
from PIL import Image

from deploykit.bundle.folder import CANONICAL_GRAPH, open_bundle
from deploykit.commands.bench import standing
from deploykit.commands.bench.results import PLAIN, Option
from deploykit.commands.bench.run import accept_recommended
from deploykit.commands.bench.standing import standing_of
from deploykit.errors import InputError, ParityError
from deploykit.proof import verdict as verdicts
from deploykit.runtime._onnxruntime import OnnxRuntimeSession
from deploykit.specs.session import SessionSpec
from deploykit.system.deps import installed_versions
from deploykit.system.progress import Note


def test_proofs_are_those_of_the_manifest(bundle, only):
    only(PLAIN, ORT, OPENVINO)
    before = open_bundle(bundle.folder).manifest
    found, _ = benched(bundle)
    assert open_bundle(bundle.folder).manifest == before
    standings = {each.option: each.standing for each in found.options}
    assert standings == {PLAIN: "proven", ORT: "proven", OPENVINO: "unproven"}
    (proof,) = (each.proof for each in found.options if each.option == ORT)
    assert proof.measurement.flips == 0
    assert found.recommended.option == ORT


def canonical_alone(bundle):
    """The bundle with the proof of its reference, and no other."""
    proofs = tuple(p for p in bundle.manifest.verdicts if p.graph == CANONICAL_GRAPH)
    return edited(bundle, verdicts=proofs)


def test_verify_proves_the_fastest_that_has_no_proof_and_no_other(bundle, only):
    only(ORT, OPENVINO)
    found, events = benched(canonical_alone(bundle), verify=True)
    fastest, slower = found.ranked
    assert (fastest.standing, slower.standing) == ("proven", "unproven")
    assert found.recommended == fastest
    assert found.verified
    assert fastest.proof in open_bundle(bundle.folder).manifest.verdicts
    notes = [event.message for event in events if isinstance(event, Note)]
    assert f"verifying {fastest.option.name}, faster than what is proven" in notes


def test_what_fails_its_verification_is_not_recommended(bundle, only, monkeypatch):
    only(ORT)
    compute = OnnxRuntimeSession._run

    def otherwise(self, images):
        logits = compute(self, images)
        return -logits if self.spec.graph == FP32 else logits

    monkeypatch.setattr(OnnxRuntimeSession, "_run", otherwise)
    found, _ = benched(canonical_alone(bundle), verify=True)
    (failed,) = found.options
    assert failed.standing == "failed"
    assert any("changed their class" in reason for reason in failed.reasons)
    assert found.recommended is None


def test_verify_renews_a_proof_by_another_version_whatever_it_was_on(bundle, only):
    only(ORT)
    (proof,) = (p for p in bundle.manifest.verdicts if p.graph == FP32)
    (canonical,) = (p for p in bundle.manifest.verdicts if p.graph == CANONICAL_GRAPH)
    many = msgspec.structs.replace(proof.measurement, images=9999)
    old = msgspec.structs.replace(proof, measurement=many, versions={"onnxruntime": "1.0"})
    found, _ = benched(edited(bundle, verdicts=(canonical, old)), verify=True)
    assert found.recommended.option == ORT
    again, _ = benched(open_bundle(bundle.folder))
    assert again.recommended.option == ORT


def test_an_upgrade_alone_is_told_from_what_was_never_proven(bundle, only):
    only(ORT)
    versions = {"onnxruntime-gpu": "1.0"}
    proofs = tuple(msgspec.structs.replace(p, versions=versions) for p in bundle.manifest.verdicts)
    found, _ = benched(edited(bundle, verdicts=proofs))
    assert found.options[0].outdated
    assert "by the versions that are installed" in found.why_nothing
    with pytest.raises(ParityError, match="by the versions that are installed") as caught:
        accept_recommended(bundle, found)
    assert "--verify --accept" in caught.value.hint
    flips = [
        msgspec.structs.replace(p, measurement=msgspec.structs.replace(p.measurement, flips=1))
        for p in proofs
    ]
    for others in ((), tuple(flips)):
        found, _ = benched(edited(bundle, verdicts=others))
        assert not found.options[0].outdated
        assert found.why_nothing == "no option that predict can take is proven on this machine"


def test_a_proof_of_int8_on_one_runtime_is_none_of_the_other(bundle):
    (proof,) = (p for p in bundle.manifest.verdicts if p.graph == FP32)
    many = msgspec.structs.replace(proof.measurement, flip_rate_bound=0.02)
    int8 = msgspec.structs.replace(proof, precision="int8", measurement=many)
    quantized = edited(bundle, deploy={"fp32": FP32, "int8": FP32}, verdicts=(int8,))
    standings = {}
    for runtime in ("onnxruntime-cpu", "openvino"):
        spec = SessionSpec(
            runtime=runtime, graph=FP32, precision="int8", device=proof.device,
            input_size=(16, 16), classes=3,
        )  # fmt: skip
        option = Option(file=FP32, runtime=runtime, precision="int8")
        standings[runtime] = standing_of(quantized, option, spec, installed_versions()).standing
    assert standings == {"onnxruntime-cpu": "proven", "openvino": "unproven"}


def test_what_is_compared_is_limited(bundle, only):
    only(ORT)
    found, _ = benched(canonical_alone(bundle), verify=True, max_images=12)
    assert found.options[0].proof.photos.images == 12


def test_a_bundle_that_cannot_be_written_is_proven_all_the_same(bundle, only, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(30, "Read-only file system")

    only(ORT)
    bundle = canonical_alone(bundle)
    monkeypatch.setattr(verdicts, "update_manifest", refuse)
    found, events = benched(bundle, verify=True)
    assert found.recommended.option == ORT
    assert found.recommended.proof.measurement.flips == 0
    assert any("cannot be changed" in e.message for e in events if isinstance(e, Note))


def test_a_verification_that_fails_leaves_what_was_measured(bundle, only, monkeypatch):
    def fail(*arguments, **options):
        raise InputError("the disk is full")

    only(ORT)
    bundle = canonical_alone(bundle)
    monkeypatch.setattr(standing, "verify_bundle", fail)
    found, _ = benched(bundle, verify=True)
    assert (found.options[0].standing, found.options[0].reasons) == (
        "unproven",
        ("the disk is full",),
    )


def test_an_unproven_reference_stops_all_of_it(bundle, only, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("compared in vain")

    only(ORT)
    bundle = edited(bundle, verdicts=())
    monkeypatch.setattr(standing, "verify_bundle", never)
    found, _ = benched(bundle, verify=True)
    assert "is itself not proven against the checkpoint" in found.obstacle
    assert found.options[0].standing == "unproven"
    with pytest.raises(ParityError) as caught:
        accept_recommended(bundle, found)
    assert "--verify" not in caught.value.hint


def test_what_shows_too_little_has_not_failed(bundle, only, tmp_path):
    """Nothing is known of photos that cannot be read; nobody changed a decision."""
    only(ORT)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.new("RGB", (20, 20), (80 * i, 0, 200)).save(photos / f"good{i}.png")
        for k in range(4):
            (photos / f"bad{i}{k}.png").write_bytes(b"")
    found, _ = benched(canonical_alone(bundle), images=photos, verify=True)
    (measured,) = found.options
    assert measured.standing == "unproven"
    assert measured.reasons


def test_verify_compares_nothing_again_that_failed_here(bundle, only, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("compared in vain")

    only(ORT)
    reasons = ("2 of 45 images changed their class",)
    failed = tuple(
        msgspec.structs.replace(each, reasons=reasons) if each.graph == FP32 else each
        for each in bundle.manifest.verdicts
    )
    monkeypatch.setattr(standing, "verify_bundle", never)
    found, _ = benched(edited(bundle, verdicts=failed), verify=True)
    (option,) = found.options
    assert option.standing == "failed"
    assert "2 of 45 images changed their class" in option.reasons[0]


def test_verify_counts_what_passed_where_the_bundle_cannot_be_written(bundle, only, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(30, "Read-only file system")

    only(ORT)
    monkeypatch.setattr(verdicts, "update_manifest", refuse)
    found, _ = benched(canonical_alone(bundle), verify=True)
    assert found.recommended.option == ORT
    assert found.recommended.proof not in open_bundle(bundle.folder).manifest.verdicts
