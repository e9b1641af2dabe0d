"""``deploykit inspect``: what is in a bundle, an ONNX graph, an engine or a checkpoint."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import Artifacts, Json, TrustPickle, Verbose


def inspect(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|PATH",
            help="A bundle's name or folder, or an ONNX graph, an engine or a checkpoint.  "
            "[default: the newest bundle]",
            show_default=False,
        ),
    ] = None,
    trust_pickle: TrustPickle = False,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what is in a bundle, graph, engine or checkpoint.

    Exits with 4 if it is damaged.
    """
    bundle = None if what is None or os.path.isfile(what) else what  # noqa: PTH113  # never raises
    with command(
        "inspect", as_json=json, verbose=verbose, bundle=bundle, artifacts=artifacts
    ) as console:
        from deploykit.commands.inspect import run
        from deploykit.commands.inspect.text import inspection_text, inspection_value
        from deploykit.errors import InputError

        found = run.inspect(
            what, trust_pickle=trust_pickle, artifacts=artifacts, progress=console.progress
        )
        console.result(
            lambda: inspection_value(found),
            lambda: inspection_text(found),
            exit_code=0 if found.sound else InputError.exit_code,
        )
