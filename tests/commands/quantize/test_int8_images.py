"""The photos of an INT8 graph: those that it was made with, and those that prove it."""

import shutil
import sys

import msgspec
import numpy as np
import pytest
from bundle_files import contents, edited
from fp16_networks import BRIGHT, DIM, make_photos, tune_fp16

from deploykit.bundle.folder import INT8_TENSORRT_GRAPH, deploy_graph, open_bundle
from deploykit.commands.quantize import observe
from deploykit.commands.quantize.request import QuantizeRequest
from deploykit.commands.quantize.run import quantization_images, quantize_bundle
from deploykit.commands.quantize.text import quantization_text
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import GraphError, ImagesError, ParityError
from deploykit.inference.candidates import Candidate
from deploykit.proof.answered import AnsweredImages
from deploykit.proof.auto import open_best
from deploykit.proof.policy import status
from deploykit.runtime.opener import CPU, OPENVINO, REHEARSAL
from deploykit.system.progress import Note, Step, silent

INT8 = deploy_graph("int8")
ON_ORT = Candidate(INT8, CPU, "int8")


def said(events):
    return [event.message for event in events if isinstance(event, Note)]


def copied(source, target):
    """Every photo of a folder a second time under another name; gives the folder."""
    shutil.copytree(source, target)
    for path in sorted(target.rglob("*.png")):
        shutil.copy(path, f"{path}.copy.png")
    return target


def enough_photos(folder, brightness=BRIGHT):
    """60 photos: 30 to search on, 30 to prove on."""
    return make_photos(folder, brightness, count=20)


def verified(bundle, folder):
    request = VerifyRequest(runtime=CPU, precision="int8", images=folder)
    (verdict,) = verify_bundle(open_bundle(bundle.folder), request).verdicts
    return verdict, open_bundle(bundle.folder)


def int8_proof(bundle, runtime=CPU):
    (proof,) = (p for p in bundle.manifest.verdicts if (p.graph, p.runtime) == (INT8, runtime))
    return proof


@pytest.fixture
def made(toy, tmp_path, monkeypatch):
    """``Colours`` in INT8 for ONNX Runtime, calibrated on 30 photos and proven on 30 others."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    folder = enough_photos(tmp_path / "made from")
    request = QuantizeRequest(images=folder, graphs=(INT8,))
    return quantize_bundle(toy("Colours"), request).bundle


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_quantize_proof_has_no_duplicate_of_search(toy, tmp_path, precision):
    folder = copied(make_photos(tmp_path / "photos", BRIGHT), tmp_path / "twice")
    bundle, notes = toy("Colours"), []
    if precision == "fp16":
        made = tune_fp16(bundle, images=folder, progress=notes.append)
        graph, proof, split = "deploy/fp16.onnx", made.proof, "fp16"
    else:
        request = QuantizeRequest(images=folder, graphs=(INT8,))
        (graph_made,) = quantize_bundle(bundle, request, notes.append).graphs
        graph, proof, split = INT8, graph_made.proof, "int8"
    search, others = quantization_images(bundle, split, folder, silent)
    list(search)
    list(others)
    shared = search.digests & others.digests
    assert shared  # as long as only names are looked at
    searched = frozenset(open_bundle(bundle.folder).manifest.searches[graph].images)
    assert searched == search.digests
    assert proof.images.count == len(others.digests - search.digests)
    assert proof.images.calibration > 0
    assert any("calibration image" in note for note in said(notes))


def test_quantize_with_no_image_left_is_refused(toy, tmp_path):
    photo = make_photos(tmp_path / "photos", BRIGHT, count=1) / "red" / "00.png"
    (tmp_path / "same").mkdir()
    for i in range(6):
        shutil.copy(photo, tmp_path / "same" / f"{i}.png")
    bundle = toy("Colours")
    before = contents(bundle)
    with pytest.raises(
        ImagesError, match="3 images had a part in making what is compared"
    ) as caught:
        quantize_bundle(bundle, QuantizeRequest(images=tmp_path / "same"))
    assert "Nothing is left" in caught.value.message
    assert "other photos" in caught.value.hint
    assert contents(bundle) == before


def test_verify_on_calibration_images_alone_is_refused(made, tmp_path):
    """As where the proof failed there, and the user verifies on a part of the folder."""
    search, _ = quantization_images(made, "int8", tmp_path / "made from", silent)
    part = tmp_path / "part"
    for name in [name for names, _ in search for name in names]:
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "made from" / name, part / name)
    unproven = edited(made, verdicts=tuple(p for p in made.manifest.verdicts if p.graph != INT8))
    with pytest.raises(ImagesError, match="30 images had a part in making what is compared"):
        verified(unproven, part)
    with open_best(open_bundle(made.folder)) as session:
        assert session.spec.precision == "fp32"


def test_verify_int8_skips_calibration_images(made, tmp_path):
    old = int8_proof(made)
    verdict, bundle = verified(made, tmp_path / "made from")
    proof = int8_proof(bundle)
    assert verdict.passed
    assert (proof.images.count, proof.images.calibration) == (30, 30)
    assert proof.key == old.key
    assert status(bundle, ON_ORT).word == "proven"


@pytest.fixture
def two(tmp_path):
    """A folder of two photos: one to search on, one to prove on."""
    folder = make_photos(tmp_path / "two", DIM, count=1)
    (folder / "red" / "00.png").unlink()
    return folder


def test_quantize_on_two_images_is_unproven(toy, two):
    notes = []
    request = QuantizeRequest(images=two, runtime=CPU)
    text = quantization_text(quantize_bundle(toy("Colours"), request, notes.append))
    assert any(
        note.startswith("UNPROVEN: what is made will be compared on 1 photo")
        for note in said(notes)
    )
    assert "calibrated and searched on 1 photo" in text
    assert f"UNPROVEN  {INT8} on {CPU}: its proof is on 1 photo; below FP32 29 photos" in text
    assert f"UNPROVEN  {INT8_TENSORRT_GRAPH} on rehearsal: its proof is on 1 photo" in text


def test_quantize_on_images_of_one_class_says_so(toy, tmp_path):
    folder = enough_photos(tmp_path / "photos") / "red"
    text = quantization_text(
        quantize_bundle(toy("Colours"), QuantizeRequest(images=folder, runtime=CPU))
    )
    assert "The network gives all 10 photos the same class" in text


def test_quantize_names_the_image_of_a_value_that_is_not_finite(toy, tmp_path, monkeypatch):
    third = []

    def observed(graph, tensors, batches, *others):
        third.extend([name for names, _ in batches for name in names][2:3])
        for number, values in enumerate(observe.observed(graph, tensors, batches, *others)):
            yield {name: each * (np.nan if number == 2 else 1) for name, each in values.items()}

    monkeypatch.setattr("deploykit.commands.quantize.int8.observed", observed)
    bundle, folder = toy("Colours"), enough_photos(tmp_path / "photos")
    with pytest.raises(ParityError) as caught:
        quantize_bundle(bundle, QuantizeRequest(images=folder, runtime=CPU))
    assert (folder / third[0]).is_file()
    assert caught.value.message.endswith(f" is NaN or infinite on {third[0]}.")
    assert bundle.command("verify", "--layers", "--images", "FILE") in caught.value.hint


def test_quantize_on_two_images_keeps_a_proven_graph(made, two):
    before, events = contents(made), []
    with pytest.raises(ParityError, match=f"{INT8} stays as it is: it is proven") as caught:
        quantize_bundle(made, QuantizeRequest(images=two), events.append)
    assert "compared on 1 photo; below FP32 a proof takes 29 photos" in caught.value.message
    assert "58 different photos or more" in caught.value.hint
    assert not any(isinstance(e, Step) and e.stage == "calibrating" for e in events)
    assert contents(made) == before


def test_quantize_on_two_images_replaces_a_damaged_graph(made, two):
    (made.folder / INT8).write_bytes(b"damaged")
    again = quantize_bundle(made, QuantizeRequest(images=two, graphs=(INT8,)))
    assert again.bundle.checked(INT8)


def test_quantize_undecidable_keeps_a_proven_graph(made, tmp_path, monkeypatch):
    before = contents(made)
    judge = AnsweredImages.judge

    def undecided(photos, candidate, *arguments):
        verdict = judge(photos, candidate, *arguments)
        few = msgspec.structs.replace(verdict.measurement, undecidable=4, flip_rate_bound=0.11)
        return msgspec.structs.replace(verdict, measurement=few)

    monkeypatch.setattr(AnsweredImages, "judge", undecided)
    request = QuantizeRequest(images=enough_photos(tmp_path / "dim", DIM), graphs=(INT8,))
    with pytest.raises(
        ParityError, match="stays as it is: it is proven, and what would replace it is not"
    ):
        quantize_bundle(made, request)
    assert contents(made) == before


def test_quantize_keeps_a_graph_proven_meanwhile(made, tmp_path, monkeypatch):
    judge, proven = AnsweredImages.judge, made.manifest.verdicts
    unproven = edited(made, verdicts=tuple(each for each in proven if each.graph != INT8))

    def undecided(photos, candidate, *arguments):
        edited(made, verdicts=proven)  # as another process does
        verdict = judge(photos, candidate, *arguments)
        few = msgspec.structs.replace(verdict.measurement, undecidable=4, flip_rate_bound=0.11)
        return msgspec.structs.replace(verdict, measurement=few)

    monkeypatch.setattr(AnsweredImages, "judge", undecided)
    request = QuantizeRequest(images=enough_photos(tmp_path / "dim", DIM), graphs=(INT8,))
    with pytest.raises(ParityError, match="stays as it is: it is proven"):
        quantize_bundle(unproven, request)
    assert open_bundle(made.folder).manifest.verdicts == proven


def flipped(proof, flips=1):
    measurement = msgspec.structs.replace(proof.measurement, flips=flips)
    return msgspec.structs.replace(proof, measurement=measurement)


def test_auto_names_a_flip_of_int8(made):
    proof = int8_proof(made)
    enough = msgspec.structs.replace(proof.measurement, images=128, flip_rate_bound=0.02)
    proof = flipped(msgspec.structs.replace(proof, measurement=enough))
    bundle = edited(made, verdicts=(*made.manifest.verdicts[:-1], proof))
    notes = []
    with open_best(bundle, progress=notes.append) as session:
        assert session.spec.precision == "fp32"
    assert said(notes) == [
        f"not taken: {INT8} on {CPU}: it changes 1 decision of 128, which its tolerance allows; "
        f"--runtime {CPU} --precision int8 takes it"
    ]


def test_quantization_text_of_a_pass_with_flip(toy, monkeypatch):
    judge = AnsweredImages.judge

    def with_a_flip(photos, candidate, *arguments):
        verdict = judge(photos, candidate, *arguments)
        found = msgspec.structs.replace(
            verdict.measurement, images=256, flips=1, flip_rate_bound=0.02
        )
        return msgspec.structs.replace(verdict, measurement=found)

    monkeypatch.setattr(AnsweredImages, "judge", with_a_flip)
    text = quantization_text(quantize_bundle(toy("Colours"), QuantizeRequest(runtime=CPU)))
    assert f"WITHIN BUDGET  {INT8} on {CPU}: it changes 1 decision of 256" in text
    assert f"WITHIN BUDGET  {INT8_TENSORRT_GRAPH} on rehearsal: it changes 1 decision" in text


def test_quantize_interrupted_keeps_the_first_graph(toy):
    bundle, notes = toy("Colours"), []

    def interrupt(event):
        notes.append(event)
        if any(note.startswith(f"{INT8} passed: ") for note in said([event])):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_bundle(bundle, QuantizeRequest(), interrupt)
    manifest = open_bundle(bundle.folder).manifest
    assert manifest.deploy["int8"] == INT8
    assert int8_proof(open_bundle(bundle.folder)).graph_sha256 == manifest.files[INT8].sha256
    assert INT8_TENSORRT_GRAPH not in manifest.files


def test_quantize_records_integer_nodes(made):
    assert made.manifest.searches[INT8].integers == 2


def test_quantize_skips_a_runtime_that_breaks(toy, monkeypatch):
    """OpenVINO compiles once more at the first batch of two."""
    pytest.importorskip("openvino")
    judge = AnsweredImages.judge

    def break_down(photos, candidate, *arguments):
        if candidate.spec.runtime == OPENVINO:
            raise GraphError("OpenVINO does not compile it for two.")
        return judge(photos, candidate, *arguments)

    monkeypatch.setattr(AnsweredImages, "judge", break_down)
    notes = []
    request = QuantizeRequest(runtime=CPU, graphs=(INT8,))
    (graph,) = quantize_bundle(toy("Colours"), request, notes.append).graphs
    assert [proof.runtime for proof in graph.proofs] == [CPU]
    told = f"skipped: {INT8} on openvino: OpenVINO does not compile it for two."
    assert told in said(notes)


def test_quantize_for_tensorrt_ignores_saturation(toy, monkeypatch):
    from deploykit.system.cpu import Cpu

    monkeypatch.setattr(
        "deploykit.commands.quantize.run.read_cpu", lambda: Cpu("Old CPU", ("avx2",))
    )
    notes = []
    request = QuantizeRequest(graphs=(INT8_TENSORRT_GRAPH,))
    (graph,) = quantize_bundle(toy("Colours"), request, notes.append).graphs
    assert graph.runtime == REHEARSAL
    assert not any("VNNI" in note for note in said(notes))
