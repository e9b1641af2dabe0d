"""What a proof and a run say, in sentences and in the units of people."""

from __future__ import annotations

import math
import re
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from deploykit.system.text import NARROW_SPACE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

_SUPERSCRIPTS = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)

# Control characters, and those that turn the direction of the text around them; as in dom.js.
_UNSEEN = re.compile(
    "[\\u0000-\\u001f\\u007f-\\u009f\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff]"
)


class Share(NamedTuple):
    """A part of a whole, for a bar: where it begins and how long it is, in percent of the bar."""

    name: str
    seconds: float
    start: float
    percent: float


def shares(seconds: Mapping[str, float]) -> list[Share]:
    """The parts of a whole in the order they are given; none where the whole is nothing."""
    total = sum(seconds.values())
    if total <= 0:
        return []
    starts = accumulate(seconds.values(), initial=0.0)
    return [
        Share(name, part, 100 * start / total, 100 * part / total)
        for (name, part), start in zip(seconds.items(), starts, strict=False)
    ]


def percent(part: float) -> str:
    """``1.3 %`` of 0.013, with a space that neither breaks nor is wide."""
    return f"{100 * part:.1f}{NARROW_SPACE}%"


def number(value: float) -> str:
    """``0.0123``, or ``1.3 \u00b7 10\u207b\u2076`` where the zeros would have to be counted."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}{NARROW_SPACE}\u00b7{NARROW_SPACE}{power_of_ten(int(exponent))}"


def power_of_ten(exponent: int) -> str:
    """``10\u207b\u2076`` of -6."""
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def sentence_of(text: str) -> str:
    """``Two logits are NaN.`` of ``two logits are NaN``."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def visible(text: str) -> str:
    """A text with the characters that nobody sees written as escapes, so that no name hides."""
    return _UNSEEN.sub(lambda unseen: f"\\u{ord(unseen[0]):04x}", text)


def stranger(text: str) -> Markup:
    """A text of a stranger's, kept from changing the direction of what stands beside it."""
    from markupsafe import Markup

    return Markup("<bdi>{}</bdi>").format(visible(text))


def duration(seconds: float) -> str:
    """``820 ms``, ``6.5 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f}{NARROW_SPACE}ms"
    if seconds < 99.95:
        return f"{seconds:.1f}{NARROW_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NARROW_SPACE}min {rest}{NARROW_SPACE}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NARROW_SPACE}h {minutes:02}{NARROW_SPACE}min"
