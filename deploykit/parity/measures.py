"""From two sets of logits to a measurement."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from deploykit.parity.accuracy import accuracy_change
from deploykit.parity.measurement import UNDECIDABLE_MARGIN, Flip, Measurement
from deploykit.parity.statistics import upper_bound
from deploykit.specs.heads import BaseHead
from deploykit.specs.model import Labels, Precision
from deploykit.specs.session import Given, Logits


def decides(logits: npt.ArrayLike, head: BaseHead, precision: Precision) -> npt.NDArray[np.bool_]:
    """(N,) whether the margin of each row of logits decides in a precision."""
    clear = head.relative_margins(logits) > UNDECIDABLE_MARGIN[precision]
    return np.asarray(clear.all(axis=1))


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
    expected: Mapping[str, Collection[str]] = MappingProxyType({}),
    gives: Given = "logits",
) -> Measurement:
    """Compare a candidate's logits with the reference's.

    Args:
        reference: (N, L) logits of the reference.
        candidate: (N, L) logits of the candidate, the same images in the same order.
        precision: The candidate's, which sets what is undecidable; see :func:`decides`.
        paths: The N images' names.
        labels: What the L logits mean.
        batch_sizes: The sizes of the batches that the candidate ran.
        least_scale: What the scale is at least, where the images are a part of others on which the
            reference's logits are known to be that large.
        bounded: Whether the images were drawn blindly, so that a bound holds for others like them.
        expected: The classes of those images of which they are known, by the images' names.
        gives: What of the candidate's logits is known; see
            :attr:`deploykit.specs.session.SessionSpec.gives`. What is not is NaN.

    Returns:
        The measurement. Where a logit is not finite, the relative error counts as infinite, and the
        change of its image's probabilities as 1; the tolerance refuses such a measurement in any
        case.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    if not reference.shape == candidate.shape == (len(paths), labels.logits):
        raise ValueError(
            f"reference {reference.shape}, candidate {candidate.shape}, "
            f"{len(paths)} paths and {labels.logits} logits an image do not fit each other"
        )
    ours, theirs = reference.astype(np.float64), candidate.astype(np.float64)
    finite = np.isfinite(ours) & np.isfinite(theirs)
    usable = np.asarray(finite.all(axis=1))
    errors = np.zeros(ours.shape)
    np.subtract(theirs, ours, out=errors, where=finite)
    errors = np.abs(errors)
    scale = float(np.abs(ours[np.isfinite(ours)]).max(initial=least_scale))
    head = labels.head
    changes = np.ones(len(paths))
    probabilities = head.probabilities(ours[usable])
    moved = np.abs(head.probabilities(theirs[usable]) - probabilities)
    right, given = head.decide(ours), head.decide(theirs)
    if gives == "headline":
        told = head.chosen(given[usable], moved.shape[1])
        moved = np.where(told, moved, 0.0)
    changes[usable] = moved.max(axis=1)
    largest_error = float(errors.max(initial=0.0)) if gives == "logits" else np.nan
    if gives == "decisions":
        changes = np.full(len(paths), np.nan)
    margin = np.where(usable, head.margins(ours), 0.0)
    # A decision of several parts changes decidedly where a part that is clear changes, however
    # close the others are.
    changed = np.asarray(usable[:, None] & (right != given))
    clear = usable[:, None] & (head.relative_margins(ours) > UNDECIDABLE_MARGIN[precision])
    flipped = np.asarray(changed.any(axis=1))
    decided = np.asarray((changed & clear).any(axis=1))
    decidable = np.asarray(clear.all(axis=1)) | decided
    decisions, flips = int(decidable.sum()), int(decided.sum())
    order = sorted(np.flatnonzero(flipped).tolist(), key=lambda i: -margin[i])
    return Measurement(
        images=len(paths),
        batch_sizes=tuple(sorted(set(batch_sizes))),
        scale=scale,
        max_abs_error=largest_error,
        flips=flips,
        undecidable=len(paths) - decisions,
        flipped=tuple(
            Flip(
                path=paths[i],
                reference=labels.title_of(right[i]),
                candidate=labels.title_of(given[i]),
                margin=float(margin[i]),
                decidable=bool(decided[i]),
            )
            for i in order
        ),
        max_probability_change=float(changes.max(initial=0.0)),
        p99_probability_change=percentile(changes, 99),
        non_finite=int((~np.isfinite(ours)).sum() + (~np.isfinite(theirs)).sum()),
        flip_rate_bound=upper_bound(flips, decisions) if bounded else None,
        classes=len(np.unique(right[usable], axis=0)),
        spread=float(np.ptp(probabilities, axis=0).max()) if usable.any() else 0.0,
        decided=head.decided,
        accuracy=accuracy_change(reference, candidate, paths, expected, labels),
    )


def percentile(values: npt.NDArray[np.float64], percent: int) -> float:
    """The smallest of some values that at least so many percent of them do not exceed; 0 of none.

    The rank is computed with integers: 0.99 times 700 is more than 693.
    """
    rank = -(-percent * len(values) // 100)
    return float(np.sort(values)[rank - 1]) if len(values) else 0.0
