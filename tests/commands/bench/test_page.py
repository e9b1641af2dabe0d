"""The page of a benchmark, in a real browser where there is one."""

import itertools
import re

import msgspec
import pytest
from chromium import open_browser
from made_benchmarks import (
    BENCHMARK,
    BF16,
    FP32,
    INT8,
    MACHINE,
    OPENVINO,
    ORT,
    benchmark_of,
    measured,
)

from deploykit.bundle.accepted import Accepted
from deploykit.commands.bench.page import draw_chart, write_bench_page
from deploykit.commands.bench.results import Skipped
from deploykit.errors import InputError


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(tmp_path):
    """Write a page; gives its path."""

    def write(benchmark=BENCHMARK, accepted=None):
        path = tmp_path / "bench.html"
        write_bench_page(path, benchmark, accepted)
        return path

    return write


def said(path):
    """The page's text, its narrow spaces kept."""
    html = path.read_text(encoding="utf-8")
    text = re.sub(r"<[^>]*>", " ", html[html.index("<header") :])
    return re.sub(r"[ \n\t]+", " ", text)


def test_page_begins_with_the_recommendation(page):
    text = said(page())
    assert "45.0 images/s Recommended: openvino int8" in text
    assert "all that passed, within budget: 4.50 times the plain export" in text
    assert "The fastest that is proven is openvino fp32, 15.0 images/s" in text
    assert "This lets predict take it on this machine: deploykit bench --bundle" in text
    assert "openvino bf16, 60.0 images/s. This proves it: deploykit verify --bundle" in text
    assert "1 of 225 decisions changed (flipped)" in text
    assert "avx512f avx512_vnni" in text
    assert "onnxruntime-cuda fp32: There is no NVIDIA driver" in text


def test_page_says_what_was_accepted(page):
    accepted = Accepted(
        machine=MACHINE, file=FP32, sha256="0" * 64, runtime="openvino", precision="fp32",
        status="within budget", images_per_second=15.0, created="2026-11-22T03:11:26+00:00",
    )  # fmt: skip
    text = said(page(accepted=accepted))
    assert "It is accepted, within budget:" in text
    assert "--accept" not in text


def test_page_begins_with_nothing_proven(page):
    text = said(page(benchmark_of(measured(BF16, 30.0))))
    assert "Unproven Nothing can be recommended" in text
    assert "This proves the fastest: deploykit bench --bundle" in text


def test_page_lists_as_fast_and_skipped(page):
    reasons = {512: "memory does not hold so many images at once"}
    text = said(
        page(
            benchmark_of(
                measured(BF16, 21.0, "proven"),
                measured(OPENVINO, 20.5, "proven", skipped_batches=reasons),
            )
        )
    )
    assert "Recommended: openvino fp32" in text
    assert "It is as fast as openvino bf16, 21.0 images/s" in text
    assert "openvino fp32 with a batch of 512: memory does not hold so many" in text


def test_page_names_a_damaged_graph(page):
    damaged = Skipped(candidate=OPENVINO, reason="fp32.onnx is not it. Export again.", damaged=True)
    text = said(page(benchmark_of(measured(INT8, 9.0, "proven"), skipped=(damaged,))))
    assert "Damaged, and so not measured openvino fp32: fp32.onnx is not it" in text
    assert "Skipped" not in text
    assert "--accept" not in text


def test_page_escapes_bundle_names(page):
    html = page(benchmark_of(measured(ORT, 1.0), bundle="<b>x\u202e")).read_text(encoding="utf-8")
    assert "<b>x" not in html
    assert "&lt;b&gt;x\\u202e" in html


def test_write_bench_page_that_fails(tmp_path):
    with pytest.raises(InputError, match=r"Writing .* failed"):
        write_bench_page(tmp_path / "missing" / "bench.html", BENCHMARK, None)


def test_chart_front_of_proven_points():
    chart = draw_chart(BENCHMARK.measured)
    places = {dot.title.partition(":")[0]: dot for dot in chart.dots}
    front = [places[f"openvino fp32, batch {batch}"] for batch in (1, 8)]
    assert chart.front == " ".join(f"{dot.x:g},{dot.y:g}" for dot in front)


def test_chart_places_every_point():
    chart = draw_chart(BENCHMARK.measured)
    assert len(chart.dots) == 12
    places = {dot.title.partition(":")[0]: dot for dot in chart.dots}
    slow, fast = places["torch fp32, batch 1"], places["openvino bf16, batch 1"]
    assert fast.x < slow.x
    assert fast.y < slow.y  # SVG counts downwards
    assert (fast.css_class, slow.css_class) == ("unproven", "reference")
    assert places["openvino int8, batch 8"].css_class == "within-budget"
    assert [name for name, _ in chart.names] == [m.name for m in BENCHMARK.measured]
    numbers = [str(place) for place in range(1, 1 + len(BENCHMARK.measured))]
    assert [label.text for label in chart.labels] == numbers
    assert all(92 <= dot.x <= 626 and 14 <= dot.y <= 366 for dot in chart.dots)


def test_chart_labels_do_not_overlap():
    candidates = (ORT, OPENVINO, BF16, INT8)
    chart = draw_chart([measured(each, 20.0 + i / 10) for i, each in enumerate(candidates)])
    for a, b in itertools.combinations(chart.labels, 2):
        assert abs(a.x - b.x) >= 14 or abs(a.y - b.y) >= 16


def test_page_has_no_empty_column(page):
    unproven = benchmark_of(measured(ORT, 12.0), measured(OPENVINO, 11.0))
    bare = [msgspec.structs.replace(each, labelled=0) for each in unproven.measured]
    path = page(msgspec.structs.replace(unproven, measured=tuple(bare)))
    html = path.read_text(encoding="utf-8")
    table = html.partition("<table>")[2].partition("</table>")[0]
    for word in ("flips", "change of probability", "accuracy"):
        assert word not in table
    heads = table.partition("</thead>")[0].count("<th ") + 1  # images/s has two columns
    row = table.partition("<tbody>")[2].partition("</tr>")[0]
    assert row.count("<td") + row.count("<th ") == heads


def test_page_without_timings_has_no_chart(page):
    benchmark = benchmark_of(measured(ORT, 12.0, "proven", timings=()))
    assert draw_chart(benchmark.measured) is None
    assert "Latency against throughput" not in said(page(benchmark))


def test_page_loads_without_complaints_or_requests(browser, page):
    path = page()
    for dark in (False, True):
        opened = browser.open(path.as_uri(), dark=dark)
        assert opened.complaints == []
        assert opened.requests == [path.as_uri()]
        assert opened.evaluate("document.querySelectorAll('.picture circle').length") == 12


def test_page_fits_a_narrow_window(browser, page):
    opened = browser.open(page().as_uri(), width=390)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390


def test_page_bars_are_proportional_to_rates(browser, page):
    opened = browser.open(page().as_uri())
    widths = opened.evaluate(
        "[...document.querySelectorAll('.rate rect')].map(r => r.getBoundingClientRect().width)"
    )
    assert widths[0] / widths[4] == pytest.approx(60 / 10, rel=0.02)


def test_page_reasons_fit_narrow_windows(browser, page):
    path = page(benchmark_of(measured(ORT, 9.0, "failed", "the accuracy fell, " * 20)))
    opened = browser.open(path.as_uri(), width=420)
    right = opened.evaluate("document.querySelector('.reason div').getBoundingClientRect().right")
    assert 200 < right < 420
