"""From two sets of logits to a measurement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deploykit.parity.measurement import UNDECIDABLE_MARGIN, UNDECIDED_MARGIN, Flip, Measurement
from deploykit.parity.statistics import upper_bound
from deploykit.specs.model import Labels, Precision
from deploykit.specs.session import Logits

Array = npt.NDArray[np.float64]


def softmax(logits: npt.ArrayLike) -> Array:
    """The probabilities of each row of (N, K) logits, computed in float64."""
    values = np.asarray(logits, dtype=np.float64)
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def margins(logits: npt.ArrayLike) -> Array:
    """Top-1 logit minus top-2 logit of each row of (N, K) logits.

    A network of one class decides nothing, nor does a row that is not finite: their margin is 0.
    """
    values = np.asarray(logits, dtype=np.float64)
    found = np.zeros(len(values))
    if values.shape[1] > 1:
        usable = np.isfinite(values).all(axis=1)
        top = np.partition(values[usable], -2, axis=1)[:, -2:]
        found[usable] = top[:, 1] - top[:, 0]
    return found


def measure(
    reference: Logits,
    candidate: Logits,
    *,
    precision: Precision,
    paths: Sequence[str],
    labels: Labels,
    batch_sizes: Sequence[int],
    least_scale: float = 0.0,
    bounded: bool = True,
) -> Measurement:
    """Compare a candidate's logits with the reference's.

    Args:
        reference: (N, K) logits of the reference.
        candidate: (N, K) logits of the candidate, the same images in the same order.
        precision: The candidate's, which sets the margin below which an image is undecidable.
        paths: The N images' names.
        labels: The K classes' names.
        batch_sizes: The sizes of the batches that the candidate ran.
        least_scale: What the scale is at least, where the images are a part of others on which the
            reference's logits are known to be that large.
        bounded: Whether the images were drawn blindly, so that a bound holds for others like them.

    Returns:
        The measurement. Where a logit is not finite, its error counts as infinite, and the change
        of its image's probabilities as 1; the tolerance refuses such a measurement in any case.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    if not reference.shape == candidate.shape == (len(paths), len(labels)):
        raise ValueError(
            f"reference {reference.shape}, candidate {candidate.shape}, "
            f"{len(paths)} paths and {len(labels)} labels do not fit each other"
        )
    ours, theirs = reference.astype(np.float64), candidate.astype(np.float64)
    finite = np.isfinite(ours) & np.isfinite(theirs)
    usable = finite.all(axis=1)
    errors = np.full(ours.shape, np.inf)
    np.subtract(theirs, ours, out=errors, where=finite)
    errors = np.abs(errors)
    scale = float(np.abs(ours[np.isfinite(ours)]).max(initial=least_scale))
    changes = np.ones(len(paths))
    changes[usable] = np.abs(softmax(theirs[usable]) - softmax(ours[usable])).max(axis=1)
    margin = np.where(usable, margins(ours), 0.0)
    decidable = margin > UNDECIDABLE_MARGIN[precision] * scale
    flipped = usable & (ours.argmax(axis=1) != theirs.argmax(axis=1))
    decisions, flips = int(decidable.sum()), int((flipped & decidable).sum())
    order = sorted(np.flatnonzero(flipped).tolist(), key=lambda i: -margin[i])
    return Measurement(
        images=len(paths),
        batch_sizes=tuple(sorted(set(batch_sizes))),
        scale=scale,
        max_abs_error=float(errors.max(initial=0.0)),
        flips=flips,
        undecidable=len(paths) - decisions,
        undecided=int((margin <= UNDECIDED_MARGIN * scale).sum()),
        flipped=tuple(
            Flip(
                path=paths[i],
                reference=labels.names[int(ours[i].argmax())],
                candidate=labels.names[int(theirs[i].argmax())],
                margin=float(margin[i]),
                decidable=bool(decidable[i]),
            )
            for i in order
        ),
        max_probability_change=float(changes.max(initial=0.0)),
        rms_probability_change=float(np.linalg.norm(changes)) / max(1, len(paths)) ** 0.5,
        non_finite=int((~np.isfinite(ours)).sum() + (~np.isfinite(theirs)).sum()),
        flip_rate_bound=upper_bound(flips, decisions) if bounded else None,
    )
