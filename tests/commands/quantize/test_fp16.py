"""FP16 graphs of networks with something in their middle that FP16 cannot hold."""

import re
import shutil

import msgspec
import onnx
import pytest
from bundle_files import contents, edited, kept
from fp16_networks import BRIGHT, DIM, make_photos, tune_fp16

from deploykit.bundle.manifest import record_file
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import ImagesError, ParityError
from deploykit.graph import passes
from deploykit.graph.files import load_graph
from deploykit.graph.fp16 import convert_to_fp16, fp32_nodes
from deploykit.graph.instruments import model_bytes
from deploykit.graph.rehearsal import rehearsal_of
from deploykit.proof import extremes
from deploykit.proof.images import split_samples
from deploykit.proof.reference import ReferenceRequest, open_reference
from deploykit.proof.verdict import judge_sessions
from deploykit.runtime.opener import REHEARSAL, open_graph
from deploykit.system.progress import silent

FP16 = "deploy/fp16.onnx"
#: The kept nodes of each network with something planted: operators, modules, and why they stay.
PLANTED = {
    "Overflow": (
        [("Conv", "middle.1"), ("Conv", "middle.2")],
        [r"its output reaches [\d.]+e\+04; FP16 ends at 65504", r"its input .* reaches"],
    ),
    "Underflow": (
        [("Conv", "middle.1"), ("Conv", "middle.2")],
        ["rounding its output to FP16 loses 100.0 %", "rounding its input .* loses 100.0 %"],
    ),
    "SensitiveSum": (
        [("Add", "middle.1"), ("Sub", "middle.1")],
        ["rounding .* to FP16 moves a logit by", "rounding .* to FP16 moves a logit by"],
    ),
}
planted = pytest.mark.parametrize("name", PLANTED)


def rehearsed(bundle, keep, photos):
    """The verdict on the conversion that keeps some nodes, on photos."""
    manifest = bundle.manifest
    graph = passes.apply(load_graph(bundle.folder / "deploy/fp32.onnx"), [convert_to_fp16(keep)])
    reference = open_reference(bundle, ReferenceRequest(), silent)
    with (
        reference.session,
        open_graph(
            model_bytes(rehearsal_of(graph)),
            name=FP16,
            runtime=REHEARSAL,
            precision="fp16",
            preprocessing=manifest.preprocessing,
            labels=manifest.labels,
        ) as candidate,
    ):
        (verdict,) = judge_sessions(
            reference.session,
            [candidate],
            photos,
            manifest.labels,
            silent,
            count=photos.count,
            kind=photos.kind,
        )
    return verdict


@planted
def test_fp16_search_keeps_planted_nodes_in_fp32(toy, name):
    tuning = tune_fp16(toy(name))
    nodes, reasons = PLANTED[name]
    assert [(node.operator, node.module) for node in tuning.kept] == nodes
    for node, reason in zip(tuning.kept, reasons, strict=True):
        assert re.search(reason, node.reason)
    assert tuning.minimal
    assert tuning.verdict.passed
    assert tuning.verdict.measurement.max_relative_error < 1e-3


@planted
def test_fp16_graph_computes_kept_nodes_in_fp32(toy, name):
    tuning = tune_fp16(toy(name))
    graph = load_graph(tuning.bundle.folder / FP16)
    assert [node.name for node in fp32_nodes(graph)] == [kept.node for kept in tuning.kept]
    assert any(value.dtype.name == "FLOAT16" for node in graph.graph for value in node.outputs)


@planted
def test_fp16_blanket_conversion_fails(toy, name):
    tuning = tune_fp16(toy(name))
    kept = [node.node for node in tuning.kept]
    _, proof = split_samples(tuning.bundle, None, silent, search=32, proof=32)
    found = msgspec.structs.replace(tuning.verdict.measurement, accuracy=None)  # not asked here
    assert rehearsed(tuning.bundle, kept, proof).measurement == found
    _, proof = split_samples(tuning.bundle, None, silent, search=32, proof=32)
    blanket = rehearsed(tuning.bundle, [], proof)
    assert not blanket.passed
    assert blanket.candidate == tuning.verdict.candidate


@planted
def test_fp16_search_needs_each_kept_node(toy, name):
    tuning = tune_fp16(toy(name))
    kept = {node.node for node in tuning.kept}
    for node in kept:
        search, _ = split_samples(tuning.bundle, None, silent, search=32, proof=32)
        assert not rehearsed(tuning.bundle, kept - {node}, search).passed


@pytest.mark.parametrize("name", ["Colours", "Net"])
def test_fp16_search_of_a_healthy_network(toy, bundle, name):
    tuning = tune_fp16(bundle if name == "Net" else toy(name))
    assert (tuning.kept, tuning.trials, tuning.minimal) == ((), 1, True)
    assert tuning.verdict.passed


def test_fp16_search_updates_the_manifest(toy):
    bundle = toy("Overflow")
    before = bundle.manifest
    tuning = tune_fp16(bundle)
    manifest = tuning.bundle.manifest
    assert manifest.deploy == {"fp32": "deploy/fp32.onnx", "fp16": FP16}
    assert manifest.kept_in(FP16) == tuning.kept
    assert manifest.files == {**before.files, FP16: record_file(bundle.folder / FP16)}
    assert manifest.verdicts == (*before.verdicts, tuning.proof)
    proof = tuning.proof
    assert (proof.graph, proof.graph_sha256) == (FP16, manifest.files[FP16].sha256)
    assert (proof.runtime, proof.device, proof.kind) == ("rehearsal", "CPU", "rehearsed")
    assert (proof.precision, proof.measurement) == ("fp16", tuning.verdict.measurement)
    assert {path.name for path in (bundle.folder / "deploy").iterdir()} == {
        "fp16.onnx",
        "fp32.onnx",
    }


def test_fp16_graph_keeps_metadata_and_signature(bundle):
    tuned = tune_fp16(bundle).bundle
    fp32, fp16 = (onnx.load(tuned.folder / name) for name in ("deploy/fp32.onnx", FP16))
    told = {prop.key: prop.value for prop in fp16.metadata_props}
    assert told["deploykit.labels"] == tuned.manifest.labels.metadata["deploykit.labels"]
    assert told["deploykit.preprocessing"] == tuned.manifest.preprocessing.to_metadata()
    assert fp16.graph.input == fp32.graph.input
    assert fp16.graph.output == fp32.graph.output
    assert (tuned.folder / FP16).stat().st_size < (tuned.folder / "deploy/fp32.onnx").stat().st_size


def test_fp16_proof_is_on_other_images_than_search(bundle):
    searched, proven = split_samples(bundle, None, silent, search=32, proof=32)
    for photos in (searched, proven):
        list(photos)
    tuning = tune_fp16(bundle)
    assert tuning.proof.images == proven.drawn()
    assert tuning.proof.images.sha256 != searched.drawn().sha256
    assert (tuning.searched, tuning.proof.images.count) == (22, 23)


def test_fp16_search_without_images_uses_golden_images(bundle):
    tuning = tune_fp16(edited(bundle, images="/gone"))
    assert tuning.searched == 4
    assert (tuning.proof.images.kind, tuning.proof.images.count) == ("golden", 4)


def test_fp16_search_skips_unreadable_images(bundle, tmp_path, photo_folder):
    shutil.copytree(photo_folder, tmp_path / "photos")
    search, proof = split_samples(bundle, tmp_path / "photos", silent, search=32, proof=32)
    names = [[name for names, _ in photos for name in names] for photos in (search, proof)]
    # Eight in a row are a whole batch of the reader's.
    for name in (*names[0][8:16], names[1][0]):
        (tmp_path / "photos" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    tuning = tune_fp16(bundle, images=tmp_path / "photos")
    assert (tuning.searched, tuning.proof.images.count) == (14, 22)


@pytest.mark.parametrize("sample", [0, 1], ids=["search", "proof"])
def test_fp16_search_without_readable_image_is_refused(bundle, tmp_path, photo_folder, sample):
    shutil.copytree(photo_folder, tmp_path / "photos")
    before = contents(bundle)
    for names, _ in split_samples(bundle, tmp_path / "photos", silent, search=32, proof=32)[sample]:
        for name in names:
            (tmp_path / "photos" / name).write_bytes(b"")
    with pytest.raises(ImagesError, match=r"Not one image .* 2[23] were"):
        tune_fp16(bundle, images=tmp_path / "photos")
    assert contents(bundle) == before


@pytest.mark.parametrize("sample", [0, 1], ids=["search", "proof"])
def test_fp16_search_on_mostly_unreadable_images_is_refused(bundle, tmp_path, photo_folder, sample):
    shutil.copytree(photo_folder, tmp_path / "photos")
    before = contents(bundle)
    split = split_samples(bundle, tmp_path / "photos", silent, search=32, proof=32)
    for name in [name for names, _ in split[sample] for name in names][:12]:
        (tmp_path / "photos" / name).write_bytes(b"")
    with pytest.raises(ParityError, match=r"12 of 2[23] photos cannot be read: what is left"):
        tune_fp16(bundle, images=tmp_path / "photos")
    assert contents(bundle) == before


@pytest.mark.parametrize("tuned", [False, True], ids=["new", "retuned"])
def test_fp16_search_failed_changes_nothing(toy, tuned):
    bundle = toy("SensitiveSum")
    if tuned:
        bundle = tune_fp16(bundle).bundle
    before = contents(bundle)
    with pytest.raises(ParityError, match="In 0 s the search tried 1 graph") as caught:
        tune_fp16(bundle, search_seconds=0)
    assert "images changed their class" in caught.value.message
    assert "--search-seconds" in caught.value.hint
    assert contents(bundle) == before


def test_fp16_search_range_scan_takes_no_trials(toy):
    tuning = tune_fp16(toy("Underflow"), search_seconds=0)
    assert [kept.module for kept in tuning.kept] == ["middle.1", "middle.2"]
    assert not tuning.minimal


def test_fp16_search_again_replaces_graph_and_proof(toy, tmp_path, monkeypatch):
    first = tune_fp16(toy("Overflow"))
    dim = make_photos(tmp_path / "dim", DIM)
    monkeypatch.setattr(extremes, "extreme_images", lambda size: {})
    second = tune_fp16(first.bundle, images=dim)
    manifest = second.bundle.manifest
    assert second.kept == manifest.kept_in(FP16) == ()
    assert manifest.files[FP16] != first.bundle.manifest.files[FP16]
    assert [proof for proof in manifest.verdicts if proof.graph == FP16] == [second.proof]
    assert second.proof.images.source == str(dim)


def test_fp16_of_what_overflows_on_extreme_images_only(toy, tmp_path, monkeypatch):
    """Dim photos stay within FP16, a white image does not."""
    bundle, dim = toy("Overflow"), make_photos(tmp_path / "dim", DIM)
    tuning = tune_fp16(bundle, images=dim)
    assert [node.module for node in tuning.kept] == ["middle.1", "middle.2"]
    assert all("is beyond FP16 on a" in node.reason for node in tuning.kept)
    request = VerifyRequest(images=dim, precision="fp16")
    assert verify_bundle(tuning.bundle, request).passed
    with monkeypatch.context() as without:
        without.setattr(extremes, "extreme_images", lambda size: {})
        blind = tune_fp16(tuning.bundle, images=dim)
    assert blind.kept == ()
    (verdict,) = verify_bundle(blind.bundle, request).verdicts
    assert verdict.failed
    assert verdict.exceeded == ()
    assert re.match("NaN or infinity on .*white", verdict.reasons[0])


def test_fp16_search_on_fewer_images_replaces_the_proof(bundle, tmp_path):
    first = tune_fp16(bundle)
    few = make_photos(tmp_path / "few", BRIGHT, count=2)
    second = tune_fp16(first.bundle, images=few)
    manifest = second.bundle.manifest
    assert manifest.files[FP16] == first.bundle.manifest.files[FP16]
    assert kept(manifest, FP16, "rehearsal", "CPU").images.source == str(few)


def test_fp16_search_with_unproven_reference(bundle):
    unproven = edited(bundle, verdicts=())
    before = contents(unproven)
    with pytest.raises(ParityError, match=r"model\.onnx, the reference, is itself not proven"):
        tune_fp16(unproven)
    assert contents(unproven) == before


@pytest.mark.parametrize("stage", ["asking the reference", "scanning ranges", "comparing"])
def test_fp16_search_interrupted_changes_nothing(bundle, stage):
    before = contents(bundle)

    def interrupt(event):
        if getattr(event, "stage", "") == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_fp16(bundle, progress=interrupt)
    assert contents(bundle) == before
