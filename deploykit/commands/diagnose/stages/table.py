"""The table of stages: a step is measured, judged, and written down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploykit.commands.diagnose.stages.images import StageImages
from deploykit.parity.diagnosis import Finding, Stage, StageStep
from deploykit.parity.measurement import Measurement
from deploykit.parity.measures import measure
from deploykit.parity.tolerance import image_reasons, tolerance_for
from deploykit.proof.images import LOOK_AT_THEM
from deploykit.specs.model import Labels, Precision
from deploykit.specs.session import Logits, Session
from deploykit.system.progress import Progress, Step

_NAMES_TOLD = 3


class StageTable:
    """The steps so far.

    Args:
        images: What the networks answer to.
        beginning: (N, K), the logits that the table begins with.
        network: What gave these logits, in words.
        labels: The classes' names.
        progress: Told of each step.

    Attributes:
        steps: In the order in which they were taken.
        findings: The faults that the steps showed.
    """

    def __init__(
        self,
        images: StageImages,
        beginning: Logits,
        *,
        network: str,
        labels: Labels,
        progress: Progress,
    ) -> None:
        self.images = images
        self.progress = progress
        self.steps: list[StageStep] = []
        self.findings: list[Finding] = []
        self._labels = labels
        self._precisions: set[Precision] = set()
        not_finite = np.flatnonzero(~np.isfinite(beginning).all(axis=1)).tolist()
        wrong = [images.names[row] for row in not_finite]
        if wrong:
            self._find(
                "network",
                f"{network} itself answers NaN or infinity to {len(wrong)} of {len(beginning)} "
                f"photos: {first_names(wrong)}",
                "No later stage is the cause. Training may have diverged: export a checkpoint of "
                "an earlier epoch, or train again with a lower learning rate.",
            )
        if images.unreadable is not None:
            self._find("images", images.unreadable, LOOK_AT_THEM)
        self._check_margins(beginning, "fp32")

    def add(
        self,
        stage: Stage,
        change: str,
        logits: Logits,
        *,
        since: Logits,
        precision: Precision = "fp32",
        rows: Sequence[int] | None = None,
        batch_sizes: Sequence[int] = (1,),
    ) -> StageStep:
        """Measure one change, judge what it adds, and write it down.

        Args:
            stage: Where the change is.
            change: What is done from here on.
            logits: (n, K), with the change.
            since: (N, K), without it. Where this is not finite already, the change is not judged.
            precision: With the change.
            rows: Of the n images among all N; None for all.
            batch_sizes: In which the images were run.
        """
        self._check_margins(since, precision)
        chosen = range(len(since)) if rows is None else rows
        added = self.compared(logits, since, chosen, precision=precision, batch_sizes=batch_sizes)
        # That the images decide little was so before the step, and is a finding of its own.
        reasons = tolerance_for(precision).exceeded(added)
        step = StageStep(stage=stage, change=change, added=added, reasons=reasons)
        self.steps.append(step)
        return step

    def compared(
        self,
        logits: Logits,
        right: Logits,
        rows: Sequence[int],
        *,
        precision: Precision = "fp32",
        batch_sizes: Sequence[int],
    ) -> Measurement:
        """Compare answers with others on the images to which those are finite.

        Args:
            logits: (n, K).
            right: (N, K).
            rows: Of the n images among all N.
            precision: Of the answers.
            batch_sizes: In which the images were run.
        """
        places = np.array(rows, np.intp)
        fine = np.isfinite(right[places]).all(axis=1)
        return measure(
            right[places[fine]],
            logits[fine],
            precision=precision,
            paths=[self.images.names[place] for place in places[fine]],
            labels=self._labels,
            batch_sizes=batch_sizes,
            least_scale=float(np.abs(right[np.isfinite(right)]).max(initial=0.0)),
        )

    def _check_margins(self, logits: Logits, precision: Precision) -> None:
        """Once a precision, find whether the images show enough about decisions."""
        if precision in self._precisions:
            return
        self._precisions.add(precision)
        rows = np.flatnonzero(np.isfinite(logits).all(axis=1)).tolist()
        found = self.compared(logits[rows], logits, rows, precision=precision, batch_sizes=())
        reasons = list(image_reasons(found)) if rows else []
        if reasons and all(each.stage != "images" for each in self.findings):
            self._find(
                "images",
                f"in {precision} {reasons[0]}",
                "Name photos like those that the network was trained on: --images DIR. If these "
                "are, the network can hardly tell them apart.",
            )

    def _find(self, stage: Stage, message: str, hint: str) -> None:
        self.findings.append(Finding(stage=stage, message=message, hint=hint))

    def ask(self, session: Session, change: str) -> Logits:
        """Let a session answer all images one by one."""
        self.progress(Step("diagnosing the stages", detail=change))
        return np.concatenate([session.run(image[None]) for image in self.images.pixels])


def first_names(names: Sequence[str]) -> str:
    """The first of some images' names."""
    more = ", ..." if len(names) > _NAMES_TOLD else ""
    return f"{', '.join(names[:_NAMES_TOLD])}{more}"
