"""``deploykit doctor``: what this machine can run, and what to install."""

from __future__ import annotations

from deploykit.console.command import command
from deploykit.console.options import Json, Verbose


def doctor(json: Json = False, verbose: Verbose = False) -> None:
    """Try each runtime on this machine, and show the command that mends what does not work."""
    with command("doctor", as_json=json, verbose=verbose) as console:
        import msgspec

        from deploykit.commands.doctor.run import examine_machine
        from deploykit.commands.doctor.text import examination_text

        examination = examine_machine(console.progress)
        console.result(
            lambda: msgspec.to_builtins(examination), lambda: examination_text(examination)
        )
