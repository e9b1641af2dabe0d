"""What a benchmark says in a terminal and as values."""

import json
from types import SimpleNamespace

import msgspec
import pytest
from made_benchmarks import (
    BENCHMARK,
    BF16,
    CUDA,
    INT8,
    OPENVINO,
    ORT,
    PLAIN,
    TORCH_FP32,
    benchmark_of,
    measured,
    proof_for,
)

from deploykit.commands.bench.results import Option, Skipped
from deploykit.commands.bench.text import benchmark_text, benchmark_value

pytestmark = pytest.mark.usefixtures("posix_shell")


def rows_of(text):
    """The cells of the options' table by the option's name."""
    table = text.split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")] for line in table]
    return {row[0]: row[1:] for row in cells}


def test_text_lists_the_fastest_option_first():
    rows = rows_of(benchmark_text(BENCHMARK, None))
    assert list(rows) == [
        "openvino int8",
        "openvino bf16",
        "openvino fp32",
        "onnxruntime-cpu fp32",
        "onnxruntime-cpu fp32, plain export",
        "torch fp32",
    ]
    assert rows["openvino fp32"] == [
        "15.0", "13.5-16.7", "1.50", "0.8 s", "300 MiB", "0 of 225, at most 1.3 %", "2.0e-06",
        "97.9 % (47 of 48)", "proven",
    ]  # fmt: skip
    assert [row[-1] for row in rows.values()] == [
        "with flips", "not proven", "proven", "proven", "proven", "the reference",
    ]  # fmt: skip


def test_text_recommends_the_fastest_proven_and_names_what_is_faster():
    text = benchmark_text(BENCHMARK, None)
    assert (
        "recommended  openvino fp32: 15.0 images/s end to end, "
        "1.50 times the plain export on ONNX Runtime"
    ) in text
    where = "--bundle 'artifacts/my birds' --images bird_photos"
    assert (
        "faster       openvino bf16, 30.0 images/s, if it were proven: "
        f"deploykit verify {where} --runtime openvino --precision bf16"
    ) in text
    assert "faster       openvino int8" not in text  # it is proven, with a flip
    assert f"next         deploykit bench {where} --accept lets predict take it" in text


def test_text_says_that_an_upgrade_took_the_proofs():
    old = measured(ORT, 12.0, reasons=("its proof is of onnxruntime-cpu 1.0",), outdated=True)
    text = benchmark_text(benchmark_of(measured(PLAIN, 10.0, "proven"), old), None)
    assert "recommended  nothing: nothing is proven by the versions that are installed now" in text
    assert "--images bird_photos --verify proves the fastest" in text
    assert "that predict can take" not in text


def test_text_names_a_damaged_graph_beside_the_recommendation():
    damaged = Skipped(option=OPENVINO, reason="fp32.onnx is not it. Export again.", damaged=True)
    benchmark = benchmark_of(measured(INT8, 9.0, "proven"), skipped=(damaged,))
    text = benchmark_text(benchmark, None).split("recommended")[1]
    assert "DAMAGED      openvino fp32: fp32.onnx is not it. Export again." in text
    assert "skipped " not in benchmark_text(benchmark, None)
    assert "--accept" not in text


def test_text_quotes_commands_as_windows_reads_them(monkeypatch):
    monkeypatch.setattr("deploykit.system.text.os", SimpleNamespace(name="nt"))
    text = benchmark_text(BENCHMARK, None)
    for begin in ("deploykit bench", "deploykit verify"):
        assert f'{begin} --bundle "artifacts/my birds" --images bird_photos' in text


def test_text_says_what_the_proof_rests_on():
    proof = msgspec.structs.replace(
        proof_for(OPENVINO), device="CPU (x)", versions={"openvino": "2026.4.1"}
    )
    text = benchmark_text(benchmark_of(measured(OPENVINO, 9.0, "proven", proof=proof)), None)
    assert f"rests on     CPU (x), openvino 2026.4.1, {proof.created[:10]}" in text


def test_text_names_a_batch_size_that_cannot_run():
    benchmark = benchmark_of(measured(ORT, 9.0, "proven", refusals={512: "it takes at most 64"}))
    text = benchmark_text(benchmark, None)
    assert "skipped      onnxruntime-cpu fp32 with a batch of 512: it takes at most 64" in text


def test_text_does_not_advise_to_verify_what_was_just_verified():
    unproven = measured(ORT, 9.0, reasons=("only 1 of 4 images decides",))
    assert "--verify proves the fastest" in benchmark_text(benchmark_of(unproven), None)
    text = benchmark_text(benchmark_of(unproven, verified=True, obstacle="no reference"), None)
    assert "--verify" not in text
    assert "unprovable   no reference" in text
    assert "not proven   onnxruntime-cpu fp32: only 1 of 4 images decides" in text


def test_text_proves_an_engine_by_its_name():
    engine = Option(file="engines/a.engine", runtime="tensorrt", precision="fp16")
    text = benchmark_text(benchmark_of(measured(engine, 9.0)), None)
    assert "--engine engines/a.engine" in text


def test_text_without_the_plain_export_has_no_ratio():
    benchmark = benchmark_of(measured(ORT, 12.0, "proven"))
    assert rows_of(benchmark_text(benchmark, None))["onnxruntime-cpu fp32"][2] == ""
    assert "12.0 images/s end to end\n" in benchmark_text(benchmark, None)


def test_text_says_a_reason_once_for_all_options_that_it_skips():
    skipped = (
        Skipped(option=CUDA, reason="There is no GPU."),
        Skipped(option=INT8, reason="OpenVINO does not compute in int8 here."),
        Skipped(option=TORCH_FP32, reason="There is no GPU."),
    )
    text = benchmark_text(benchmark_of(measured(ORT, 1.0), skipped=skipped), None)
    assert "skipped      onnxruntime-cuda fp32, torch fp32: There is no GPU.\n" in text


def test_text_says_why_an_option_failed():
    failed = measured(BF16, 30.0, "failed", reasons=("2 of 45 images changed their class",))
    text = benchmark_text(benchmark_of(failed), None)
    assert "FAILED       openvino bf16: 2 of 45 images changed their class" in text


def test_value_has_what_follows_from_the_numbers():
    value = json.loads(json.dumps(benchmark_value(BENCHMARK, None)))
    assert value["recommended"] == "openvino fp32"
    assert value["accepted"] is None
    by_name = {option["name"]: option for option in value["options"]}
    assert by_name["openvino bf16"]["times_plain"] == pytest.approx(3.0)
    first = by_name["openvino fp32"]["timings"][0]
    assert (first["batch"], first["runs"]) == (1, 3)
    assert first["median_ms"] == pytest.approx(1000 / 15)
    assert (first["min_ms"], first["max_ms"]) == pytest.approx((60.0, 80.0))
    (faster,) = value["faster_unproven"]
    assert faster["name"] == "openvino bf16"
    assert faster["images_per_second"] == pytest.approx(30.0)
    assert faster["command"].endswith("--runtime openvino --precision bf16")
    assert value["as_fast"] == []
