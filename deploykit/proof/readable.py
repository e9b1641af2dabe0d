"""Whether enough photos can be read for these to stand for all."""

from __future__ import annotations

from deploykit.system.text import counted


def mostly_unreadable(unreadable: int, readable: int) -> str | None:
    """Say why nothing can be shown where most photos cannot be read; None where most can.

    Args:
        unreadable: How many could not be read.
        readable: How many could.
    """
    if unreadable <= readable:
        return None
    return (
        f"{unreadable} of {counted(unreadable + readable, 'photo')} cannot be read: what is left "
        "of them stands for nothing"
    )
