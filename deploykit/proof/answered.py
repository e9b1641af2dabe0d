"""What the searches of FP16 and INT8 share: photos that the reference answered, and their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.bundle.manifest import Manifest
from deploykit.bundle.verdicts import ImageSet
from deploykit.errors import ParityError
from deploykit.parity.budget import Budget
from deploykit.parity.compare import NamedBatch
from deploykit.parity.tolerance import MIN_IMAGES
from deploykit.proof.extremes import ExtremeAnswers, answer_extremes, judge_extremes
from deploykit.proof.images import LOOK_AT_THEM, ImageSample, mostly_unreadable
from deploykit.proof.reference import OpenReference
from deploykit.proof.text import skipped_text
from deploykit.proof.verdict import Verdict, judge_sessions
from deploykit.specs.session import ImageBatch, Logits, Session
from deploykit.system.progress import Note, Progress, Step


@dataclass(frozen=True)
class AnsweredImages:
    """Images and what the reference answers.

    Attributes:
        batches: The images.
        logits: (N, K), in their order.
        drawn: What images they are.
        digests: See :attr:`deploykit.proof.images.ImageSample.digests`.
        extremes: What the reference answers to extreme images.
        expected: The classes of those of which they are known, by the image's name.
        budget: What the user allows a candidate; None for what its precision allows.
    """

    batches: Sequence[NamedBatch]
    logits: Logits
    drawn: ImageSet
    digests: frozenset[str]
    extremes: ExtremeAnswers
    expected: Mapping[str, tuple[str, ...]]
    budget: Budget | None

    @property
    def is_too_few(self) -> bool:
        """Whether no proof on them counts below FP32, whatever it shows."""
        return self.drawn.kind != "photos" or self.drawn.count < MIN_IMAGES

    @property
    def images(self) -> ImageBatch:
        """(N, H, W, 3), all of them."""
        return np.concatenate([images for _, images in self.batches])

    def judge(self, candidate: Session, manifest: Manifest, progress: Progress) -> Verdict:
        """Compare a candidate with what the reference answered.

        Args:
            candidate: An open session.
            manifest: Of the bundle.
            progress: Called after every batch.
        """
        verdicts = judge_sessions(
            self.logits,
            [candidate],
            self.batches,
            manifest.labels,
            progress,
            count=len(self.logits),
            kind=self.drawn.kind,
            expected=self.expected,
            budgets={} if self.budget is None else {candidate.spec.graph: self.budget},
        )
        (verdict,) = judge_extremes(verdicts, [candidate], self.extremes)
        return verdict


def _answered(
    sample: ImageSample,
    reference: OpenReference,
    extremes: ExtremeAnswers,
    progress: Progress,
    budget: Budget | None,
) -> AnsweredImages:
    batches, logits = [], []
    for names, images in sample:
        if names:  # else not one of these files could be read
            batches.append((names, images.copy()))  # the buffer behind them is reused
            logits.append(reference.session.run(images))
            progress(Step("asking the reference", sum(map(len, logits)), sample.count))
    drawn = sample.drawn()
    if reason := mostly_unreadable(sample.unreadable, drawn.count):
        raise ParityError(f"{sample.source}: {reason}.", hint=LOOK_AT_THEM)
    if skipped := skipped_text(drawn):
        progress(Note(f"{drawn.count} of the sampled photos are used{skipped}"))
    known = (names for names, _ in batches)
    expected = {
        name: sample.expected[name] for names in known for name in names if name in sample.expected
    }
    answers = np.concatenate(logits)
    return AnsweredImages(batches, answers, drawn, sample.digests, extremes, expected, budget)


def split_answers(
    split: tuple[ImageSample, ImageSample],
    reference: OpenReference,
    progress: Progress,
    budget: Budget | None = None,
) -> tuple[AnsweredImages, AnsweredImages]:
    """Let the reference answer the photos of a search, and other photos for its proof.

    Args:
        split: As :func:`deploykit.proof.images.split_samples` gives them. What of the second has
            the same pixels as a photo of the first is skipped.
        reference: Who answers.
        progress: Called with what is being done, and with a note of what is skipped.
        budget: What the user allows on them; None for what the precision allows.

    Raises:
        ImagesError: Of one of the samples nothing is left.
        ParityError: Most of one cannot be read.
    """
    search, proof = split
    extremes = answer_extremes(reference.session, progress)
    searched = _answered(search, reference, extremes, progress, budget)
    proof.skip(searched.digests)
    proven = _answered(proof, reference, extremes, progress, budget)
    unreadable = search.unreadable + proof.unreadable
    if unreadable:
        progress(Note(f"{unreadable} of the sampled photos are skipped, as they cannot be read"))
    return searched, proven
