"""What a comparison claims, in words: it depends on what the candidates were compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deploykit.bundle.folder import CANONICAL_GRAPH

if TYPE_CHECKING:
    from deploykit.bundle.verdicts import ReferenceKind
    from deploykit.commands.verify.result import Verification
    from deploykit.parity.diagnosis import Stage, StageReport


#: What is left of a proof where training's preprocessing was another.
RECORDED_ONLY = (
    "What is proven holds for photos that go through the recorded preprocessing, and for nothing "
    "before it: the walk over the stages found fault with that preprocessing."
)
_PREPROCESSING: frozenset[Stage] = frozenset(
    {"decode", "resize", "preprocessing", "colour", "normalise"}
)


@dataclass(frozen=True)
class Claim:
    """What can be claimed of a candidate, and what of its opposite.

    Attributes:
        reference: What it was compared with: ``the trained model``.
        holds: What it does when it passed: ``decides as the trained one does``.
        fails: What it does when decisions changed.
        limit: What the comparison does not show, as a sentence; empty for nothing.
    """

    reference: str
    holds: str
    fails: str
    limit: str = ""


_TRAINED = Claim(
    reference="the trained model",
    holds="decides as the trained one does",
    fails="does not decide as the trained one does",
)
_GRAPH = Claim(
    reference=CANONICAL_GRAPH,
    holds=f"decides as {CANONICAL_GRAPH} does",
    fails=f"does not decide as {CANONICAL_GRAPH} does",
    limit=f"The trained model itself was not asked: {CANONICAL_GRAPH}, which was exported from it, "
    "stands in for it",
)
_RECORDED = Claim(
    reference="the export",
    holds="still gives the answers recorded at export",
    fails="no longer gives the answers recorded at export",
    limit="It was compared with a few recorded answers, not with the trained model: that shows "
    "that the files and the runtime are whole, not how often decisions differ.",
)
_CLAIMS: dict[ReferenceKind, Claim] = {"module": _TRAINED, "graph": _GRAPH, "golden": _RECORDED}


def claim_of(verification: Verification) -> Claim:
    """What a verification can claim."""
    if verification.is_recorded:
        claim = _CLAIMS[verification.reference_kind]
        if verification.reference_kind != "graph":
            return claim
        why = f", because {verification.obstacle}" if verification.obstacle else ""
        return replace(claim, limit=f"{claim.limit}{why}.")
    other = f"the {verification.reference}"
    return Claim(
        reference=other,
        holds=f"decides as {other} does",
        fails=f"does not decide as {other} does",
        limit="That is no proof of this bundle, which was exported from other weights or code.",
    )


def limit_of_stages(verification: Verification, stages: StageReport | None) -> str:
    """What a walk over the stages leaves of what was proven, as a sentence; empty for all of it.

    It limits only where it found fault with the preprocessing: a runtime or a batch size that is
    wrong says nothing about what comes before.
    """
    if stages is None or not any(verdict.passed for verdict in verification.verdicts):
        return ""
    blamed = {finding.stage for finding in stages.findings}
    blamed.update(step.stage for step in stages.steps if step.reasons)
    return RECORDED_ONLY if blamed & _PREPROCESSING else ""


def limits_of(verification: Verification, stages: StageReport | None) -> tuple[str, ...]:
    """All that a comparison does not show, a sentence each.

    Args:
        verification: What was found.
        stages: The walk over the stages, which may limit what was proven; None without one.
    """
    limits = (
        claim_of(verification).limit,
        limit_of_stages(verification, stages),
    )
    return tuple(filter(None, limits))
