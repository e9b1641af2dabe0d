"""Which candidate is faster than another, and which is recommended."""

import msgspec
import pytest
from made_benchmarks import (
    BF16,
    INT8,
    OPENVINO,
    ORT,
    PLAIN,
    TORCH,
    benchmark_of,
    measured,
)

from deploykit.commands.bench.results import Timing
from deploykit.commands.bench.text import benchmark_text
from deploykit.parity.budget import Budget


def at(candidate, *rates, word="proven", **fields):
    """A candidate that gives these images/s, round after round."""
    return measured(candidate, rates[0], word, rates=rates, **fields)


def test_timing_has_the_median():
    timing = Timing(batch=8, seconds=(0.2, 0.1, 0.4))
    assert timing.median_ms == pytest.approx(200)
    assert timing.images_per_second == pytest.approx(40)


def test_images_per_second_is_median_of_rounds():
    fast, plain = at(ORT, 20.0, 90.0, 30.0), at(PLAIN, 10.0, 30.0, 20.0)
    assert fast.images_per_second == 30
    assert benchmark_of(plain, fast).times_plain(fast) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("ours", "theirs", "faster"),
    [
        ((11.0, 33.0, 22.0), (10.0, 30.0, 20.0), True),  # in every round, however they differ
        ((99.0, 99.0, 9.9, 99.0), (10.0, 10.0, 10.0, 10.0), False),  # not in the third
        ((10.0, 11.0, 12.0), (10.0, 10.0, 10.0), False),  # as fast in the first
        ((10.1, 10.1, 10.1), (10.0, 10.0, 10.0), True),
    ],
)
def test_is_faster_than_in_every_round(ours, theirs, faster):
    assert at(ORT, *ours).is_faster_than(at(OPENVINO, *theirs)) is faster


@pytest.mark.parametrize(
    ("candidate", "other", "gain", "faster"),
    [
        (BF16, OPENVINO, 1.04, False),
        (BF16, OPENVINO, 1.06, True),
        (INT8, BF16, 1.04, False),
        (OPENVINO, BF16, 1.01, True),
    ],
)
def test_is_faster_than_in_lower_precision(candidate, other, gain, faster):
    rates = (10.0, 12.0, 11.0)
    ours = at(candidate, *(gain * rate for rate in rates))
    assert ours.is_faster_than(at(other, *rates)) is faster


def test_recommended_within_five_percent_is_the_higher_precision():
    benchmark = benchmark_of(at(BF16, 20.8, 20.8, 20.8), at(OPENVINO, 20.0, 20.0, 20.0))
    assert benchmark.recommended.candidate == OPENVINO
    assert [each.candidate for each in benchmark.as_fast] == [BF16]
    text = benchmark_text(benchmark, None)
    assert "recommended    openvino fp32: 20.0 images/s" in text
    assert "as fast as     openvino bf16, 20.8 images/s: not faster in every round" in text


def test_recommended_where_rounds_disagree_is_the_higher_precision():
    benchmark = benchmark_of(at(BF16, 30.0, 31.0, 19.0), at(OPENVINO, 20.0, 20.0, 20.0))
    assert benchmark.recommended.candidate == OPENVINO


def test_recommended_in_one_precision():
    benchmark = benchmark_of(at(ORT, 20.0, 21.0, 19.0), at(OPENVINO, 19.0, 22.0, 20.5))
    assert benchmark.recommended.candidate == OPENVINO
    assert benchmark.as_fast == ()


def test_recommended_has_no_faster_rival():
    """FP32 is as fast as the fastest, whose rounds differ much, but BF16 is faster than FP32."""
    noisy, steady, high = (
        at(INT8, 20.0, 50.0, 51.0), at(BF16, 25.0, 25.1, 25.0), at(OPENVINO, 20.0, 20.1, 20.0)
    )  # fmt: skip
    assert benchmark_of(noisy, high).recommended.candidate == OPENVINO
    benchmark = benchmark_of(noisy, steady, high)
    assert benchmark.recommended.candidate == BF16
    assert [each.candidate for each in benchmark.as_fast] == [INT8]


def test_recommended_within_budget_names_fastest_proven():
    within = measured(INT8, 45.0, "within budget")
    proven = measured(OPENVINO, 15.0, "proven")
    benchmark = benchmark_of(within, proven, measured(ORT, 12.0, "proven"))
    assert (benchmark.recommended, benchmark.proven_instead) == (within, proven)
    assert benchmark_of(proven).proven_instead is None


@pytest.mark.parametrize(
    "candidates",
    [
        [measured(TORCH, 99.0), measured(PLAIN, 10.0, "proven")],
        [measured(BF16, 30.0, "failed"), measured(ORT, 10.0, "unproven")],
    ],
)
def test_recommended_is_none_without_usable_proof(candidates):
    benchmark = benchmark_of(*candidates)
    assert benchmark.recommended is None
    assert "recommended    nothing" in benchmark_text(benchmark, None)


def test_faster_unproven_only_faster_ones():
    proven = at(ORT, 20.0, 20.0, 20.0)
    slower = at(OPENVINO, 19.0, 19.0, 19.0, word="unproven")
    close = at(BF16, 20.5, 20.5, 20.5, word="unproven")
    faster = at(INT8, 30.0, 30.0, 30.0, word="unproven")
    assert benchmark_of(proven, slower, close, faster).faster_unproven == (faster,)


@pytest.mark.parametrize(
    ("rate", "recommended"), [(None, OPENVINO), (0.01, OPENVINO), (0.02, INT8), (0.5, INT8)]
)
def test_recommended_within_the_budget_that_is_asked(rate, recommended):
    """INT8 passed within 50 %, and changes 4 of 225 decisions."""
    wide = measured(INT8, 90.0, "within budget")
    found = msgspec.structs.replace(wide.proof.measurement, flips=4)
    proof = msgspec.structs.replace(wide.proof, measurement=found, budget=Budget(max_flip_rate=0.5))
    wide = msgspec.structs.replace(wide, status=wide.status._replace(verdict=proof))
    asked = None if rate is None else Budget(max_flip_rate=rate)
    found = benchmark_of(wide, measured(OPENVINO, 20.0, "proven"), budget=asked)
    assert found.recommended.candidate == recommended
    text = benchmark_text(found, None)
    accept = "--accept" if rate is None else f"--accept --max-flips {100 * rate:g}%"
    assert text.splitlines()[-1].endswith(accept)
    assert (wide in found.faster_unproven) == (rate == 0.01)
