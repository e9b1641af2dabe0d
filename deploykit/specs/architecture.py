"""Which names of architectures mean code of the user."""

from __future__ import annotations


def names_user_code(architecture: str) -> bool:
    """Whether an architecture's name means the user's own code, rather than one that we know.

    Nothing but the name decides it: what a bundle says of itself is no evidence.
    """
    return ":" in architecture or architecture.endswith(".py")
