"""What a candidate answers as it is deployed, and what speaks against that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploykit.commands.diagnose.layers.batches import BatchTrouble
from deploykit.commands.diagnose.layers.photos import Sample
from deploykit.parity.measures import measure
from deploykit.parity.tolerance import Population, tolerance_for
from deploykit.specs.labels import Labels
from deploykit.specs.session import Logits, SessionSpec


@dataclass(frozen=True, eq=False)
class Answered:
    """What a candidate answers as it is deployed.

    Attributes:
        spec: What ran.
        answers: (N, K), each image by itself; None where the graph cannot run.
        trouble: What is wrong with a batch's answer; None for nothing.
    """

    spec: SessionSpec
    answers: Logits | None = None
    trouble: BatchTrouble | None = None

    def by_error(self, expected: Logits, named: int) -> list[int]:
        """The rows of the images: the first, which were named, then by their error, most first."""
        rows = range(len(expected))
        if self.answers is None:
            return list(rows)
        errors = np.abs(self.answers.astype(np.float64) - expected).max(axis=1)
        errors[~np.isfinite(errors)] = np.inf
        return sorted(rows, key=lambda row: (row, 0.0) if row < named else (named, -errors[row]))

    def objection(self, expected: Logits, sample: Sample, labels: Labels) -> str | None:
        """Why ``verify`` would refuse the answers; None when it would not.

        Args:
            expected: (N, K), what is right.
            sample: The N images. It may hold every image that flips, so that flips are judged over
                all images that there are.
            labels: The K classes' names.
        """
        if self.answers is None:
            return "there is no answer"
        measurement = measure(
            expected,
            self.answers,
            precision=self.spec.precision,
            paths=sample.names,
            labels=labels,
            batch_sizes=(1,),
        )
        among = Population(images=sample.population, undecidable=0, near_ties=0)
        objections = tolerance_for(self.spec.precision).objections(measurement, among)
        return "; ".join(objections) or None
