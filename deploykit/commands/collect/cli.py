"""``deploykit collect``: the tables of a run in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.commands.predict.cli import named_place, show_summary
from deploykit.console.command import command
from deploykit.console.options import Json, Verbose, named_path


def collect(
    run: Annotated[
        Path,
        typer.Argument(
            parser=named_place,
            metavar="RUN",
            help="The folder of a run, beside its first output: predictions.csv.run",
        ),
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(
            parser=named_path, metavar="PATH", help="The bundle, if it is not where it was."
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace outputs that another command wrote."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 6 if an image could not be read.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress, notes or summary.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make the tables of a run in shards.

    Each process of `deploykit predict --shard I/N` leaves its rows in the run's folder. When they
    are all there, this writes the tables and the page that the processes were given the names of,
    and _SUCCESS.json into the folder.
    """
    with command("collect", as_json=json, verbose=verbose, quiet=quiet) as console:
        from deploykit.commands.collect import run as job

        summary = job.collect(run, bundle=bundle, overwrite=overwrite, progress=console.progress)
        show_summary(console, summary, strict=strict, quiet=quiet)
