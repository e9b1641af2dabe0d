"""The table of stages: a step is measured, judged, and written down."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from deploykit.commands.diagnose.stages.photos import StagePhotos
from deploykit.parity.diagnosis import Finding, Stage, StageStep
from deploykit.parity.measurement import UNDECIDABLE_MARGIN, UNDECIDED_MARGIN, Measurement
from deploykit.parity.measures import margins, measure
from deploykit.parity.tolerance import (
    MAX_UNDECIDABLE_RATE,
    MIN_DECIDABLE_RATE,
    Population,
    Tolerance,
    tolerance_for,
)
from deploykit.proof.photos import mostly_unreadable
from deploykit.specs.model import Labels, Precision
from deploykit.specs.session import Logits, Session
from deploykit.system.progress import Progress, Step

_NAMES_TOLD = 3


class StageTable:
    """The steps so far.

    Args:
        photos: What the networks answer to.
        beginning: (N, K), the logits that the table begins with.
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
        findings = (
            _network_finding(beginning, photos.names, network),
            _unreadable_finding(photos),
            _margin_finding(beginning, "fp32"),
        )
        self.findings: list[Finding] = [each for each in findings if each is not None]
        self._beginning = beginning
        self._precisions: set[Precision] = {"fp32"}

    def add(
        self,
        stage: Stage,
        change: str,
        logits: Logits,
        *,
        since: Logits,
        precision: Precision = "fp32",
        places: Sequence[int] | None = None,
        batch_sizes: Sequence[int] = (1,),
        reasons: tuple[str, ...] = (),
    ) -> StageStep:
        """Measure one change, judge what it adds, and write it down.

        Args:
            stage: Where the change is.
            change: What is done from here on.
            logits: (n, K), with the change.
            since: (N, K), without it. Where this is not finite already, the change is not judged.
            precision: With the change.
            places: Of the n photos among all N; None for all.
            batch_sizes: In which the photos were run.
            reasons: Why it failed, where that is known without a measurement.
        """
        if precision not in self._precisions:
            self._precisions.add(precision)
            finding = _margin_finding(since, precision)
            if finding is not None and all(each.stage != "photos" for each in self.findings):
                self.findings.append(finding)
        rows = np.arange(len(since)) if places is None else np.array(places, np.intp)
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
        step = StageStep(
            stage=stage,
            change=change,
            added=added,
            total=total,
            tolerance=tolerance,
            reasons=reasons or reasons_against(added, tolerance),
        )
        self.steps.append(step)
        return step

    def ask(self, session: Session, change: str) -> Logits:
        """Let a session answer all photos one by one."""
        self.progress(Step("diagnosing the stages", detail=change))
        return np.concatenate([session.run(image[None]) for image in self.photos.pixels])


def largest(logits: Logits) -> float:
    """The largest absolute logit of those that are finite; 0 without any."""
    return float(np.abs(logits[np.isfinite(logits)]).max(initial=0.0))


def reasons_against(added: Measurement, tolerance: Tolerance) -> tuple[str, ...]:
    """Why a step fails by what it changes, a sentence each.

    That the photos decide little was so before the step, and is a finding of its own.

    Args:
        added: What the step adds, on images to which the step before gave finite answers.
        tolerance: What it may add.
    """
    if added.images == 0:
        return ()
    decided = msgspec.structs.replace(
        added, flipped=tuple(flip for flip in added.flipped if flip.decidable)
    )
    among = Population(images=max(added.decidable, 1), undecidable=0, undecided=0)
    return tolerance.reasons(decided, among)


def _network_finding(logits: Logits, names: Sequence[str], network: str) -> Finding | None:
    """Name a network whose answers are not finite at the beginning; None for finite ones."""
    wrong = [names[row] for row in np.flatnonzero(~np.isfinite(logits).all(axis=1)).tolist()]
    if not wrong:
        return None
    more = ", ..." if len(wrong) > _NAMES_TOLD else ""
    return Finding(
        stage="network",
        message=f"{network} itself answers NaN or infinity to {len(wrong)} of {len(names)} photos: "
        f"{', '.join(wrong[:_NAMES_TOLD])}{more}",
        hint="No later stage is the cause. Training may have diverged: export a checkpoint of an "
        "earlier epoch, or train again with a lower learning rate.",
    )


def _unreadable_finding(photos: StagePhotos) -> Finding | None:
    """Name photos most of which cannot be read; None where most can."""
    message = mostly_unreadable(photos.unreadable, len(photos.files) + photos.duplicates)
    if message is None:
        return None
    return Finding(
        stage="photos",
        message=message,
        hint="`deploykit predict` says what is wrong with each; or name other photos: --images DIR",
    )


def _margin_finding(logits: Logits, precision: Precision) -> Finding | None:
    """Name photos that show too little about decisions; None where they show enough.

    Args:
        logits: (N, K), the answers whose margins decide. Rows that are not finite don't count.
        precision: Of the step that is judged by these margins.
    """
    usable = logits[np.isfinite(logits).all(axis=1)]
    if len(usable) == 0:
        return None
    images, margin, scale = len(usable), margins(usable), float(np.abs(usable).max())
    ties = int((margin <= UNDECIDED_MARGIN * scale).sum())
    decidable = int((margin > UNDECIDABLE_MARGIN[precision] * scale).sum())
    if ties > MAX_UNDECIDABLE_RATE * images:
        message = (
            f"{ties} of {images} images are undecided: the network's two best classes lie within "
            f"{UNDECIDED_MARGIN:.0e} of the scale; at most {MAX_UNDECIDABLE_RATE:.0%} may"
        )
    elif decidable < MIN_DECIDABLE_RATE * images:
        message = (
            f"only {decidable} of {images} photos have a margin that decides in {precision}; "
            f"at least {MIN_DECIDABLE_RATE:.0%} must"
        )
    else:
        return None
    return Finding(
        stage="photos",
        message=message,
        hint="Name photos like those that the network was trained on: --images DIR. If these are, "
        "the network can hardly tell them apart.",
    )
