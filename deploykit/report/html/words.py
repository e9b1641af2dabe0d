"""What a proof and a run say, in sentences and in the units of people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.report.terminal import photos_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.proofs import Proof

_NARROW = "\u202f"


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
        f"{found.flips} of {found.decidable} decisions changed (flipped) against the "
        f"{proof.reference}"
    )
    if found.flip_rate_bound is not None:
        decided += (
            f"; if your photos are like those it was proven on, at most "
            f"{percent(found.flip_rate_bound)} will, with 95{_NARROW}% confidence"
        )
    sentences = [f"{decided}."]
    if found.undecidable:
        sentences.append(f"{found.undecidable} more photos were too close to call, and not judged.")
    if proof.kind == "executed":
        how = f"Executed in {proof.precision} on {proof.runtime}, {proof.device}"
    else:
        how = f"Rehearsed in {proof.precision} on a model of the hardware, which has not run it yet"
    sentences.append(f"{how}; with {photos_text(proof.photos)}.")
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
