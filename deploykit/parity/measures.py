"""From two sets of logits to a measurement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deploykit.parity.measurement import UNDECIDABLE_MARGIN, Flip, Measurement
from deploykit.parity.statistics import upper_bound
from deploykit.specs.model import Labels, Precision
from deploykit.specs.session import Logits

Array = npt.NDArray[np.float64]

#: Two classes whose probabilities differ by less than this are as probable as each other.
_SAME_PROBABILITY = 1e-6


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


def relative_margins(logits: npt.ArrayLike) -> Array:
    """The margin of each row of (N, K) logits, as a part of the row's own scale.

    The own scale is the largest absolute logit less the row's mean: neither another image's logits
    nor what is added to all of a row's makes a decision look closer than it is. So with two classes
    the part is always 2.

    Returns:
        (N,); 0 where nothing is decided: see :func:`margins`, or because the probabilities of the
        first two classes differ by less than 1e-6.
    """
    values = np.asarray(logits, dtype=np.float64)
    margin = margins(values)
    found = np.zeros(len(values))
    rows = np.flatnonzero(margin > 0)
    chosen = values[rows]
    scale = np.abs(chosen - chosen.mean(axis=1, keepdims=True)).max(axis=1)
    # p1 - p2 = p1 (1 - exp(-margin)), without the difference of two numbers that are nearly equal.
    difference = softmax(chosen).max(axis=1) * -np.expm1(-margin[rows])
    found[rows] = np.where(difference >= _SAME_PROBABILITY, margin[rows] / scale, 0.0)
    return found


def decides(logits: npt.ArrayLike, precision: Precision) -> npt.NDArray[np.bool_]:
    """(N,) whether the margin of each row of (N, K) logits decides in a precision."""
    return relative_margins(logits) > UNDECIDABLE_MARGIN[precision]


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
        precision: The candidate's, which sets what is undecidable; see :func:`decides`.
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
    probabilities = softmax(ours[usable])
    changes[usable] = np.abs(softmax(theirs[usable]) - probabilities).max(axis=1)
    margin = np.where(usable, margins(ours), 0.0)
    decidable = usable & decides(ours, precision)
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
        classes=len(np.unique(ours[usable].argmax(axis=1))),
        spread=float(np.ptp(probabilities, axis=0).max()) if usable.any() else 0.0,
    )
