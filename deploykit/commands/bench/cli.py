"""``deploykit bench``: every option of this machine side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import (
    Artifacts,
    BundleName,
    Expected,
    Json,
    MaxAccuracyDrop,
    MaxFlips,
    Verbose,
)
from deploykit.errors import DeploykitError, InputError, UsageError

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle
    from deploykit.commands.bench.results import Benchmark
    from deploykit.console.command import Console

_MEASUREMENT = "Measurement options"


def bench(
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Images to predict.  [default: those of the export]"),
    ] = None,
    expected: Expected = None,
    bundle: BundleName = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Let predict use the recommended one on this machine.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget what was accepted here; measure nothing.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Prove the fastest unproven ones, until one passes."),
    ] = False,
    max_flips: MaxFlips = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page.")] = None,
    seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            rich_help_panel=_MEASUREMENT,
            help="Time to measure, once all are open; at least three rounds run.",
        ),
    ] = 90.0,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=3,
            metavar="N",
            rich_help_panel=_MEASUREMENT,
            help="The most rounds.  [default: as many as there is time for]",
        ),
    ] = None,
    batch_sizes: Annotated[
        str,
        typer.Option(
            metavar="N,N,...",
            rich_help_panel=_MEASUREMENT,
            help="Batch sizes to time without decoding.",
        ),
    ] = "1,8,32",
    max_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=_MEASUREMENT,
            help="The most images to compare with --verify.  [default: 256]",
        ),
    ] = None,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure which proven graph or engine is the fastest here.

    Times are end to end, with decoding. --accept exits with 3 if nothing is proven; a damaged graph
    makes it 4, and the others are measured all the same.
    """
    with command(
        "bench", as_json=json, verbose=verbose, bundle=bundle, artifacts=artifacts
    ) as console:
        if forget and (accept or verify or html is not None):
            raise UsageError(
                "--forget measures nothing, but --accept, --verify and --html need a measurement.",
                hint="Leave out --forget: --accept replaces what was accepted.",
            )
        from deploykit.bundle.folder import find_bundle
        from deploykit.commands.bench.run import BenchRequest, bench_bundle
        from deploykit.parity.budget import Budget

        request = BenchRequest(
            images,
            _parsed_sizes(batch_sizes),
            repeats,
            seconds,
            verify,
            max_images,
            expected,
            Budget.parse(max_flips, max_accuracy_drop),
        )
        if html is not None:
            from deploykit.commands.bench.page import begin_bench_page

            begin_bench_page(html)
        chosen = find_bundle(bundle, artifacts, console.progress)
        if forget:
            _forget(chosen, console)
            return
        benchmark = bench_bundle(chosen, request, console.progress)
        _finish(chosen, benchmark, console, accept=accept, html=html)


def _forget(bundle: Bundle, console: Console) -> None:
    from deploykit.proof.accepted import forget_accepted
    from deploykit.specs.value import plain_value

    forgotten = forget_accepted(bundle)
    console.result(
        lambda: {"forgotten": None if forgotten is None else plain_value(forgotten)},
        lambda: (
            "nothing was accepted on this machine"
            if forgotten is None
            else f"forgotten      {forgotten}: predict chooses by itself again"
        ),
    )


def _finish(
    bundle: Bundle, benchmark: Benchmark, console: Console, *, accept: bool, html: Path | None
) -> None:
    """Accept, write and show; if one of them fails, the others are still done."""
    from deploykit.commands.bench.run import accept_recommended
    from deploykit.commands.bench.text import benchmark_text, benchmark_value, failure_lines

    failures: list[DeploykitError] = []
    accepted, outputs = None, []
    if accept:
        try:
            accepted = accept_recommended(bundle, benchmark)
        except DeploykitError as exc:
            failures.append(exc)
    if html is not None:
        from deploykit.commands.bench.page import write_bench_page

        try:
            write_bench_page(html, benchmark, accepted)
            outputs.append(html)
        except DeploykitError as exc:
            failures.append(exc)
    damage = InputError.exit_code if benchmark.damaged else 0
    console.result(
        lambda: {
            **benchmark_value(benchmark, accepted),
            "outputs": [str(path) for path in outputs],
            "failures": [{"message": exc.message, "hint": exc.hint} for exc in failures],
        },
        lambda: "\n".join(
            (
                benchmark_text(benchmark, accepted),
                *(f"written        {path}" for path in outputs),
                *(line for exc in failures for line in failure_lines(exc)),
            )
        ),
        exit_code=failures[0].exit_code if failures else damage,
    )


def _parsed_sizes(text: str) -> tuple[int, ...]:
    """``1,8,32`` as ascending numbers, each once.

    Raises:
        UsageError: It is something else.
    """
    try:
        return tuple(sorted({int(size) for size in text.split(",")}))
    except ValueError as exc:
        raise UsageError(
            f"{text!r} is no list of batch sizes.", hint="Write numbers: --batch-sizes 1,8,32"
        ) from exc
