"""What a proof and a run say, in sentences and in the units of people."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.report.claims import searched_text
from deploykit.report.terminal import photos_text, rate_digits
from deploykit.specs import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

    from deploykit.proofs import Proof

_NARROW = "\u202f"
_SUPERSCRIPTS = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)

# Control characters, and those that turn the direction of the text around them; as in dom.js.
_UNSEEN = re.compile(
    "[\\u0000-\\u001f\\u007f-\\u009f\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff]"
)


@dataclass(frozen=True)
class Share:
    """A part of a whole, for a bar.

    Attributes:
        name: ``decode``.
        seconds: How long it took.
        start: Where it begins in the bar, in percent of its length.
        percent: Its part of the whole.
    """

    name: str
    seconds: float
    start: float
    percent: float


def proof_words(proof: Proof) -> list[str]:
    """What a proof shows, a sentence each, the most important first."""
    found = proof.measurement
    decided = (
        f"{found.flips} of {counted(found.decidable, 'decision')} changed (flipped) against the "
        f"{proof.reference}"
    )
    rate = proof.flip_rate_bound
    if rate is not None:
        decided += (
            f"; if your photos are like those it was proven on, at most "
            f"{bound(rate)} will, with 95{_NARROW}% confidence"
        )
    sentences = [f"{decided}."]
    if found.undecidable:
        what = "photo" if proof.photos.kind == "photos" else "image"
        more = counted(found.undecidable, f"more {what} was", f"more {what}s were")
        sentences.append(f"{more} too close to call, and not judged.")
    if proof.kind == "executed":
        how = f"Executed in {proof.precision} on {proof.runtime}, {proof.device}"
    else:
        how = f"Rehearsed in {proof.precision} on a model of the hardware, which has not run it yet"
    sentences.append(
        f"{how}; with {photos_text(proof.photos)}{searched_text(proof)}, through the recorded "
        "preprocessing."
    )
    sentences.append(
        f"The largest change of a probability was {found.max_probability_change:.1e}, the largest "
        f"error of a logit {found.max_relative_error:.1e} of the scale."
    )
    return sentences


def shares(seconds: Mapping[str, float]) -> list[Share]:
    """The parts of a whole in the order they are given; none where the whole is nothing."""
    total = sum(seconds.values())
    if total <= 0:
        return []
    parts, start = [], 0.0
    for name, part in seconds.items():
        width = 100 * part / total
        parts.append(Share(name, part, start, width))
        start += width
    return parts


def percent(part: float) -> str:
    """``1.3 %`` of 0.013, with a space that neither breaks nor is wide."""
    return f"{100 * part:.1f}{_NARROW}%"


def number(value: float) -> str:
    """``0.0123``, or ``1.3 \u00b7 10\u207b\u2076`` where the zeros would have to be counted."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}{_NARROW}\u00b7{_NARROW}{power_of_ten(int(exponent))}"


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


def bound(rate: float) -> str:
    """A rate in percent that must not look like none, see :func:`rate_digits`."""
    return f"{rate_digits(rate)}{_NARROW}%"


def duration(seconds: float) -> str:
    """``820 ms``, ``6.5 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f}{_NARROW}ms"
    if seconds < 99.95:
        return f"{seconds:.1f}{_NARROW}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_NARROW}min {rest}{_NARROW}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{_NARROW}h {minutes:02}{_NARROW}min"
