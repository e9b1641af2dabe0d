"""Margin mining: what a comparison of the images with the lowest margins shows, and what not."""

from __future__ import annotations

import numpy as np

from deploykit.parity.measurement import UNDECIDABLE_MARGIN, Measurement
from deploykit.parity.tolerance import Population
from deploykit.specs.heads import Array, BaseHead
from deploykit.specs.model import Precision
from deploykit.specs.session import Logits
from deploykit.specs.value import Value
from deploykit.system.text import counted


class MarginMining(Value, frozen=True):
    """What a comparison of the images with the lowest margins rests on.

    Attributes:
        compared: How many images were compared.
        ranked: How many were ranked by their margin, these included.
        skipped: How many readable ones were not ranked: duplicates, and calibration images.
        ranked_by: What gave the margins that they were ranked by, ``deploy/fp32.onnx on
            onnxruntime-cpu``.
        ranking_error: The most by which such a margin differs from the reference's, over the
            compared images.
        smallest_skipped: The smallest margin of an image that was ranked and not compared; None
            if all were compared.
        lost: For each candidate, by ``graph on runtime``, the most by which what it changed of one
            compared image can take a margin away; infinite where a logit is not finite.
    """

    compared: int
    ranked: int
    ranked_by: str
    ranking_error: float
    smallest_skipped: float | None
    lost: dict[str, float]
    skipped: int = 0

    def others_hold(self, name: str) -> bool:
        """Whether a candidate is shown to change the decision of no image that was not compared.

        Args:
            name: One of ``lost``.
        """
        # The ranking may rate a margin higher than the reference does.
        return self.smallest_skipped is None or (
            self.lost[name] + self.ranking_error < self.smallest_skipped
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the comparison proves and does not prove, in words."""
        lowest = counted(self.compared, "with the lowest was", "with the lowest were")
        lines = [
            f"{counted(self.ranked, 'photo was', 'photos were')} ranked by the margins that "
            f"{self.ranked_by} gives; the {lowest} compared, the lowest first.",
            "They were chosen by margin, so there is no bound for photos like them, and passing "
            "is no proof that the bundle could keep.",
        ]
        if self.skipped:
            skipped = counted(self.skipped, "more was", "more were")
            lines.append(f"{skipped} skipped: duplicates, or calibration images.")
        if self.smallest_skipped is None:
            whole = "All were compared: without --lowest-margins the same photos give a bound."
            return (*lines, whole)
        others = counted(self.ranked - self.compared, "other photo", "other photos")
        lines.append(
            f"The smallest margin of the {others} is {self.smallest_skipped:.2g}: one of them "
            "changes its decision only if its margin loses more than that."
        )
        lines += (self._reach(name, lost) for name, lost in self.lost.items())
        if self.ranking_error > self.smallest_skipped:
            lines.append(
                f"The ranking is uncertain: its margins differ from the reference's by up to "
                f"{self.ranking_error:.2g}, more than the smallest margin of the others."
            )
        return tuple(lines)

    def _reach(self, name: str, lost: float) -> str:
        """How far a candidate is from changing the decision of an image that was not compared."""
        found = f"On the compared photos {name} took at most {lost:.2g} off a margin"
        if not self.others_hold(name):
            return (
                f"{found}: the others may change their decision too, so the flips are judged over "
                "the compared ones alone. Compare all photos, without --lowest-margins."
            )
        if lost == 0:
            return f"{found}: nothing moved."
        times = ((self.smallest_skipped or 0.0) - self.ranking_error) / lost
        return f"{found}: it would take {times:,.{0 if times >= 10 else 1}f} times that."


def lost_margin(reference: Logits, candidate: Logits, head: BaseHead) -> float:
    """The most by which a candidate's changes can take a margin away.

    Args:
        reference: (N, L), N at least 1.
        candidate: (N, L).
        head: What the logits mean.

    Returns:
        The largest of all rows; infinite where a logit is not finite.
    """
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        return float("inf")
    changes = candidate.astype(np.float64) - reference.astype(np.float64)
    return float(head.lost_margins(changes).max(initial=0.0))


def population_of(
    ranked: Array,
    precision: Precision,
    found: Measurement,
    *,
    others_hold: bool,
) -> Population:
    """All ranked images, over which the rates of a sample with the lowest margins are judged.

    Args:
        ranked: (N,) every image's margin as a part of its own scale; see
            the smallest of :meth:`deploykit.specs.heads.BaseHead.relative_margins`.
        precision: The candidate's.
        found: What was measured on the sample. Where the reference decides fewer of its images
            than the ranking says of all, the reference is believed.
        others_hold: See :meth:`MarginMining.others_hold`.
    """
    undecidable = int((ranked <= UNDECIDABLE_MARGIN[precision]).sum())
    return Population(
        images=len(ranked),
        undecidable=max(undecidable, found.undecidable),
        others_hold=others_hold,
    )
