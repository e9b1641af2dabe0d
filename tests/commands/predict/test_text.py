"""The summary of a prediction."""

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from made_proofs import PROOF
from made_verifications import made_bundle

from deploykit.commands.predict.tally import Tally
from deploykit.commands.predict.text import prediction_text, row_text
from deploykit.proof.policy import Status
from deploykit.proof.text import status_of_run, status_text
from deploykit.specs.model import Labels
from deploykit.specs.prediction import Prediction
from deploykit.specs.session import SessionSpec
from deploykit.system.deps import installed_versions

HOST = SessionSpec(
    runtime="onnxruntime-cpu",
    graph="deploy/fp32.onnx",
    precision="fp32",
    device="CPU",
    input_size=(8, 8),
    classes=3,
    concurrent=True,
)
LABELS = Labels(names=("cat", "dog"), source="made")
UNPROVEN = Status("unproven", None, "it is not proven: run verify")
DEVICE = msgspec.structs.replace(HOST, runtime="tensorrt", device="GPU", concurrent=False)


def run_of(tally, spec, stages, labels=LABELS, status=UNPROVEN, outputs=()):
    return SimpleNamespace(
        tally=tally,
        spec=spec,
        stage_seconds=stages,
        status=status,
        outputs=outputs,
        embeddings=None,
        hosts={},
        report=None,
        bundle=SimpleNamespace(manifest=SimpleNamespace(labels=labels)),
    )


def line_of_time(spec, **seconds):
    tally = Tally(seconds=10.0)
    for path in ("a.png", "b.png"):
        tally.add(Prediction(path=path, label="cat", probability=1.0, margin=1.0))
    stages = dict.fromkeys(("decode", "resize", "session", "write"), 0.0) | seconds
    run = run_of(tally, spec, stages)
    lines = prediction_text(run).splitlines()
    return next((line for line in lines if line.startswith("time")), None)


def test_prediction_text_time_of_host_workers():
    assert line_of_time(HOST, decode=1.4, resize=0.4, session=8.1, write=0.1) == (
        "time      session 81 %, decode 14 %, resize 4 %, write 1 %: the bottleneck is the network"
    )


def test_prediction_text_time_beside_a_device():
    assert line_of_time(DEVICE, decode=4.0, resize=3.0, session=6.0) == (
        "time      session 46 %, decode 31 %, resize 23 %, write 0 %, side by side: "
        "the bottleneck is decoding"
    )


@pytest.mark.parametrize("spec", [HOST, DEVICE], ids=["host", "device"])
def test_prediction_text_time_of_a_short_run(spec):
    assert line_of_time(spec, decode=0.2, session=0.29) is None
    assert line_of_time(spec, decode=0.2, session=0.31) is not None


def test_status_text_of_a_proof_is_one_line():
    assert status_text(Status("proven", PROOF)) == (
        "proven: 0 of 225 decisions differ from the trained model's, at most 1.3 % would "
        "(225 photos, preprocessed as recorded, 2026-11-22)"
    )
    skipped = msgspec.structs.replace(PROOF.images, duplicates=3, calibration=32)
    proof = msgspec.structs.replace(PROOF, images=skipped)
    assert "(225 photos (3 duplicates and 32 calibration images skipped), " in status_text(
        Status("proven", proof)
    )


def test_prediction_text_of_an_unproven_run():
    text = prediction_text(run_of(Tally(rows=1), HOST, {"session": 0.1}))
    assert "proof     unproven: it is not proven: run verify" in text.splitlines()


def test_status_of_run_in_tf32_is_unproven(tmp_path):
    bundle = made_bundle(tmp_path)
    record = bundle.manifest.files[HOST.graph]
    proof = msgspec.structs.replace(
        PROOF, graph_sha256=record.sha256, versions=installed_versions()
    )
    manifest = msgspec.structs.replace(bundle.manifest, verdicts=(proof,))
    bundle = type(bundle)(bundle.folder, manifest)
    assert status_of_run(bundle, HOST) == Status("proven", proof)
    in_tf32 = status_of_run(bundle, msgspec.structs.replace(HOST, tf32=True))
    assert (in_tf32.word, in_tf32.proof) == ("unproven", None)
    assert "TF32" in in_tf32.reason


@pytest.mark.parametrize("field", ["path", "reason"])
def test_prediction_text_escapes_what_files_are_called(field):
    """A file's name could look like a line of ours."""
    forged = "a.png\nproof     proven: forged\x1b[31m"
    row = Prediction(path="a.png", status="corrupt", reason="broken")
    row = msgspec.structs.replace(row, **{field: forged})
    tally = Tally()
    tally.add(row)
    run = run_of(tally, HOST, {}, outputs=[Path(f"{forged}.csv")])
    lines = prediction_text(run).split("\n")
    assert [line.split()[0] for line in lines] == ["image", "corrupt", "proof", "written"]
    assert not any("\x1b" in line for line in lines)
    assert "\n" not in row_text(row)
