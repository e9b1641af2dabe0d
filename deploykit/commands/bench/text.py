"""What ``bench`` found, as text for a terminal and as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from deploykit.bundle.accepted import Accepted
from deploykit.commands.bench.results import (
    CLEARLY_FASTER,
    NOTHING_PASSED,
    Benchmark,
    Measured,
    Skipped,
    name_of,
)
from deploykit.errors import DeploykitError
from deploykit.proof.text import changes_of, flips_of, kept_verdict_text, status_value
from deploykit.specs.value import plain_value
from deploykit.system.text import commands_apart, counted, lines_text, table_text, visible

#: Why what had more images/s than the recommended candidate is not called faster.
AS_FAST = (
    "not faster in every round, or in a lower precision and not by "
    f"{round(100 * (CLEARLY_FASTER - 1))} %"
)
_SESSION_COLUMNS = ("session alone", "batch", "ms", "range", "images/s", "runs")


def benchmark_text(benchmark: Benchmark, accepted: Accepted | None) -> str:
    """The candidates, their sessions alone, what was skipped, and the recommendation.

    Args:
        benchmark: What was measured.
        accepted: What was accepted; None for nothing.
    """
    rows = candidate_rows(benchmark)
    return "\n\n".join(
        (
            table_text([*rows[0]], [[*row.values()] for row in rows]),
            table_text(_SESSION_COLUMNS, session_rows(benchmark)),
            lines_text(_about_lines(benchmark)),
            lines_text(_recommendation_lines(benchmark, accepted)),
        )
    )


def benchmark_value(benchmark: Benchmark, accepted: Accepted | None) -> dict[str, Any]:
    """The same for ``--json``, with what follows from the numbers."""
    recommended = benchmark.recommended
    plain = plain_value(benchmark)
    for given, measured in zip(plain["measured"], benchmark.measured, strict=True):
        given |= {
            "name": measured.name,
            "images_per_second": measured.images_per_second,
            "times_plain": benchmark.times_plain(measured),
            "timings": [
                {
                    "batch": timing.batch,
                    "runs": len(timing.seconds),
                    "median_ms": timing.median_ms,
                    "min_ms": 1000 * min(timing.seconds),
                    "max_ms": 1000 * max(timing.seconds),
                    "images_per_second": timing.images_per_second,
                }
                for timing in measured.timings
            ],
            **(status_value(measured.status) if measured.status else {"status": "reference"}),
        }
    return {
        **plain,
        "recommended": None if recommended is None else recommended.name,
        "as_fast": [each.name for each in benchmark.as_fast],
        "faster_unproven": [
            {"name": each.name, "command": benchmark.how_to_prove(each)}
            for each in benchmark.faster_unproven
        ],
        "accepted": None if accepted is None else plain_value(accepted),
    }


def candidate_rows(benchmark: Benchmark) -> list[dict[str, str]]:
    """Each candidate's cells by the names of their columns; no column is empty."""
    rows = [_candidate_row(benchmark, each) for each in benchmark.measured]
    used = [column for column in rows[0] if any(row[column] for row in rows)]
    return [{column: row[column] for column in used} for row in rows]


def _candidate_row(benchmark: Benchmark, measured: Measured) -> dict[str, str]:
    times = benchmark.times_plain(measured)
    proof, memory, labelled = measured.proof, measured.peak_memory_bytes, measured.labelled
    rate = 100 * measured.correct / max(1, labelled)
    accuracy = f"{rate:.1f} % ({measured.correct} of {labelled})"
    return {
        "candidate": measured.name,
        "images/s": f"{measured.images_per_second:.1f}",
        "range": f"{min(measured.rates):.1f}-{max(measured.rates):.1f}",
        "x plain": "" if times is None else f"{times:.2f}",
        "first answer": f"{measured.first_answer_seconds:.1f} s",
        "memory": "" if memory is None else f"{memory / 2**20:.0f} MiB",
        "flips": "" if proof is None else flips_of(proof.measurement),
        "|dp|": "" if proof is None else changes_of(proof.measurement),
        benchmark.accuracy_word: accuracy if labelled else "",
        "status": measured.word,
    }


def session_rows(benchmark: Benchmark) -> Iterator[tuple[str, ...]]:
    """A row for each candidate and batch size, its session alone."""
    for measured in benchmark.measured:
        for timing in measured.timings:
            low, high = 1000 * min(timing.seconds), 1000 * max(timing.seconds)
            yield (
                measured.name,
                str(timing.batch),
                _digits(timing.median_ms),
                f"{_digits(low)}-{_digits(high)}",
                f"{timing.images_per_second:.1f}",
                str(len(timing.seconds)),
            )


def _digits(milliseconds: float) -> str:
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.2f}"


def _about_lines(benchmark: Benchmark) -> Iterator[str]:
    """What was measured on, how, and what could not be."""
    machine = benchmark.machine
    sets = " ".join(machine.instruction_sets) or "instruction sets unknown"
    yield f"cpu            {machine.cpu}, {machine.cpus} threads; {sets}"
    if machine.gpu is not None:
        yield f"gpu            {machine.gpu}"
    yield f"versions       {', '.join(f'{name} {v}' for name, v in machine.versions.items())}"
    yield (
        f"measured       {counted(benchmark.rounds, 'round')}, {benchmark.seconds:.0f} s in all, "
        f"{benchmark.starting_seconds:.0f} of them to start; images/s from files to logits, "
        f"{counted(benchmark.sample, 'image')} of {benchmark.images}"
    )
    yield from (f"skipped        {line}" for line in skipped_lines(benchmark))


def skipped_lines(benchmark: Benchmark) -> Iterator[str]:
    """The candidates and the batch sizes that could not be measured, and why."""
    yield from by_reason([each for each in benchmark.skipped if not each.damaged])
    for measured in benchmark.measured:
        for batch, reason in measured.skipped_batches.items():
            yield f"{measured.name} with a batch of {batch}: {reason}"


def by_reason(skipped: Sequence[Skipped]) -> Iterator[str]:
    """``A, B: reason``, a line for each reason."""
    for reason in dict.fromkeys(each.reason for each in skipped):
        names = ", ".join(name_of(each.candidate) for each in skipped if each.reason == reason)
        yield f"{names}: {' '.join(reason.splitlines())}"


def _recommendation_lines(benchmark: Benchmark, accepted: Accepted | None) -> Iterator[str]:
    """The fastest that passed, what would be faster if it were proven, and what to do next."""
    best = benchmark.recommended
    if best is None:
        yield f"recommended    nothing: {NOTHING_PASSED}"
    else:
        times = benchmark.times_plain(best)
        compared = "" if times is None else f", {times:.2f} times the plain export on ONNX Runtime"
        rate = f"{best.images_per_second:.1f} images/s end to end{compared}"
        yield f"recommended    {best.name}: {rate}"
        if best.proof is not None:
            yield f"{best.word:<15}{kept_verdict_text(best.proof)}"
    if (proven := benchmark.proven_instead) is not None:
        yield f"proven         {proven.name}, {proven.images_per_second:.1f} images/s"
    for each in benchmark.as_fast:
        yield f"as fast as     {each.name}, {each.images_per_second:.1f} images/s: {AS_FAST}"
    yield from (f"DAMAGED        {line}" for line in by_reason(benchmark.damaged))
    for each in benchmark.measured:
        if each.status is not None and not each.status.is_within(benchmark.budget):
            word = "FAILED" if each.word == "failed" else each.word
            yield from f"{word:<15}{each.name}: {each.status.why}".split("\n")
    for each in benchmark.faster_unproven:
        yield (
            f"faster         {each.name}, {each.images_per_second:.1f} images/s, if it were proven "
            "by this:"
        )
        yield benchmark.how_to_prove(each)
    yield from _next_lines(benchmark, accepted)


def failure_lines(failure: DeploykitError) -> Iterator[str]:
    """What failed of that which was to be done with the numbers, and what to do about it."""
    yield from (f"ERROR          {visible(line)}" for line in failure.message.splitlines())
    yield from filter(None, [commands_apart(visible(failure.hint or ""))])


def _next_lines(benchmark: Benchmark, accepted: Accepted | None) -> Iterator[str]:
    options = () if benchmark.budget is None else benchmark.budget.options
    if accepted is not None:
        within = f" ({accepted.budget})" if accepted.budget else ""
        yield (
            f"accepted       {accepted}, {accepted.status}{within}: predict takes it on this "
            "machine"
        )
    elif benchmark.damaged:
        return  # the reason says what to do
    elif benchmark.recommended is None and not benchmark.verified:
        yield "next           prove the fastest:"
        yield benchmark.command("bench", "--verify", *options)
    elif benchmark.recommended is not None:
        yield "next           let predict take it on this machine:"
        yield benchmark.command("bench", "--accept", *options)
