"""What the user allows a graph below FP32 to lose, instead of what its precision allows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Self

from deploykit.errors import UsageError
from deploykit.specs.value import Value

_RATE = re.compile(r"(\d+\.?\d*|\.\d+) ?(%?)", re.ASCII)
_WRITE_RATE = "Write a part of the images: --max-flips 1% or --max-flips 0.01"
_WRITE_POINTS = "Write points of accuracy, from 0 to 100: --max-accuracy-drop 1"


class Budget(Value, frozen=True):
    """What the user allows a graph below FP32; one of both at least.

    Attributes:
        max_flip_rate: Flips for each decidable image, 0..1; None for any.
        max_accuracy_drop: By how many points (0..100) the accuracy on the same labelled images may
            fall; None for any.
    """

    max_flip_rate: float | None = None
    max_accuracy_drop: float | None = None

    def __post_init__(self) -> None:
        rate, points = self.max_flip_rate, self.max_accuracy_drop
        if rate is None and points is None:
            raise UsageError("A budget allows flips or a drop of accuracy.", hint=_WRITE_RATE)
        # Written so that what is not a number is refused as well.
        if rate is not None and not 0 <= rate <= 1:
            raise UsageError(f"At most {rate:.6g} of the images makes no sense.", hint=_WRITE_RATE)
        if points is not None and not 0 <= points <= 100:
            raise UsageError(
                f"A drop of accuracy by {points:g} points makes no sense.", hint=_WRITE_POINTS
            )

    def __str__(self) -> str:
        return " and ".join(self._words())

    @property
    def options(self) -> tuple[str, ...]:
        """The options that give it, for a command."""
        rate, points = self.max_flip_rate, self.max_accuracy_drop
        flips = () if rate is None else ("--max-flips", f"{_plain(100 * rate)}%")
        drop = () if points is None else ("--max-accuracy-drop", _plain(points))
        return (*flips, *drop)

    @property
    def of_flips(self) -> Self | None:
        """The same without the accuracy; None where it allows nothing else."""
        rate = self.max_flip_rate
        return None if rate is None else type(self)(max_flip_rate=rate)

    def _words(self) -> Iterator[str]:
        if self.max_flip_rate is not None:
            yield f"at most {_plain(100 * self.max_flip_rate)} % of the decisions may change"
        if self.max_accuracy_drop is not None:
            points = self.max_accuracy_drop
            unit = "point" if points == 1 else "points"
            yield f"the accuracy may fall by at most {_plain(points)} {unit}"

    @classmethod
    def parse(
        cls, max_flips: str | float | None, max_accuracy_drop: str | float | None
    ) -> Self | None:
        """A budget as the user writes it; None where none is given.

        Args:
            max_flips: ``1%``, or a part below 1: ``0.01``. A plain 1 could be either.
            max_accuracy_drop: Points: ``1`` from 90 % allows 89 %.

        Raises:
            UsageError: It is something else.
        """
        if max_flips is None and max_accuracy_drop is None:
            return None
        rate = None if max_flips is None else _rate(_text(max_flips))
        points = None if max_accuracy_drop is None else _points(_text(max_accuracy_drop))
        return cls(max_flip_rate=rate, max_accuracy_drop=points)


def _text(given: str | float) -> str:
    return given.strip() if isinstance(given, str) else _plain(given)


def _plain(number: float) -> str:
    """A number without an exponent, and without what binary fractions add: ``0.00001``."""
    return f"{Decimal(f'{number:.12g}'):f}"


def _rate(text: str) -> float:
    match = _RATE.fullmatch(text)
    # Decimal, because 0.7 / 100 is less than 0.007, and 7 of 1,000 images are not.
    value = Decimal(match[1]) / (100 if match[2] else 1) if match else Decimal(-1)
    if not 0 <= value <= 1:
        raise UsageError(f"{text!r} is no part of the images for --max-flips.", hint=_WRITE_RATE)
    if match and value == 1 and not match[2]:
        raise UsageError(
            f"--max-flips {text} is every image, or 1 % of them?",
            hint="Write --max-flips 1% or --max-flips 100%",
        )
    return float(value)


def _points(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise UsageError(f"{text!r} are no points for --max-accuracy-drop.", hint=_WRITE_POINTS)
    return value
