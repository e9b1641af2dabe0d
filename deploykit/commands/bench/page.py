"""The page of a benchmark: the recommendation first, then every option that it was chosen from."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from deploykit.bundle.accepted import Accepted
from deploykit.commands.bench import text
from deploykit.commands.bench.picture import FRAME, draw_options, kind_of
from deploykit.commands.bench.results import Benchmark
from deploykit.html import words
from deploykit.html.document import render, write_document
from deploykit.proof.text import proof_words
from deploykit.system.text import counted

_STYLES = ("tiles.css", "tables.css", "verdict.css", "picture.css", "print.css", "bench.css")
_BADGES = {"proven": "good", "flips": "bad", "failed": "bad", "unproven": "warn", "reference": ""}


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
        "fastest": max(max(each.rates) for each in benchmark.options),
        "frame": FRAME,
        "picture": draw_options(benchmark.options),
        "skipped": [
            *text.skipped_lines([each for each in benchmark.skipped if not each.damaged]),
            *text.refusal_lines(benchmark),
        ],
        "damaged": list(text.skipped_lines(benchmark.damaged)),
        "badges": _BADGES,
        "counted": counted,
        "kind_of": kind_of,
        "text": text,
        "words": words,
        "stranger": words.stranger,
    }
    write_document(path, render(__package__, "bench.html.j2", _STYLES, (), context))
