"""``deploykit doctor``: what this machine can run, and what to install."""

from __future__ import annotations

from deploykit.console.command import command
from deploykit.console.options import Json, Verbose


def doctor(json: Json = False, verbose: Verbose = False) -> None:
    """Check which runtimes work on this machine.

    Each one runs a small network; for one that does not work, shows the command that helps.
    """
    with command("doctor", as_json=json, verbose=verbose) as console:
        import msgspec

        from deploykit.commands.doctor.run import examine_machine
        from deploykit.commands.doctor.text import examination_text

        examination = examine_machine(console.progress)
        console.result(
            lambda: msgspec.to_builtins(examination), lambda: examination_text(examination)
        )
