"""The page of a benchmark: the recommendation first, then every option that it was chosen from."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from deploykit.bundle.accepted import Accepted
from deploykit.commands.bench.pareto import FRAME, kind_of, pareto_of
from deploykit.commands.bench.results import Benchmark
from deploykit.commands.bench.text import (
    STANDINGS,
    accuracy_text,
    as_fast_words,
    basis_text,
    how_to_prove,
    memory_text,
    milliseconds,
    names_by_reason,
    percentiles_text,
    refusal_lines,
)
from deploykit.html.document import render, write_document
from deploykit.html.words import bound, duration, number, sentence_of, stranger, visible
from deploykit.proof.text import proof_words
from deploykit.system.text import counted

_TEMPLATE = "bench.html.j2"
_STYLES = (
    "tiles.css",
    "tables.css",
    "verdict.css",
    "picture.css",
    "print.css",
    "bench.css",
)
_BADGES = {
    "proven": "good",
    "flips": "bad",
    "failed": "bad",
    "unproven": "warn",
    "reference": "",
}


def write_bench_page(path: Path, benchmark: Benchmark, accepted: Accepted | None) -> None:
    """Write the page; one that is there is replaced when the new one is whole.

    Args:
        path: The page.
        benchmark: What was measured.
        accepted: What was accepted; None for nothing.

    Raises:
        InputError: The system fails to write it: the disk may be full.
    """
    recommended = benchmark.recommended
    context = {
        "benchmark": benchmark,
        "created": datetime.fromisoformat(benchmark.created),
        "accepted": accepted,
        "recommended": recommended,
        "proof_sentences": proof_words(recommended.proof)
        if recommended is not None and recommended.proof is not None
        else [],
        "fastest": max(max(each.end_to_end.rates) for each in benchmark.options),
        "frame": FRAME,
        "picture": pareto_of(benchmark.options),
        "left_out": names_by_reason(benchmark.missing),
        "damaged": names_by_reason(benchmark.damaged),
        "standings": STANDINGS,
        "badges": _BADGES,
        "accuracy_text": accuracy_text,
        "as_fast_words": as_fast_words,
        "basis_text": basis_text,
        "bound": bound,
        "counted": counted,
        "duration": duration,
        "how_to_prove": how_to_prove,
        "kind_of": kind_of,
        "memory_text": memory_text,
        "milliseconds": milliseconds,
        "number": number,
        "percentiles_text": percentiles_text,
        "refusals": list(refusal_lines(benchmark)),
        "sentence_of": sentence_of,
        "stranger": stranger,
        "visible": visible,
    }
    write_document(path, render(__package__, _TEMPLATE, _STYLES, (), context))
