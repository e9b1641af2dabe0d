"""What candidates answer to extreme images: black, white, of one colour, saturated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from deploykit.images.generated import COLOURS, extreme_images
from deploykit.parity.tolerance import tolerance_for
from deploykit.specs.session import Session
from deploykit.system.progress import Note, Progress


def extreme_reasons(
    reference: Session, candidates: Sequence[Session], scale: float, progress: Progress
) -> tuple[tuple[str, ...], ...]:
    """Compare the candidates in FP32 with a reference on extreme images.

    They are no sample of anything, so no flip is counted on them. In an image of one colour a
    network that divides by the image's spread divides rounding by rounding: there a candidate must
    only give numbers where the reference does. On saturated noise the numbers must be the
    reference's. Lower precisions are not asked: which nodes they keep in FP32 was searched for on
    photos.

    Args:
        reference: What is right by definition; a live one, for there are no recorded answers.
        candidates: What is compared with it.
        scale: The reference's largest absolute logit on the images that are compared beside these.
        progress: Called with a note where the reference itself gives no numbers.

    Returns:
        For each candidate what speaks against it, a sentence each.
    """
    images = extreme_images(reference.spec.input_size)
    right = {name: reference.run(image) for name, image in images.items()}
    numbers = [name for name, logits in right.items() if np.isfinite(logits).all()]
    if none := [name for name in right if name not in numbers]:
        progress(
            Note(f"{reference.spec.title} itself gives NaN or infinity on {', '.join(none)} images")
        )

    def reasons(candidate: Session) -> Iterator[str]:
        allowed = tolerance_for(candidate.spec.precision).max_relative_error
        if allowed is None or candidate.spec.tf32:
            return
        given = {name: candidate.run(images[name]) for name in numbers}
        if lost := [name for name in numbers if not np.isfinite(given[name]).all()]:
            yield f"NaN or infinity on {', '.join(lost)} images, where the reference gives numbers"
        for name in numbers:
            if name in COLOURS or name in lost:
                continue
            error = np.abs(given[name] - right[name]).max()
            limit = allowed * max(scale, np.abs(right[name]).max())
            if error > limit:
                yield f"a logit is off by {error:.1e} on {name}; {limit:.1e} is allowed"

    return tuple(tuple(reasons(candidate)) for candidate in candidates)
