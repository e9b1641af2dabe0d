"""What a benchmark says in a terminal and as values."""

import json
from types import SimpleNamespace

import msgspec
import pytest
from made_benchmarks import (
    BENCHMARK,
    BF16,
    CUDA,
    EAGER,
    INT8,
    OPENVINO,
    ORT,
    PLAIN,
    benchmark_of,
    measured,
    proof_for,
)

from deploykit.commands.bench.results import LeftOut, Option
from deploykit.commands.bench.text import benchmark_text, benchmark_value
from deploykit.commands.bench.timings import EndToEnd
from deploykit.system import shell

pytestmark = pytest.mark.usefixtures("posix_shell")


def rows_of(text):
    """The cells of the options' table by the option's name."""
    table = text.split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")] for line in table]
    return {row[0]: row[1:] for row in cells}


def test_the_options_come_the_fastest_first():
    rows = rows_of(benchmark_text(BENCHMARK, None))
    assert list(rows) == [
        "openvino int8",
        "openvino bf16",
        "openvino fp32",
        "onnxruntime-cpu fp32",
        "onnxruntime-cpu fp32, plain export",
        "torch fp32, eager",
    ]
    assert rows["openvino fp32"] == [
        "15.0", "13.5-16.7", "1.50", "0.8 s", "300 MiB", "0 of 225, at most 1.3 %", "2.0e-06",
        "97.9 % (47 of 48)", "proven",
    ]  # fmt: skip
    assert [row[-1] for row in rows.values()] == [
        "with flips", "not proven", "proven", "proven", "proven", "the reference",
    ]  # fmt: skip


def test_the_fastest_that_is_proven_is_recommended_and_what_is_faster_named():
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


@pytest.mark.parametrize(
    "options",
    [
        [measured(EAGER, 99.0, "reference"), measured(PLAIN, 10.0, "proven")],
        [measured(INT8, 45.0, "flips"), measured(BF16, 30.0, "failed")],
        [measured(ORT, 10.0, "unproven")],
    ],
)
def test_what_predict_cannot_take_or_is_not_proven_is_not_recommended(options):
    benchmark = benchmark_of(*options)
    assert benchmark.recommended is None
    assert "recommended  nothing" in benchmark_text(benchmark, None)


def test_a_slower_one_that_is_not_proven_is_not_worth_a_word():
    benchmark = benchmark_of(measured(ORT, 20.0, "proven"), measured(OPENVINO, 19.0, "unproven"))
    assert benchmark.faster_unproven == ()


def at(option, *rates, **fields):
    """An option that gives these images/s, round after round."""
    end_to_end = EndToEnd(batch_size=2, photos=24, rates=rates)
    return measured(option, rates[0], "proven", end_to_end=end_to_end, **fields)


def test_of_two_that_are_as_fast_the_higher_precision_is_recommended():
    benchmark = benchmark_of(at(BF16, 20.0, 21.0, 22.0), at(OPENVINO, 19.0, 20.0, 22.5))
    assert benchmark.recommended.option == OPENVINO
    text = benchmark_text(benchmark, None)
    assert "recommended  openvino fp32: 20.4 images/s" in text
    assert "as fast as   openvino bf16, 21.0 images/s: the rounds differ by more" in text
    behind = benchmark_of(at(BF16, 18.0, 20.0, 20.0), at(OPENVINO, 19.0, 20.0, 20.5))
    assert behind.recommended.option == OPENVINO
    assert "as fast as" not in benchmark_text(behind, None)


def test_what_is_faster_in_every_round_is_faster_however_the_rounds_differ():
    benchmark = benchmark_of(at(BF16, 11.0, 33.0, 22.0), at(OPENVINO, 10.0, 30.0, 20.0))
    assert benchmark.recommended.option == BF16
    assert benchmark.as_fast == ()


def test_in_one_precision_the_one_with_more_images_is_recommended():
    benchmark = benchmark_of(at(ORT, 20.0, 21.0, 19.0), at(OPENVINO, 19.0, 22.0, 20.5))
    assert benchmark.recommended.option == OPENVINO


def test_what_any_proven_one_is_faster_than_is_not_recommended():
    """FP32 is as fast as the fastest, whose rounds differ much, but the second is faster."""
    noisy, steady, high = (
        at(INT8, 20.0, 50.0, 21.0), at(BF16, 25.0, 25.1, 25.0), at(OPENVINO, 20.0, 20.1, 20.0)
    )  # fmt: skip
    assert benchmark_of(noisy, high).recommended.option == OPENVINO
    benchmark = benchmark_of(noisy, steady, high)
    assert benchmark.recommended.option == BF16
    assert [each.option for each in benchmark.as_fast] == [INT8]


def test_two_rounds_do_not_tell_that_anything_is_faster():
    benchmark = benchmark_of(at(BF16, 40.0, 41.0), at(OPENVINO, 10.0, 11.0), rounds=2)
    assert benchmark.recommended.option == OPENVINO
    text = benchmark_text(benchmark, None)
    assert "as fast as   openvino bf16, 40.5 images/s: 2 rounds cannot tell which" in text
    assert "measured     2 rounds in turns" in text
    once = benchmark_text(benchmark_of(at(BF16, 40.0), rounds=1), None)
    assert "measured     1 round in turns" in once


def test_times_plain_is_the_ratio_of_what_the_table_says():
    fast, plain = at(ORT, 20.0, 90.0, 30.0), at(PLAIN, 10.0, 30.0, 20.0)
    ratio = fast.images_per_second / plain.images_per_second
    assert benchmark_of(plain, fast).times_plain(fast) == pytest.approx(ratio)


def test_where_all_is_proven_by_other_versions_that_is_the_headline():
    old = measured(ORT, 12.0, objections=("its proof is of onnxruntime-cpu 1.0",), outdated=True)
    text = benchmark_text(benchmark_of(measured(PLAIN, 10.0, "proven"), old), None)
    assert "recommended  nothing: by the versions that are installed now nothing is proven" in text
    assert "--images bird_photos --verify proves the fastest" in text
    assert "that predict can take" not in text


def test_a_damaged_graph_is_told_beside_the_recommendation():
    damaged = LeftOut(option=OPENVINO, reason="fp32.onnx is not it. Export again.", damaged=True)
    benchmark = benchmark_of(measured(INT8, 9.0, "proven"), left_out=(damaged,))
    text = benchmark_text(benchmark, None).split("recommended")[1]
    assert "DAMAGED      openvino fp32: fp32.onnx is not it. Export again." in text
    assert "cannot run" not in benchmark_text(benchmark, None)
    assert "--accept" not in text


def test_the_bound_is_over_the_photos_that_had_no_part_in_making_the_graph():
    proof = msgspec.structs.replace(proof_for(INT8), searched=125)
    text = benchmark_text(benchmark_of(measured(INT8, 9.0, "proven", proof=proof)), None)
    assert rows_of(text)["openvino int8"][5] == "0 of 225, at most 3.0 %"  # 1 - 0.05 ** (1 / 100)


def test_on_windows_commands_are_quoted_as_its_programs_read_them(monkeypatch):
    monkeypatch.setattr(shell, "os", SimpleNamespace(name="nt"))
    text = benchmark_text(BENCHMARK, None)
    for begin in ("deploykit bench", "deploykit verify"):
        assert f'{begin} --bundle "artifacts/my birds" --images bird_photos' in text


def test_the_proof_says_what_it_rests_on():
    proof = msgspec.structs.replace(
        proof_for(OPENVINO), device="CPU (x)", versions={"openvino": "2026.4.1"}
    )
    text = benchmark_text(benchmark_of(measured(OPENVINO, 9.0, "proven", proof=proof)), None)
    assert f"rests on     CPU (x), openvino 2026.4.1, {proof.created[:10]}" in text


def test_a_size_that_cannot_run_is_said():
    benchmark = benchmark_of(measured(ORT, 9.0, "proven", refusals={512: "it takes at most 64"}))
    text = benchmark_text(benchmark, None)
    assert "cannot run   onnxruntime-cpu fp32 with a batch of 512: it takes at most 64" in text


def test_nobody_is_told_to_verify_what_has_just_been_verified():
    unproven = measured(ORT, 9.0, objections=("only 1 of 4 images decides",))
    assert "--verify proves the fastest" in benchmark_text(benchmark_of(unproven), None)
    text = benchmark_text(benchmark_of(unproven, verified=True, obstacle="no reference"), None)
    assert "--verify" not in text
    assert "unprovable   no reference" in text
    assert "not proven   onnxruntime-cpu fp32: only 1 of 4 images decides" in text


def test_an_engine_is_proven_by_its_name():
    engine = Option(file="engines/a.engine", runtime="tensorrt", precision="fp16")
    text = benchmark_text(benchmark_of(measured(engine, 9.0)), None)
    assert "--engine engines/a.engine" in text


def test_without_the_plain_export_there_is_no_ratio():
    benchmark = benchmark_of(measured(ORT, 12.0, "proven"))
    assert rows_of(benchmark_text(benchmark, None))["onnxruntime-cpu fp32"][2] == ""
    assert "12.0 images/s end to end\n" in benchmark_text(benchmark, None)


def test_a_reason_is_told_once_for_all_that_it_stops():
    left_out = (
        LeftOut(option=CUDA, reason="There is no GPU."),
        LeftOut(option=INT8, reason="OpenVINO does not compute in int8 here."),
        LeftOut(option=EAGER, reason="There is no GPU."),
    )
    text = benchmark_text(benchmark_of(measured(ORT, 1.0), left_out=left_out), None)
    assert "cannot run   onnxruntime-cuda fp32, torch fp32, eager: There is no GPU.\n" in text


def test_what_failed_just_now_says_why():
    failed = measured(BF16, 30.0, "failed", objections=("2 of 45 images changed their class",))
    text = benchmark_text(benchmark_of(failed), None)
    assert "FAILED       openvino bf16: 2 of 45 images changed their class" in text


def test_values_have_what_follows_from_the_numbers():
    value = json.loads(json.dumps(benchmark_value(BENCHMARK, None)))
    assert value["recommended"] == "openvino fp32"
    assert value["accepted"] is None
    by_name = {option["name"]: option for option in value["options"]}
    assert by_name["openvino bf16"]["times_plain"] == pytest.approx(3.0)
    first = by_name["openvino fp32"]["timings"][0]
    assert (first["batch"], first["runs"]) == (1, 3)
    assert first["median_ms"] == pytest.approx(1000 / 15)
    assert (first["min_ms"], first["max_ms"]) == pytest.approx((60.0, 80.0))
    assert first["percentiles_ms"] == {}
    (faster,) = value["faster_unproven"]
    assert faster["name"] == "openvino bf16"
    assert faster["images_per_second"] == pytest.approx(30.0)
    assert faster["command"].endswith("--runtime openvino --precision bf16")
    assert value["as_fast"] == []
