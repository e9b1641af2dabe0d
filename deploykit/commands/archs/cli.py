"""``deploykit archs``: what ``--arch`` can name."""

from __future__ import annotations

from typing import Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import Json, Verbose


def archs(
    pattern: Annotated[
        str | None, typer.Argument(help="List only names that contain this.", show_default=False)
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the architectures that --arch accepts."""
    with command("archs", as_json=json, verbose=verbose) as console:
        from deploykit.commands.archs.run import architecture_names

        names = {
            origin: [name for name in known if pattern is None or pattern in name]
            for origin, known in architecture_names().items()
        }
        found = [name for known in names.values() for name in known]
        if not found:
            console.note(f"no architecture's name contains {pattern!r}")
        console.result(lambda: names, lambda: "\n".join(found))
