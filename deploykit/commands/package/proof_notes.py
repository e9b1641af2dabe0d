"""What is known of a graph or an engine that leaves with a package."""

from __future__ import annotations

from collections.abc import Sequence

from deploykit.bundle.folder import Bundle
from deploykit.errors import ParityError
from deploykit.proof.policy import status_of


def proof_notes(bundle: Bundle, files: Sequence[str]) -> list[str]:
    """What is known of what will be served, a note a file.

    Raises:
        ParityError: It has failed, and nothing else shows that it may be trusted.
    """
    notes = []
    for file in files:
        known = [
            (kept, status_of(bundle, kept))
            for kept in bundle.manifest.verdicts
            if kept.graph == file
        ]
        passed = [kept for kept, status in known if status.proof is not None]
        failed = [status for _, status in known if status.word == "failed"]
        if failed and not passed:
            raise ParityError(
                f"{file} has failed its comparison: {failed[0].reason}.",
                hint=f"Compare it again: {bundle.command('verify', '--images', 'DIR')}",
            )
        if passed:
            places = dict.fromkeys(f"{kept.runtime}, {kept.device}" for kept in passed)
            notes.append(f"{file} is proven on {'; '.join(places)}; another device may differ")
        else:
            notes.append(f"{file} is not proven on any device of this machine")
    return notes
