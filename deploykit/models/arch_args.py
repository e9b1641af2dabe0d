"""``--arch-arg key=value``: from the command line's text to the arguments of an architecture."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from deploykit.errors import UsageError

CONSTANTS = {"true": True, "false": False, "none": None}


def parse_arch_args(items: Sequence[str]) -> dict[str, object]:
    """Read ``k=2``, ``drop_rate=0.1``, ``block_config=6,12,24,16``, ``pretrained=false``.

    A value is a constant (``true``, ``false``, ``none``, in any case), a Python literal, a comma
    list of these (a tuple), or else text.

    Raises:
        UsageError: An item is not ``key=value``, or a key comes twice.
    """
    arguments: dict[str, object] = {}
    for item in items:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (equals and value and key.isidentifier()):
            raise UsageError(
                f"--arch-arg {item!r} is not KEY=VALUE.",
                hint="Write it as --arch-arg k=2, or --arch-arg block_config=6,12,24,16.",
            )
        if key in arguments:
            raise UsageError(f"--arch-arg {key} is given twice.", hint="Give it once.")
        arguments[key] = _value(value)
    return arguments


def _value(text: str) -> object:
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    try:
        literal: object = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if "," not in text:
            return text
        return tuple(_value(part.strip()) for part in text.split(",") if part.strip())
    return literal
