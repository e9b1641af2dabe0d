"""Why a proof that passed is not one to go by unasked."""

from __future__ import annotations

from deploykit.proofs import ENOUGH_PHOTOS, Proof
from deploykit.specs import counted


def why_indecisive(proof: Proof, how: str) -> str:
    """Why ``auto`` does not go by a proof that does not decide, and what to do.

    Args:
        proof: By another reference than the recorded golden answers.
        how: The command that proves the same anew.

    Returns:
        A clause, without a full stop.
    """
    flips = proof.measurement.flips
    changed = counted(flips, "changed decision")
    if flips and not proof.is_vague:
        return (
            f"its proof has {changed}; name it with --runtime {proof.runtime} --precision "
            f"{proof.precision} to have it"
        )
    where = f"on {proven_on(proof)}{f', with {changed}' if flips else ''}"
    return (
        f"its proof is {where}, too few for a precision below FP32: {how} --images DIR decides on "
        f"{ENOUGH_PHOTOS} or more that had no part in making it"
    )


def proven_on(proof: Proof) -> str:
    """``22 photos, 3 of which decide nothing``."""
    if proof.photos.kind != "photos":
        return f"{proof.photos.kind} images, which are no sample of photos"
    words = counted(proof.measurement.distinct, "photo")
    if proof.measurement.undecidable:
        words += f", {proof.measurement.undecidable} of which decide nothing"
    if proof.searched:
        words += f", {proof.searched} of which had a part in making it"
    return words
