"""What speaks against a step, and what against the walk's own ground: the network, the photos."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from deploykit.parity.diagnosis import Finding
from deploykit.parity.measurement import NEAR_TIE_MARGIN, UNDECIDABLE_MARGIN, Measurement
from deploykit.parity.measures import margins
from deploykit.parity.tolerance import (
    MAX_UNDECIDABLE_RATE,
    MIN_DECIDABLE_RATE,
    Population,
    Tolerance,
)
from deploykit.proof.readable import mostly_unreadable
from deploykit.specs.precision import Precision
from deploykit.specs.session import Logits

_NAMES_TOLD = 3


def objections_to_change(added: Measurement, tolerance: Tolerance) -> tuple[str, ...]:
    """Say what speaks against a step by what it changes, a sentence each.

    That the photos decide little was so before the step, and is :func:`photos_fault`'s to tell.

    Args:
        added: What the step adds, on images to which the step before gave finite answers.
        tolerance: What it may add.
    """
    if added.images == 0:
        return ()
    decided = msgspec.structs.replace(
        added, flipped=tuple(flip for flip in added.flipped if flip.decidable)
    )
    among = Population(images=max(added.decidable, 1), undecidable=0, near_ties=0)
    return tolerance.objections(decided, among)


def network_fault(logits: Logits, names: Sequence[str], network: str) -> Finding | None:
    """Name a network whose answers are not finite at the walk's beginning; None for finite ones.

    Args:
        logits: (N, K), what the walk begins with.
        names: The N photos'.
        network: What reports call it.
    """
    wrong = [names[row] for row in np.flatnonzero(~np.isfinite(logits).all(axis=1)).tolist()]
    if not wrong:
        return None
    more = ", ..." if len(wrong) > _NAMES_TOLD else ""
    return Finding(
        stage="network",
        message=f"{network} itself answers NaN or infinity to {len(wrong)} of {len(names)} photos: "
        f"{', '.join(wrong[:_NAMES_TOLD])}{more}",
        hint="No later stage is to blame. Training may have diverged: export a checkpoint of an "
        "earlier epoch, or train again with a lower learning rate.",
    )


def unreadable_fault(unreadable: int, readable: int) -> Finding | None:
    """Name photos most of which cannot be read; None where most can."""
    message = mostly_unreadable(unreadable, readable)
    if message is None:
        return None
    return Finding(
        stage="photos",
        message=message,
        hint="`deploykit predict` says what is wrong with each; or name other photos: --images DIR",
    )


def photos_fault(logits: Logits, precision: Precision) -> Finding | None:
    """Name photos that show too little about decisions; None where they show enough.

    Args:
        logits: (N, K), the answers whose margins decide. Rows that are not finite don't count.
        precision: Of the step that is judged by these margins.
    """
    usable = logits[np.isfinite(logits).all(axis=1)]
    if len(usable) == 0:
        return None
    images, margin, scale = len(usable), margins(usable), float(np.abs(usable).max())
    ties = int((margin <= NEAR_TIE_MARGIN * scale).sum())
    decidable = int((margin > UNDECIDABLE_MARGIN[precision] * scale).sum())
    if ties > MAX_UNDECIDABLE_RATE * images:
        message = (
            f"{ties} of {images} photos are near ties: the network's two best classes lie within "
            f"{NEAR_TIE_MARGIN:.0e} of the scale; at most {MAX_UNDECIDABLE_RATE:.0%} may"
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
