"""The table of a walk, and how it grows: a step is measured, then judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploykit.commands.diagnose.stages.doubts import (
    network_fault,
    objections_to_change,
    photos_fault,
    unreadable_fault,
)
from deploykit.commands.diagnose.stages.photos import StagePhotos
from deploykit.parity.diagnosis import Finding, Stage, StageStep
from deploykit.parity.measures import measure
from deploykit.parity.tolerance import tolerance_for
from deploykit.specs.labels import Labels
from deploykit.specs.precision import Precision
from deploykit.specs.session import Logits, Session
from deploykit.system.progress import Progress, Step


class Walk:
    """The steps so far.

    Args:
        photos: What the networks answer to.
        beginning: (N, K), the logits that the walk begins with.
        network: What gave them, in words.
        labels: The classes' names.
        progress: Told of each step.

    Attributes:
        steps: In the order in which they were taken.
        findings: The faults that the steps showed.
    """

    def __init__(
        self,
        photos: StagePhotos,
        beginning: Logits,
        *,
        network: str,
        labels: Labels,
        progress: Progress,
    ) -> None:
        self.photos = photos
        self.labels = labels
        self.progress = progress
        self.steps: list[StageStep] = []
        faults = (
            network_fault(beginning, photos.names, network),
            unreadable_fault(photos.unreadable, len(photos.files) + photos.copies),
            photos_fault(beginning, "fp32"),
        )
        self.findings: list[Finding] = [fault for fault in faults if fault is not None]
        self._beginning = beginning
        self._doubted: set[Precision] = {"fp32"}

    def step(
        self,
        stage: Stage,
        change: str,
        logits: Logits,
        *,
        since: Logits,
        precision: Precision = "fp32",
    ) -> StageStep:
        """Measure one change on all photos, judge what it adds, and write it down.

        Args:
            stage: Where the change is.
            change: What is done from here on.
            logits: (N, K), with the change.
            since: (N, K), without it. Where this is not finite already, the change is not judged.
            precision: With the change.
        """
        if precision not in self._doubted:
            self._doubted.add(precision)
            fault = photos_fault(since, precision)
            if fault is not None and all(each.stage != "photos" for each in self.findings):
                self.findings.append(fault)
        places = range(len(since))
        return self.part_step(
            stage, change, places, logits, since=since, precision=precision, batch_sizes=(1,)
        )

    def part_step(
        self,
        stage: Stage,
        change: str,
        places: Sequence[int],
        logits: Logits,
        *,
        since: Logits,
        precision: Precision = "fp32",
        batch_sizes: Sequence[int],
    ) -> StageStep:
        """Measure one change on some of the photos; see :meth:`step`.

        Args:
            stage: Where the change is.
            change: What is done from here on.
            places: Of the n photos among all N.
            logits: (n, K), with the change.
            since: (N, K), without it.
            precision: With the change.
            batch_sizes: In which the photos were run.
        """
        rows = np.array(places, np.intp)
        fine = np.isfinite(since[rows]).all(axis=1)
        tolerance = tolerance_for(precision)
        added, total = (
            measure(
                reference[rows[judged]],
                logits[judged],
                precision=precision,
                paths=[self.photos.names[row] for row in rows[judged]],
                labels=self.labels,
                batch_sizes=batch_sizes,
                least_scale=largest(reference),
            )
            for reference, judged in ((since, fine), (self._beginning, np.ones_like(fine)))
        )
        self.steps.append(
            StageStep(
                stage=stage,
                change=change,
                added=added,
                total=total,
                tolerance=tolerance,
                objections=objections_to_change(added, tolerance),
            )
        )
        return self.steps[-1]

    def ask(self, session: Session, change: str) -> Logits:
        """Let a session answer all photos one by one."""
        self.progress(Step("walking the stages", detail=change))
        return np.concatenate([session.run(image) for image in self.photos.one_by_one()])


def largest(logits: Logits) -> float:
    """The largest absolute logit of those that are finite; 0 without any."""
    return float(np.abs(logits[np.isfinite(logits)]).max(initial=0.0))
