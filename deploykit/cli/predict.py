"""``deploykit predict``: one row for each image file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli.console import command
from deploykit.cli.options import (
    RUNTIME_NAMES,
    Artifacts,
    BundleName,
    Json,
    PrecisionName,
    Tf32,
    Verbose,
    chosen_bundle,
    parsed_precision,
)
from deploykit.errors import ImagesError, UnreadableImagesError

if TYPE_CHECKING:
    from deploykit.jobs.predict import PredictionRun
    from deploykit.report.tables import TableWriter


def predict(
    source: Annotated[Path, typer.Argument(help="A folder of images, or one image file.")],
    output: Annotated[Path, typer.Option(help="The table to write: .csv or .jsonl.")] = Path(
        "predictions.csv"
    ),
    bundle: BundleName = None,
    top_k: Annotated[
        int | None, typer.Option(help="How many classes a row ranks.  [default: at most 5]")
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(help=f"What executes: {RUNTIME_NAMES}, or auto for the fastest proven."),
    ] = "auto",
    precision: PrecisionName = None,
    tf32: Tf32 = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a run.")] = 8,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.  [default: one a core]")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 6 when an image could not be read.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, no notes, no summary.")
    ] = False,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Predict a folder of images: exactly one row a file, whatever is wrong with it."""
    with command("predict", as_json=json, verbose=verbose, quiet=quiet) as console:
        from deploykit.jobs.predict import PredictionRun, PredictRequest
        from deploykit.report.tables import open_table
        from deploykit.report.terminal import prediction_text
        from deploykit.report.values import prediction_value

        request = PredictRequest(
            source=source,
            top_k=top_k,
            runtime=runtime,
            precision=parsed_precision(precision),
            tf32=tf32,
            batch_size=batch_size,
            threads=threads,
        )
        chosen = chosen_bundle(bundle, artifacts, console)
        with PredictionRun(chosen, request, console.progress) as run:
            spec = run.spec
            console.note(f"{spec.graph} in {spec.precision} on {spec.runtime}, {spec.device}")
            with open_table(output, top_k=run.top_k) as table:
                nothing_predicted = _write_rows(run, table)
        if nothing_predicted:
            raise nothing_predicted
        tally = run.tally
        failed = tally.failures.total()
        console.result(
            lambda: prediction_value(tally, spec, [str(output)]),
            lambda: "" if quiet else prediction_text(tally, spec, [output]),
            exit_code=UnreadableImagesError.exit_code if strict and failed else 0,
        )


def _write_rows(run: PredictionRun, table: TableWriter) -> ImagesError | None:
    """Write one row a file.

    Returns:
        The error to end with when not one file has a prediction. It is not raised, because the
        table is whole: each of its rows says what is wrong with a file.
    """
    try:
        for row in run:
            table.write(row)
    except ImagesError as error:
        return ImagesError(error.message, hint=f"{table.path} says what is wrong with each.")
    return None
