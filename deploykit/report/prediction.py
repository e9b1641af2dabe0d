"""The summary of a prediction, as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from deploykit.bundle import CANONICAL_GRAPH
from deploykit.jobs.tally import Tally, describe_failures
from deploykit.jobs.verdicts import installed_versions
from deploykit.proofs import Proof, ReferenceKind
from deploykit.report.claims import searched_text, version_text
from deploykit.report.terminal import copies_text, rate_digits
from deploykit.session import SessionSpec
from deploykit.specs import counted
from deploykit.stages import Stage, bottleneck

_SHOWN_CLASSES = 20
# On Windows a thread's CPU time advances in steps of 15.6 ms: of less, the shares are chance.
_LEAST_SECONDS = 0.5
#: Whose decisions a proof was held against.
_ANSWERED: dict[ReferenceKind, str] = {
    "module": "the trained model's",
    "graph": f"{CANONICAL_GRAPH}'s",
    "golden": "the recorded ones",
}
_BOTTLENECKS: dict[Stage, str] = {
    "decode": "decoding",
    "resize": "resizing",
    "session": "the network",
    "write": "writing",
}


def prediction_text(
    tally: Tally,
    spec: SessionSpec,
    stage_seconds: Mapping[Stage, float],
    outputs: Sequence[Path],
    proof: Proof | None = None,
) -> str:
    """Rows, failures by kind, classes, accuracy, speed, where the time went, the proof.

    Args:
        tally: What the rows add up to.
        spec: What ran.
        stage_seconds: Where the time went.
        outputs: What was written.
        proof: What shows that it decides here as the trained network does; None without.
    """
    lines = [f"{counted(tally.rows, 'row')}: {tally.ok} predicted"]
    if tally.failures:
        lines[0] += f", {tally.failures.total()} failed ({describe_failures(tally)})"
    if tally.skipped:
        lines[0] += f"; {counted(tally.skipped, 'other file')} without a row"
    classes = tally.labels.most_common(_SHOWN_CLASSES)
    lines.append("classes   " + ", ".join(f"{count} {label}" for label, count in classes))
    if len(tally.labels) > _SHOWN_CLASSES:
        lines[-1] += f", ... ({len(tally.labels)} classes)"
    if tally.accuracy is not None:
        lines.append(
            f"accuracy  {100 * tally.accuracy:.1f} % "
            f"({tally.correct} of {tally.labelled} labelled images)"
        )
    if tally.images_per_second is not None:
        lines.append(
            f"speed     {tally.images_per_second:.1f} images/s "
            f"({spec.precision} on {spec.runtime}, {spec.device})"
        )
        if tally.earlier:
            lines[-1] += f", without the {tally.earlier} that were there before"
    if sum(stage_seconds.values()) >= _LEAST_SECONDS:
        lines.append(f"time      {stages_text(stage_seconds, concurrent=spec.concurrent)}")
    lines.append(f"proof     {proof_text(proof, installed_versions())}")
    lines += (f"written   {path}" for path in outputs)
    return "\n".join(lines)


def proof_text(proof: Proof | None, versions: Mapping[str, str] = MappingProxyType({})) -> str:
    """``executed: 0 of 222 decisions differ from the trained model's, at most 1.3 % would ...``.

    Args:
        proof: What there is; None for none.
        versions: What is installed, where the proof may be of other versions.
    """
    if proof is None:
        return "none here: deploykit verify --images DIR"
    found, rate = proof.measurement, proof.flip_rate_bound
    sure = "" if rate is None else f", at most {rate_digits(rate)} % would"
    what = {"photos": "photo", "golden": "golden image", "generated": "made image"}
    images = counted(proof.photos.images, what[proof.photos.kind])
    other = version_text(proof, versions)
    return (
        f"{proof.kind}: {found.flips} of {counted(found.decidable, 'decision')} differ from "
        f"{_ANSWERED[proof.reference_kind]}{sure} ({images}{copies_text(proof.photos)}"
        f"{searched_text(proof)}, preprocessed as recorded, {proof.created[:10]})"
        f"{f'; {other}: deploykit verify proves it anew' if other else ''}"
    )


def stages_text(stage_seconds: Mapping[Stage, float], *, concurrent: bool) -> str:
    """``session 81 %, decode 14 %, ...: the bottleneck is the network``.

    Args:
        stage_seconds: As :attr:`deploykit.stages.StageClock.seconds` tells them.
        concurrent: Whether the workers ran the session; else it ran beside them.
    """
    total = sum(stage_seconds.values())
    ranked = sorted(stage_seconds.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{stage} {100 * seconds / total:.0f} %" for stage, seconds in ranked)
    beside = "" if concurrent else ", side by side"
    found = _BOTTLENECKS[bottleneck(stage_seconds, concurrent=concurrent)]
    return f"{shares}{beside}: the bottleneck is {found}"
