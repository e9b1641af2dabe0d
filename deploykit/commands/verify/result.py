"""What a verification found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from deploykit.bundle.verdicts import PhotoSet, ReferenceKind
from deploykit.inference.candidates import Candidate
from deploykit.parity.accuracy import Accuracy
from deploykit.parity.answers import Answers
from deploykit.parity.mining import MarginMining
from deploykit.proof.verdict import Verdict
from deploykit.specs.shown import Shown


@dataclass(frozen=True, repr=False)
class Verification(Shown):
    """What was compared with what, on which images, and the verdicts.

    Attributes:
        reference: What the candidates were compared with, in words.
        reference_kind: What that is.
        is_recorded: Whether it stands for the bundle's own checkpoint; a module with other weights
            or code does not, and what agrees with it proves nothing of the bundle.
        photos: The images.
        unreadable: How many more could not be read.
        verdicts: One a candidate.
        answers: What the reference and the candidates answered, these in the verdicts' order.
        expected: The labels of those compared images whose folder names one, by the image's name.
        accuracy: On them, the reference's first, then each candidate's; empty without any, and
            where the images were chosen by their margins.
        created: When, UTC, ISO 8601.
        versions: Of the packages that took part.
        mining: What the comparison rests on where the images were chosen by their margins.
        skipped: The candidates that were not compared, and why.
        obstacle: Why the trained module was not asked, where the canonical graph stands in for it.
        seconds: How long it took, from listing the images to keeping the proofs; None where nobody
            looked. A reference that was open already took none.
    """

    reference: str
    reference_kind: ReferenceKind
    is_recorded: bool
    photos: PhotoSet
    unreadable: int
    verdicts: tuple[Verdict, ...]
    answers: Answers
    expected: Mapping[str, str]
    accuracy: tuple[Accuracy, ...]
    created: str
    versions: dict[str, str]
    mining: MarginMining | None = None
    skipped: Mapping[Candidate, str] = field(default_factory=dict)
    obstacle: str | None = None
    seconds: float | None = None

    @property
    def passed(self) -> bool:
        """Whether there is a verdict and every one passed."""
        return bool(self.verdicts) and all(verdict.passed for verdict in self.verdicts)

    def worst_photos(self, count: int) -> tuple[str, ...]:
        """The images to look at first: those that changed their class, then the largest errors.

        Args:
            count: How many at most.

        Returns:
            Their names; among equals the largest error of a logit of any candidate first.
        """
        ours, paths = self.answers.reference, self.answers.paths
        flipped = {flip.path for verdict in self.verdicts for flip in verdict.measurement.flipped}
        errors = np.zeros(len(paths))
        for theirs in self.answers.candidates:
            moved = np.abs(theirs.astype(np.float64) - ours).max(axis=1)
            errors = np.maximum(errors, np.where(np.isfinite(moved), moved, np.inf))
        order = sorted(range(len(paths)), key=lambda i: (paths[i] not in flipped, -errors[i]))
        return tuple(paths[i] for i in order[:count])
