"""The summary of a prediction."""

from pathlib import Path

import msgspec
import pytest
from made_verifications import BIRDS, made_bundle, made_logits

from deploykit.bundle.verdicts import KeptVerdict, PhotoSet
from deploykit.commands.predict.tally import Tally
from deploykit.commands.predict.text import prediction_text
from deploykit.parity.measures import measure
from deploykit.parity.tolerance import Tolerance
from deploykit.proof.text import proof_of_run, proof_text
from deploykit.specs.prediction import Prediction
from deploykit.specs.session import SessionSpec
from deploykit.system.versions import installed_versions, runtime_version

HOST = SessionSpec(
    runtime="onnxruntime-cpu",
    graph="deploy/fp32.onnx",
    precision="fp32",
    device="CPU",
    input_size=(8, 8),
    classes=3,
    concurrent=True,
)
ORT_VERSION = runtime_version("onnxruntime-cpu", installed_versions())
DEVICE = msgspec.structs.replace(HOST, runtime="tensorrt", device="GPU", concurrent=False)


def line_of_time(spec, **seconds):
    tally = Tally(seconds=10.0)
    tally.add(Prediction(path="a.png", label="cat", probability=1.0, margin=1.0))
    stages = dict.fromkeys(("decode", "resize", "session", "write"), 0.0) | seconds
    lines = prediction_text(tally, spec, stages, [Path("rows.csv")]).splitlines()
    return next((line for line in lines if line.startswith("time")), None)


def test_the_shares_of_workers_that_do_it_all():
    assert line_of_time(HOST, decode=1.4, resize=0.4, session=8.1, write=0.1) == (
        "time      session 81 %, decode 14 %, resize 4 %, write 1 %: the bottleneck is the network"
    )


def test_the_shares_of_workers_beside_a_device():
    assert line_of_time(DEVICE, decode=4.0, resize=3.0, session=6.0) == (
        "time      session 46 %, decode 31 %, resize 23 %, write 0 %, side by side: "
        "the bottleneck is decoding"
    )


@pytest.mark.parametrize("spec", [HOST, DEVICE], ids=["host", "device"])
def test_of_too_short_a_run_nothing_is_told(spec):
    assert line_of_time(spec, decode=0.2, session=0.29) is None
    assert line_of_time(spec, decode=0.2, session=0.31) is not None


def made_proof(kind="photos", images=222):
    logits = made_logits(images)
    found = measure(
        *(logits, logits),
        precision="fp32",
        paths=[str(i) for i in range(images)],
        labels=BIRDS,
        batch_sizes=[8],
    )
    return KeptVerdict(
        graph="deploy/fp32.onnx",
        graph_sha256="2" * 64,
        runtime="onnxruntime-cpu",
        device="CPU",
        precision="fp32",
        kind="executed",
        reference="torch module",
        reference_kind="module",
        photos=PhotoSet(kind=kind, source="birds", images=images, sha256="d" * 64),
        measurement=found,
        tolerance=Tolerance(max_flip_rate=0.0),
        created="2026-11-22T03:11:26+00:00",
        versions={},
    )


def test_the_proof_is_one_line():
    assert proof_text(made_proof()) == (
        "executed: 0 of 222 decisions differ from the trained model's, at most 1.3 % would "
        "(222 photos, preprocessed as recorded, 2026-11-22)"
    )
    assert proof_text(made_proof("golden")) == (
        "executed: 0 of 222 decisions differ from the trained model's "
        "(222 golden images, preprocessed as recorded, 2026-11-22)"
    )
    assert "(1 photo, " in proof_text(made_proof(images=1))
    text = prediction_text(Tally(rows=1), HOST, {"session": 0.1}, [])
    assert "proof     none here: deploykit verify --images DIR" in text.splitlines()


def test_photos_of_the_search_are_told_and_give_no_bound():
    proof = msgspec.structs.replace(made_proof(), searched=45)
    assert proof_text(proof) == (
        "executed: 0 of 222 decisions differ from the trained model's, at most 1.7 % would "
        "(222 photos, 45 of them had a part in making the graph, preprocessed as recorded, "
        "2026-11-22)"
    )


@pytest.mark.parametrize("then", ["0.1", ORT_VERSION])
def test_a_proof_of_another_version_of_the_runtime_says_so(then):
    now = ORT_VERSION
    proof = msgspec.structs.replace(made_proof(), versions={"onnxruntime": then})
    text = prediction_text(Tally(rows=1), HOST, {"session": 0.1}, [], proof)
    told = f"proven with onnxruntime-cpu {then}; here is {now}: deploykit verify proves it anew"
    assert (told in text) == (then != now)


def test_a_proof_of_fp32_says_nothing_of_tf32(tmp_path):
    bundle = made_bundle(tmp_path)
    proven = msgspec.structs.replace(bundle.manifest, verdicts=(made_proof(),))
    bundle = type(bundle)(bundle.folder, proven)
    assert proof_of_run(bundle, HOST) == made_proof()
    assert proof_of_run(bundle, msgspec.structs.replace(HOST, tf32=True)) is None
    assert proof_of_run(bundle, DEVICE) is None
