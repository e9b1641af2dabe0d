"""What a benchmark says in a terminal and as values."""

import json
from types import SimpleNamespace

import pytest
from made_benchmarks import (
    BENCHMARK,
    BF16,
    CUDA,
    INT8,
    OPENVINO,
    ORT,
    PLAIN,
    TORCH,
    benchmark_of,
    measured,
)

from deploykit.commands.bench.results import Skipped
from deploykit.commands.bench.text import benchmark_text, benchmark_value
from deploykit.inference.candidates import Candidate

pytestmark = pytest.mark.usefixtures("posix_shell")


def rows_of(text):
    """The cells of the candidates' table by the candidate's name."""
    table = text.split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")] for line in table]
    return {row[0]: row[1:] for row in cells}


def test_text_lists_the_fastest_candidate_first():
    rows = rows_of(benchmark_text(BENCHMARK, None))
    assert {name: row[-1] for name, row in rows.items()} == {
        "openvino bf16": "unproven",
        "openvino int8": "within budget",
        "openvino fp32": "proven",
        "onnxruntime-cpu fp32": "proven",
        "onnxruntime-cpu fp32, plain export": "proven",
        "torch fp32": "reference",
    }
    assert next(iter(rows)) == "openvino bf16"
    assert rows["openvino fp32"] == [
        "15.0", "13.5-16.7", "1.50", "0.8 s", "300 MiB", "0 of 225, at most 1.3 %",
            "1.0e-07, largest 2.0e-06",
        "97.9 % (47 of 48)", "proven",
    ]  # fmt: skip


def test_text_of_several_labels_counts_exact_matches():
    text = benchmark_text(benchmark_of(measured(ORT, 9.0), accuracy_word="exact match"), None)
    assert "| exact match " in text
    assert "accuracy" not in text


def test_text_recommends_and_names_faster_unproven():
    text = benchmark_text(BENCHMARK, None)
    assert (
        "recommended    openvino int8: 45.0 images/s end to end, "
        "4.50 times the plain export on ONNX Runtime\n"
        "within budget  executed on CPU, 225 photos of bird_photos: flips 1 of 225, at most 1.3 %"
    ) in text
    assert "proven         openvino fp32, 15.0 images/s\n" in text
    where = "--bundle 'artifacts/my birds' --images bird_photos"
    assert "unproven       openvino bf16: it was never compared\n" in text
    assert (
        "faster         openvino bf16, 60.0 images/s, if it were proven by this:\n"
        f"deploykit verify {where} --runtime openvino --precision bf16\n"
    ) in text
    assert text.endswith(
        f"next           let predict take it on this machine:\ndeploykit bench {where} --accept"
    )


def test_text_names_a_damaged_graph():
    damaged = Skipped(candidate=OPENVINO, reason="fp32.onnx is not it. Export it.", damaged=True)
    text = benchmark_text(benchmark_of(measured(INT8, 9.0, "proven"), skipped=(damaged,)), None)
    assert "DAMAGED        openvino fp32: fp32.onnx is not it. Export it." in text
    assert "skipped " not in text
    assert "--accept" not in text


def test_text_quotes_commands_for_windows(monkeypatch):
    monkeypatch.setattr("deploykit.system.text.os", SimpleNamespace(name="nt"))
    text = benchmark_text(BENCHMARK, None)
    for begin in ("deploykit bench", "deploykit verify"):
        assert f'{begin} --bundle "artifacts/my birds" --images bird_photos' in text


def test_text_names_skipped_batch_sizes():
    reasons = {512: "it takes at most 64"}
    text = benchmark_text(benchmark_of(measured(ORT, 9.0, skipped_batches=reasons)), None)
    assert "skipped        onnxruntime-cpu fp32 with a batch of 512: it takes at most 64" in text


def test_text_after_verify_does_not_advise_it():
    unproven = measured(ORT, 9.0, reason="only 1 of 4 images decides")
    assert benchmark_text(benchmark_of(unproven), None).endswith(
        "next           prove the fastest:\n"
        "deploykit bench --bundle 'artifacts/my birds' --images bird_photos --verify"
    )
    text = benchmark_text(benchmark_of(unproven, verified=True), None)
    assert "--verify" not in text
    assert "unproven       onnxruntime-cpu fp32: only 1 of 4 images decides" in text


def test_text_verifies_an_engine_by_name():
    engine = Candidate("engines/a.engine", "tensorrt", "fp16")
    assert "--engine engines/a.engine" in benchmark_text(benchmark_of(measured(engine, 9.0)), None)


def test_text_without_the_plain_export_has_no_ratio():
    text = benchmark_text(benchmark_of(measured(ORT, 12.0, "proven")), None)
    assert "x plain" not in text
    assert "12.0 images/s end to end\n" in text


def test_text_groups_skipped_by_reason():
    skipped = (
        Skipped(candidate=CUDA, reason="There is no GPU."),
        Skipped(candidate=INT8, reason="OpenVINO does not compute in int8 here."),
        Skipped(candidate=TORCH, reason="There is no GPU."),
    )
    text = benchmark_text(benchmark_of(measured(ORT, 1.0), skipped=skipped), None)
    assert "skipped        onnxruntime-cuda fp32, torch fp32: There is no GPU.\n" in text


def test_text_says_why_a_candidate_failed():
    failed = measured(BF16, 30.0, "failed", "2 of 45 images changed their class")
    text = benchmark_text(benchmark_of(failed, measured(PLAIN, 1.0)), None)
    assert "FAILED         openvino bf16: 2 of 45 images changed their class" in text


def test_value_has_derived_numbers():
    value = json.loads(json.dumps(benchmark_value(BENCHMARK, None)))
    assert value["recommended"] == "openvino int8"
    assert value["accepted"] is None
    by_name = {each["name"]: each for each in value["measured"]}
    assert by_name["openvino bf16"]["times_plain"] == pytest.approx(6.0)
    assert by_name["openvino bf16"]["reason"] == "it was never compared"
    assert by_name["openvino int8"]["status"] == "within budget"
    assert by_name["openvino int8"]["verdict"]["measurement"]["flips"] == 1
    assert by_name["torch fp32"]["status"] == "reference"
    first = by_name["openvino fp32"]["timings"][0]
    assert (first["batch"], first["runs"]) == (1, 3)
    assert first["median_ms"] == pytest.approx(1000 / 15)
    assert (first["min_ms"], first["max_ms"]) == pytest.approx((60.0, 80.0))
    (faster,) = value["faster_unproven"]
    assert faster["name"] == "openvino bf16"
    assert faster["command"].endswith("--runtime openvino --precision bf16")
    assert value["as_fast"] == []


def test_text_of_forged_names():
    """The folder, the machine, reasons: each line is the report's own."""
    forged = "x\nrecommended\r\x1b[2J"
    benchmark = benchmark_of(
        measured(ORT, 9.0, reason=forged),
        skipped=(Skipped(candidate=OPENVINO, reason=forged),),
        images=forged,
        folder=forged,
    )
    text = benchmark_text(benchmark, None)
    assert not set(text) & {"\r", "\x1b"}
    (line,) = (line for line in text.splitlines() if line.startswith("recommended"))
    assert line.startswith("recommended    nothing: ")
