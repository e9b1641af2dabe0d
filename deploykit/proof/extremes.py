"""What candidates answer to extreme images: black, white, of one colour, saturated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.images.generated import COLOURS, extreme_images
from deploykit.proof.verdict import Verdict
from deploykit.specs.session import ImageBatch, Logits, NamedSession, Session
from deploykit.system.progress import Note, Progress


@dataclass(frozen=True)
class ExtremeAnswers:
    """The extreme images to which a reference answers with numbers.

    Attributes:
        images: By what they show, each (1, H, W, 3).
        logits: Its answers by the same names, each (1, K).
    """

    images: Mapping[str, ImageBatch]
    logits: Mapping[str, Logits]

    def showing(
        self, verdict: Verdict, images: ImageBatch, logits: Logits
    ) -> tuple[ImageBatch, Logits]:
        """The images that show why a candidate failed, with the reference's answers.

        Args:
            verdict: On the candidate.
            images: (N, H, W, 3), those of the comparison.
            logits: (N, K), the answers to them.

        Returns:
            Those of the comparison; these here where none of those shows it.
        """
        if verdict.exceeded or not self.images:
            return images, logits
        # (1, H, W, 3) each => (M, H, W, 3), and (1, K) each => (M, K)
        return np.concatenate([*self.images.values()]), np.concatenate([*self.logits.values()])


def answer_extremes(reference: Session, progress: Progress) -> ExtremeAnswers:
    """Ask a reference, a live one: there are no recorded answers to extreme images.

    Args:
        reference: What is right by definition.
        progress: Called with a note where it gives no numbers.
    """
    images = extreme_images(reference.spec.input_size)
    logits = {name: reference.run(image) for name, image in images.items()}
    numbers = {name: each for name, each in logits.items() if np.isfinite(each).all()}
    if none := [name for name in logits if name not in numbers]:
        progress(
            Note(f"{reference.spec.title} itself gives NaN or infinity on {', '.join(none)} images")
        )
    return ExtremeAnswers({name: images[name] for name in numbers}, numbers)


def judge_extremes(
    verdicts: Sequence[Verdict], candidates: Sequence[Session], right: ExtremeAnswers
) -> tuple[Verdict, ...]:
    """Add to verdicts what the candidates answer to extreme images.

    They are no sample of anything, so no flip is counted on them. In an image of one colour a
    network that divides by the image's spread divides rounding by rounding: there a candidate must
    only give numbers where the reference does. On saturated noise the logits must be the
    reference's, too, where the tolerance limits their error: in plain FP32. A lower precision may
    be off there, for its graph was made for photos, but its numbers may not end.

    Args:
        verdicts: On other images.
        candidates: Whose verdicts they are, open.
        right: The reference's answers.
    """
    return tuple(
        verdict
        if isinstance(candidate, NamedSession)  # these images have no names
        else verdict.with_extremes(tuple(_reasons(verdict, candidate, right)))
        for verdict, candidate in zip(verdicts, candidates, strict=True)
    )


def _reasons(verdict: Verdict, candidate: Session, right: ExtremeAnswers) -> Iterator[str]:
    """What speaks against a candidate, a sentence each."""
    given = {name: candidate.run(image) for name, image in right.images.items()}
    lost = [name for name, logits in given.items() if not np.isfinite(logits).all()]
    if lost:
        yield f"NaN or infinity on {', '.join(lost)} images, where the reference gives numbers"
    allowed = verdict.tolerance.max_relative_error
    if allowed is None or candidate.spec.tf32:
        return
    for name, logits in right.logits.items():
        if name in COLOURS or name in lost:
            continue
        error = np.abs(given[name] - logits).max()
        limit = allowed * max(verdict.measurement.scale, np.abs(logits).max())
        if error > limit:
            yield f"a logit is off by {error:.1e} on {name}; {limit:.1e} is allowed"
