"""``deploykit identify``: which architectures a checkpoint fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import Json, TrustPickle, Verbose


def identify(
    checkpoint: Annotated[Path, typer.Argument(help="The weights' file.")],
    timm: Annotated[
        bool, typer.Option("--timm", help="Compare with every network of timm: takes minutes.")
    ] = False,
    trust_pickle: TrustPickle = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Tell which architectures a checkpoint fits; exit code 4 when none does."""
    with command("identify", as_json=json, verbose=verbose) as console:
        import msgspec

        from deploykit.commands.identify.run import identify_checkpoint
        from deploykit.commands.identify.text import identification_text
        from deploykit.errors import CheckpointError

        found = identify_checkpoint(
            checkpoint, all_timm=timm, trust_pickle=trust_pickle, progress=console.progress
        )
        console.result(
            lambda: msgspec.to_builtins(found),
            lambda: identification_text(found),
            exit_code=0 if found.fits else CheckpointError.exit_code,
        )
