"""What candidates answer to extreme images: black, white, of one colour, saturated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from deploykit.images.generated import extreme_images
from deploykit.parity.compare import OPT_BATCH_SIZE
from deploykit.progress import Note, Progress
from deploykit.runtime.normalisation import normalised
from deploykit.session import ImageBatch, Logits, NormalisedSession, Session
from deploykit.specs import Preprocessing
from deploykit.tolerances import tolerance_for

#: What an input of about 1 is moved by to see whether an answer is one: some units in its last
#: place, as rounding moves what a runtime computes from it.
_NUDGE = 1e-6
#: How many times more than that moves an answer a candidate may be off: rounding happens in every
#: layer, the nudge only in front of the first.
_ROUNDINGS = 10


def extreme_objections(
    reference: Session,
    candidates: Sequence[Session],
    preprocessing: Preprocessing,
    progress: Progress,
) -> tuple[tuple[str, ...], ...]:
    """Compare candidates with a reference on extreme images.

    They are no sample of anything, so no flip is counted on them: in FP32 a candidate must give the
    reference's numbers. Where the reference itself gives another answer as soon as its input is
    rounded otherwise, such as a network that divides by the spread of an image of one colour, any
    number will do. Lower precisions are not asked: what of a network they hold, and which nodes
    stay in FP32, was searched for on photos.

    Args:
        reference: What is right by definition; a live one, for there are no recorded answers.
        candidates: What is compared with it.
        preprocessing: The bundle's.
        progress: Called with a note where the reference itself gives no numbers.

    Returns:
        For each candidate what speaks against it, a sentence each.
    """
    named = extreme_images(reference.spec.input_size)
    names, images = np.array(list(named)), np.concatenate(list(named.values()))
    right = reference.run(images)
    finite = np.isfinite(right).all(axis=1)
    if not finite.all():
        progress(
            Note(
                f"the network itself gives NaN or infinity on {_listed(names[~finite])} images, "
                "and so will whatever is made of it"
            )
        )

    def objections(candidate: Session) -> Iterator[str]:
        allowed = tolerance_for(candidate.spec.precision).max_relative_error
        if allowed is None or candidate.spec.tf32:
            return
        given = _answers(candidate, images)
        lost = finite & ~np.isfinite(given).all(axis=1)
        if lost.any():
            listed = _listed(names[lost])
            yield f"NaN or infinity on {listed} images, where the reference gives numbers"
        compared = finite & ~lost
        scale = np.abs(right[compared]).max(initial=0)
        errors = np.zeros(len(names))
        errors[compared] = np.abs(given[compared] - right[compared]).max(axis=1)
        off = errors > allowed * scale
        if off.any():
            off &= errors > _ROUNDINGS * _unsteadiness(reference, images, right, preprocessing)
        if off.any():
            yield (
                f"a logit is off by {errors[off].max():.1e} on {_listed(names[off])} images, where "
                f"{allowed * scale:.1e} is allowed"
            )

    return tuple(tuple(objections(candidate)) for candidate in candidates)


def _answers(session: Session, images: ImageBatch) -> Logits:
    size = min(session.spec.largest_batch or OPT_BATCH_SIZE, OPT_BATCH_SIZE)
    starts = range(0, len(images), size)
    return np.concatenate([session.run(images[start : start + size]) for start in starts])


def _unsteadiness(
    reference: Session, images: ImageBatch, right: Logits, preprocessing: Preprocessing
) -> npt.NDArray[np.float64]:
    """How far each image's answer moves when its input is rounded otherwise: (N,), or infinite."""
    moves = np.zeros(len(images))
    if isinstance(reference, NormalisedSession):
        inputs = normalised(images, preprocessing)
        noise = np.random.default_rng(0).uniform(-_NUDGE, _NUDGE, inputs.shape)
        nudged = reference.run_normalised((inputs + noise).astype(np.float32))
        usable = np.isfinite(nudged).all(axis=1) & np.isfinite(right).all(axis=1)
        moves[~usable] = np.inf
        moves[usable] = np.abs(nudged[usable] - right[usable]).max(axis=1)
    return moves


def _listed(names: npt.NDArray[np.str_]) -> str:
    return ", ".join(names.tolist())
