"""The summary of a prediction, as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from deploykit.commands.predict.tally import Tally, describe_failures
from deploykit.proof.policy import Status
from deploykit.proof.text import status_text, status_value
from deploykit.specs.session import SessionSpec
from deploykit.system.text import counted
from deploykit.system.threads import Stage, bottleneck

_SHOWN_CLASSES = 20
# On Windows a thread's CPU time advances in steps of 15.6 ms: of less, the shares are chance.
_LEAST_SECONDS = 0.5
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
    proof: Status,
) -> str:
    """Rows, failures by kind, classes, accuracy, speed, where the time went, the proof.

    Args:
        tally: What the rows add up to.
        spec: What ran.
        stage_seconds: Where the time went.
        outputs: What was written.
        proof: Whether it is proven to decide here as the trained network does.
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
    lines.append(f"proof     {status_text(proof)}")
    lines += (f"written   {path}" for path in outputs)
    return "\n".join(lines)


def stages_text(stage_seconds: Mapping[Stage, float], *, concurrent: bool) -> str:
    """``session 81 %, decode 14 %, ...: the bottleneck is the network``.

    Args:
        stage_seconds: As :attr:`deploykit.system.threads.StageClock.seconds` tells them.
        concurrent: Whether the workers ran the session; else it ran beside them.
    """
    total = sum(stage_seconds.values())
    ranked = sorted(stage_seconds.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{stage} {100 * seconds / total:.0f} %" for stage, seconds in ranked)
    beside = "" if concurrent else ", side by side"
    found = _BOTTLENECKS[bottleneck(stage_seconds, concurrent=concurrent)]
    return f"{shares}{beside}: the bottleneck is {found}"


def prediction_value(
    tally: Tally,
    spec: SessionSpec,
    stage_seconds: Mapping[Stage, float],
    outputs: list[str],
    proof: Status,
) -> dict[str, Any]:
    """The tally, what ran, what each stage took, and whether it is proven."""
    return {
        "rows": tally.rows,
        "ok": tally.ok,
        "failures": dict(tally.failures),
        "labels": dict(tally.labels),
        "skipped": tally.skipped,
        "labelled": tally.labelled,
        "correct": tally.correct,
        "accuracy": tally.accuracy,
        "seconds": round(tally.seconds, 3),
        "images_per_second": tally.images_per_second,
        "stage_seconds": {stage: round(value, 3) for stage, value in stage_seconds.items()},
        "session": msgspec.to_builtins(spec),
        "proof": status_value(proof),
        "outputs": outputs,
    }
