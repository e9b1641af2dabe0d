"""What ``bench`` found, as text for a terminal and as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from deploykit.bundle.accepted import Accepted
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.bench.results import (
    CLEARLY_FASTER,
    Benchmark,
    Measured,
    Skipped,
    Standing,
)
from deploykit.inference.engines import is_flavour
from deploykit.proof.text import flips_of, kept_verdict_text
from deploykit.specs.value import plain_value
from deploykit.system.text import command_line, counted, table_text

_OPTION_COLUMNS = (
    *("option", "images/s", "range", "x plain", "first answer", "memory"),
    *("flips", "|dp|", "accuracy", "decides the same"),
)
_SESSION_COLUMNS = ("session alone", "batch", "ms", "range", "images/s", "runs")
#: Why what had more images/s than the recommended option is not called faster.
AS_FAST = (
    "not faster in every round, or in a lower precision and not by "
    f"{round(100 * (CLEARLY_FASTER - 1))} %"
)
STANDINGS: dict[Standing, str] = {
    "proven": "proven",
    "flips": "with flips",
    "failed": "NO",
    "unproven": "not proven",
    "reference": "the reference",
}


def benchmark_text(benchmark: Benchmark, accepted: Accepted | None) -> str:
    """The options, their sessions alone, what was skipped, and the recommendation.

    Args:
        benchmark: What was measured.
        accepted: What was accepted; None for nothing.
    """
    return "\n\n".join(
        (
            table_text(_OPTION_COLUMNS, [_option_row(benchmark, m) for m in benchmark.ranked]),
            table_text(_SESSION_COLUMNS, _session_rows(benchmark.ranked)),
            "\n".join(_about_lines(benchmark)),
            "\n".join((*_recommendation_lines(benchmark), *_next_lines(benchmark, accepted))),
        )
    )


def benchmark_value(benchmark: Benchmark, accepted: Accepted | None) -> dict[str, Any]:
    """The same for ``--json``, with what follows from the numbers."""
    recommended = benchmark.recommended
    plain = plain_value(benchmark)
    for given, measured in zip(plain["options"], benchmark.options, strict=True):
        given["name"] = measured.option.name
        given["images_per_second"] = measured.images_per_second
        given["times_plain"] = benchmark.times_plain(measured)
        given["timings"] = [
            {
                "batch": timing.batch,
                "runs": len(timing.seconds),
                "median_ms": timing.median_ms,
                "min_ms": timing.range_ms[0],
                "max_ms": timing.range_ms[1],
                "images_per_second": timing.images_per_second,
            }
            for timing in measured.timings
        ]
    return {
        **plain,
        "recommended": None if recommended is None else recommended.option.name,
        "as_fast": [measured.option.name for measured in benchmark.as_fast],
        "faster_unproven": [
            {
                "name": measured.option.name,
                "images_per_second": measured.images_per_second,
                "command": how_to_prove(benchmark, measured),
            }
            for measured in benchmark.faster_unproven
        ],
        "accepted": None if accepted is None else plain_value(accepted),
    }


def _option_row(benchmark: Benchmark, measured: Measured) -> tuple[str, ...]:
    times, proof = benchmark.times_plain(measured), measured.proof
    return (
        measured.option.name,
        f"{measured.images_per_second:.1f}",
        f"{min(measured.rates):.1f}-{max(measured.rates):.1f}",
        "" if times is None else f"{times:.2f}",
        f"{measured.first_answer_seconds:.1f} s",
        memory_text(measured),
        "" if proof is None else flips_of(proof.measurement),
        "" if proof is None else f"{proof.measurement.max_probability_change:.1e}",
        accuracy_text(measured),
        STANDINGS[measured.standing],
    )


def memory_text(measured: Measured) -> str:
    """``412 MiB``; nothing where the system does not tell."""
    size = measured.peak_memory_bytes
    return "" if size is None else f"{size / 2**20:.0f} MiB"


def accuracy_text(measured: Measured) -> str:
    """``97.9 % (47 of 48)``; nothing without labels."""
    if not measured.labelled:
        return ""
    rate = 100 * measured.correct / measured.labelled
    return f"{rate:.1f} % ({measured.correct} of {measured.labelled})"


def milliseconds(value: float) -> str:
    """``12.3``, and ``1.23`` of what is short."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _session_rows(ranked: Sequence[Measured]) -> Iterator[tuple[str, ...]]:
    for measured in ranked:
        name = measured.option.name
        for timing in measured.timings:
            low, high = timing.range_ms
            yield (
                name,
                str(timing.batch),
                milliseconds(timing.median_ms),
                f"{milliseconds(low)}-{milliseconds(high)}",
                f"{timing.images_per_second:.1f}",
                str(len(timing.seconds)),
            )
            name = ""


def _about_lines(benchmark: Benchmark) -> Iterator[str]:
    """What was measured on, how, and what could not be."""
    machine = benchmark.machine
    sets = " ".join(machine.instruction_sets) or "instruction sets unknown"
    yield f"cpu          {machine.cpu}, {machine.cpus} threads; {sets}"
    if machine.gpu is not None:
        yield f"gpu          {machine.gpu}"
    yield f"versions     {', '.join(f'{name} {v}' for name, v in machine.versions.items())}"
    yield (
        f"measured     {counted(benchmark.rounds, 'round')}, {benchmark.seconds:.0f} s in all; "
        f"images/s from photo files to logits, {counted(benchmark.sample, 'photo')} of "
        f"{benchmark.photos}"
    )
    others = [each for each in benchmark.skipped if not each.damaged]
    yield from (f"skipped      {line}" for line in skipped_lines(others))
    yield from (f"skipped      {line}" for line in refusal_lines(benchmark))


def skipped_lines(skipped: Sequence[Skipped]) -> Iterator[str]:
    """``A, B: why``, a line for each reason."""
    for reason in dict.fromkeys(each.reason for each in skipped):
        names = ", ".join(each.option.name for each in skipped if each.reason == reason)
        yield f"{names}: {reason}"


def refusal_lines(benchmark: Benchmark) -> Iterator[str]:
    """The batch sizes that an option cannot run alone."""
    for measured in benchmark.ranked:
        for batch, reason in measured.refusals.items():
            yield f"{measured.option.name} with a batch of {batch}: {reason}"


def _recommendation_lines(benchmark: Benchmark) -> Iterator[str]:
    """The fastest that is proven, and what would be faster if it were."""
    recommended = benchmark.recommended
    if recommended is None:
        yield f"recommended  nothing: {benchmark.why_nothing}"
    else:
        times = benchmark.times_plain(recommended)
        compared = "" if times is None else f", {times:.2f} times the plain export on ONNX Runtime"
        yield (
            f"recommended  {recommended.option.name}: {recommended.images_per_second:.1f} "
            f"images/s end to end{compared}"
        )
        if recommended.proof is not None:
            yield f"proof        {kept_verdict_text(recommended.proof)}"
            yield f"rests on     {basis_text(recommended.proof)}"
    for measured in benchmark.as_fast:
        yield (
            f"as fast as   {measured.option.name}, {measured.images_per_second:.1f} images/s: "
            f"{AS_FAST}"
        )
    yield from (f"DAMAGED      {line}" for line in skipped_lines(benchmark.damaged))
    for measured in benchmark.options:
        word = "FAILED" if measured.standing == "failed" else "not proven"
        for reason in measured.reasons:
            yield f"{word:<12} {measured.option.name}: {reason}"
    for measured in benchmark.faster_unproven:
        yield (
            f"faster       {measured.option.name}, {measured.images_per_second:.1f} images/s, "
            f"if it were proven: {how_to_prove(benchmark, measured)}"
        )


def basis_text(proof: KeptVerdict) -> str:
    """``CPU, openvino 2026.4.1, 2026-11-22``: on what, by what and when a proof was executed."""
    what = f"{proof.runtime} {proof.runtime_version or 'of an unknown version'}"
    return f"{proof.device}, {what}, {proof.created[:10]}"


def _next_lines(benchmark: Benchmark, accepted: Accepted | None) -> Iterator[str]:
    if benchmark.obstacle is not None:
        yield f"unprovable   {benchmark.obstacle}"
    if accepted is not None:
        yield f"accepted     {accepted}: predict takes it on this machine"
    elif benchmark.recommended is not None and not benchmark.damaged:
        yield f"next         {benchmark.command('--accept')} lets predict take it on this machine"
    elif benchmark.recommended is None and not benchmark.verified:
        yield f"next         {benchmark.command('--verify')} proves the fastest"


def how_to_prove(benchmark: Benchmark, measured: Measured) -> str:
    """The command that would prove an option."""
    option = measured.option
    what = (
        ["--engine", option.file]
        if is_flavour(option.runtime)
        else ["--runtime", option.runtime, "--precision", option.precision]
    )
    return command_line(["deploykit", "verify", *benchmark.what_words, *what])
