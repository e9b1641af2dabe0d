"""``deploykit doctor``: what this machine can run, and what to install."""

from __future__ import annotations

from deploykit.cli.console import command
from deploykit.cli.options import Json, Verbose


def doctor(json: Json = False, verbose: Verbose = False) -> None:
    """Show what this machine can run, and for each gap the command that closes it."""
    with command("doctor", as_json=json, verbose=verbose) as console:
        from deploykit.jobs.doctor import examine_machine
        from deploykit.report.machine import examination_text, examination_value

        examination = examine_machine()
        console.result(
            lambda: examination_value(examination), lambda: examination_text(examination)
        )
