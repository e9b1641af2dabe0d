"""Values that read from and write to JSON strictly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from deploykit.errors import UsageError

_Choice = TypeVar("_Choice", bound=str)


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen value that reads from and writes to JSON strictly: an unknown field is an error."""


def choice(text: str, choices: Sequence[_Choice], what: str) -> _Choice:
    """The choice that a text names.

    Args:
        text: As the user wrote it.
        choices: What there is.
        what: What a choice is called, ``precision``.

    Raises:
        UsageError: It names none of them.
    """
    for each in choices:
        if each == text:
            return each
    raise UsageError(f"There is no {what} {text!r}; there are {', '.join(choices)}.")


def plain_value(value: msgspec.Struct) -> dict[str, Any]:
    """A value as plain types; numbers that are not finite become null."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return plain
