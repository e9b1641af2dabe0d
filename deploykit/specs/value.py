"""Values that read from and write to JSON strictly, and results that show themselves."""

from __future__ import annotations

import importlib
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


#: What words a result. A string, because this layer knows no command.
_WORDS = "deploykit.commands.python"


class Shown:
    """A result that prints as the text of its command.

    A dataclass that is one says ``repr=False``, or it would make a ``__repr__`` of its own.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        words: Any = importlib.import_module(_WORDS)
        return str(words.text_of(self))

    def _repr_html_(self) -> str:
        """The same for a notebook, with its tables as tables."""
        words: Any = importlib.import_module(_WORDS)
        return str(words.html_of(self))
