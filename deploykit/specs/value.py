"""Values that read from and write to JSON strictly, and results that show themselves."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from deploykit.errors import UsageError

_Choice = TypeVar("_Choice", bound=str)
_Decoded = TypeVar("_Decoded")


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen value that reads from and writes to JSON strictly: an unknown field is an error."""


def decode_json(data: bytes | str, kind: type[_Decoded]) -> _Decoded:
    """Read a value from JSON that anybody may have written.

    Args:
        data: The text; as bytes UTF-8.
        kind: What it should be, for msgspec: a Value, ``tuple[str, ...]``.

    Raises:
        ValueError: It is no such value: no UTF-8 or no JSON, nested too deeply, with a key twice,
            of another type, or with what JSON cannot hold again.
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
        json.loads(text, object_pairs_hook=_without_repeats)
        value = msgspec.json.decode(text, type=kind)
        # It may be shown as JSON later, which not all that can be read can be.
        msgspec.json.encode(value)
    except (msgspec.MsgspecError, UsageError, ValueError, OverflowError) as exc:
        raise ValueError(str(exc).rstrip(".")) from exc
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc
    return value


class _Versioned(msgspec.Struct):
    schema: int


def schema_of(data: bytes) -> int:
    """The version of the layout that JSON says it has, whatever else is in it.

    Raises:
        ValueError: It is no such JSON, see :func:`decode_json`.
    """
    return decode_json(data, _Versioned).schema


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; whichever of two values counts, a reader of the text may have seen the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(key for key in found if sum(key == each for each, _ in pairs) > 1)
        raise ValueError(f"it has {repeated!r} twice")
    return found


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
    raise UsageError(f"{text!r} is no {what}; there are {', '.join(choices)}.")


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
