"""``deploykit identify``: which architectures a checkpoint fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import Json, TrustPickle, Verbose


def identify(
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE", help="The checkpoint.")],
    timm: Annotated[
        bool, typer.Option("--timm", help="Compare with every network of timm too; takes minutes.")
    ] = False,
    trust_pickle: TrustPickle = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Find the architectures that a checkpoint fits.

    Exits with 4 if there is none.
    """
    with command("identify", as_json=json, verbose=verbose) as console:
        import msgspec

        from deploykit.commands.identify import run
        from deploykit.commands.identify.text import identification_text
        from deploykit.errors import CheckpointError

        found = run.identify(
            checkpoint, timm=timm, trust_pickle=trust_pickle, progress=console.progress
        )
        console.result(
            lambda: msgspec.to_builtins(found),
            lambda: identification_text(found),
            exit_code=0 if found.fits else CheckpointError.exit_code,
        )
