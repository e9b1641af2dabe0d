"""What a verification found: the one value that text, JSON, page and JUnit show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deploykit.bundle.verdicts import ImageSet
from deploykit.commands.diagnose.text import Diagnosis
from deploykit.commands.verify.table import TableMatch
from deploykit.inference.candidates import Candidate
from deploykit.parity.accuracy import Accuracy, ClassChange
from deploykit.parity.answers import Answers
from deploykit.parity.latency import Latency
from deploykit.parity.mining import MarginMining
from deploykit.parity.similarity import Similarity
from deploykit.proof.reference import Reference
from deploykit.proof.verdict import Verdict
from deploykit.specs.heads import ASSUMED_HEAD, Head
from deploykit.specs.session import SessionSpec
from deploykit.specs.value import Shown
from deploykit.system.text import command_line


@dataclass(frozen=True, repr=False)
class Verification(Shown):
    """What was compared with what, on which images, the verdicts, and the diagnosis.

    Attributes:
        reference: What the candidates were compared with.
        images: The images.
        unreadable: How many more could not be read.
        verdicts: One a candidate.
        answers: What the reference and the candidates answered, these in the verdicts' order.
        expected: The classes of those compared images of which they are known, by the image's name.
        truth: The table that tells them; "" where the folders' names do.
        head: What the logits mean.
        accuracy: On them, the reference's first, then each candidate's; empty without labels, and
            where the images were chosen by their margins.
        created: When, UTC, ISO 8601.
        versions: Of the packages that took part.
        mining: What the comparison rests on where the images were chosen by their margins.
        skipped: The candidates that were not compared, and why.
        seconds: Seconds from listing the images to the verdicts; None if not timed.
        folder: The bundle's folder; None for one that no command needs to name.
        diagnosis: By stage and by node, as far as it was asked for.
        similarities: How near embeddings are to the reference's, by what gave them; empty where no
            graph with embeddings was compared with it.
        class_changes: What becomes of each class's images in the candidates below FP32, and in
            what did not run here, by what gave the answers; empty where the images were chosen by
            their margins.
        latencies: How long a server takes, by what of it was asked.
        table: How another tool's table and the images fit each other; None where none is compared.
        options: Those of ``verify`` that name what is compared, where it did not run here.
        export_command: The command that exports the bundle again without the faults that the
            diagnosis by stage found; None where no option of ``export`` mends one.
    """

    reference: Reference
    images: ImageSet
    unreadable: int
    verdicts: tuple[Verdict, ...]
    answers: Answers
    expected: Mapping[str, tuple[str, ...]]
    accuracy: tuple[Accuracy, ...]
    created: str
    versions: dict[str, str]
    truth: str = ""
    head: Head = ASSUMED_HEAD
    mining: MarginMining | None = None
    skipped: Mapping[Candidate, str] = field(default_factory=dict)
    seconds: float | None = None
    folder: Path | None = None
    diagnosis: Diagnosis = field(default_factory=Diagnosis)
    export_command: str | None = None
    similarities: Mapping[SessionSpec, Similarity] = field(default_factory=dict)
    class_changes: Mapping[SessionSpec, tuple[ClassChange, ...]] = field(default_factory=dict)
    latencies: Mapping[SessionSpec, tuple[Latency, ...]] = field(default_factory=dict)
    table: TableMatch | None = None
    options: tuple[str, ...] = ()

    @property
    def candidates_passed(self) -> bool:
        """Whether there is a verdict and every one passed."""
        return bool(self.verdicts) and all(verdict.passed for verdict in self.verdicts)

    @property
    def passed(self) -> bool:
        """Whether the candidates passed, and the diagnosis found no fault."""
        return self.candidates_passed and self.diagnosis.passed

    def accuracy_sides(self) -> list[tuple[Accuracy, list[Verdict]]]:
        """The accuracies that differ, the reference's first, each with the candidates that have it.

        Empty without labels.
        """
        sides: list[tuple[Accuracy, list[Verdict]]] = [(each, []) for each in self.accuracy[:1]]
        for found, verdict in zip(self.accuracy[1:], self.verdicts, strict=False):
            known = (of for side, of in sides if found.tells_the_same(side, self.head))
            of = next(known, None)
            if of is None:
                sides.append((found, [verdict]))
            else:
                of.append(verdict)
        return sides

    def command(self, *options: str) -> str:
        """A command that verifies the same bundle, for a shell."""
        bundle = () if self.folder is None else ("--bundle", str(self.folder))
        return command_line(["deploykit", "verify", *bundle, *self.options, *options])

    def worst_images(self, count: int) -> tuple[str, ...]:
        """The images to look at first: those that changed their decision, then the largest errors.

        Args:
            count: How many at most.

        Returns:
            Their names; among equals the largest error of a logit of any candidate first.
        """
        ours, paths = self.answers.reference, self.answers.paths
        flipped = {flip.path for verdict in self.verdicts for flip in verdict.measurement.flipped}
        errors = np.zeros(len(paths))
        for verdict, theirs in zip(self.verdicts, self.answers.candidates, strict=True):
            if verdict.candidate.gives != "logits":
                continue
            moved = np.abs(theirs.astype(np.float64) - ours).max(axis=1)
            errors = np.maximum(errors, np.where(np.isfinite(moved), moved, np.inf))
        order = sorted(range(len(paths)), key=lambda i: (paths[i] not in flipped, -errors[i]))
        return tuple(paths[i] for i in order[:count])
