"""``deploykit doctor``: what this machine can run, and what to install."""

from __future__ import annotations

from deploykit.console.command import command
from deploykit.console.options import Json, Verbose


def doctor(json: Json = False, verbose: Verbose = False) -> None:
    """Show what this machine can run, and for each gap the command that closes it."""
    with command("doctor", as_json=json, verbose=verbose) as console:
        from deploykit.commands.doctor.run import examine_machine
        from deploykit.commands.doctor.text import examination_text, examination_value

        examination = examine_machine()
        console.result(
            lambda: examination_value(examination), lambda: examination_text(examination)
        )
