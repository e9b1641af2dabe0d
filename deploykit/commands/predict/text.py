"""The summary of a prediction, as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deploykit.commands.predict.tables import row_value
from deploykit.proof.policy import Status
from deploykit.proof.text import status_text, status_value
from deploykit.specs.prediction import Prediction
from deploykit.system.text import counted
from deploykit.system.threads import Stage, bottleneck

if TYPE_CHECKING:
    from deploykit.bundle.embeddings import EmbeddingsRecord
    from deploykit.commands.predict.run import PredictionRun

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
    run: PredictionRun,
    status: Status,
    outputs: Sequence[Path],
    embeddings: EmbeddingsRecord | None = None,
) -> str:
    """Rows, failures by kind, classes, accuracy, speed, where the time went, the status.

    Of a single image its answer takes the place of what many add up to.

    Args:
        run: That has ended.
        status: Whether it is proven to decide here as the trained network does.
        outputs: What was written.
        embeddings: What the embeddings are that were written, too; None without any.
    """
    lines = _sums(run) if run.tally.only is None else _answer(run.tally.only)
    lines.append(f"proof     {status_text(status)}")
    if embeddings is not None:
        from deploykit.proof.embeddings import run_text

        lines.append(f"embedding {run_text(embeddings, run.spec)}")
    lines += (f"written   {path}" for path in outputs)
    return "\n".join(lines)


def _answer(row: Prediction) -> list[str]:
    """A single image's label, probability and best classes."""
    if row.label is None or row.probability is None:
        return [f"image     {row.path}", f"{row.status:<9} {row.reason}"]
    expected = f"; expected {row.expected}" if row.expected not in (None, row.label) else ""
    margin = "" if row.margin is None else f", margin {row.margin:.2f}"
    return [
        f"image     {row.path}",
        f"label     {row.label}, probability {100 * row.probability:.1f} %{margin}{expected}",
        f"{f'top {len(row.top)}':<9} {_ranked(row)}",
    ]


def _ranked(row: Prediction) -> str:
    return ", ".join(f"{each.label} {100 * each.probability:.1f} %" for each in row.top)


def _sums(run: PredictionRun) -> list[str]:
    """What the rows of several images add up to."""
    tally, spec, stage_seconds = run.tally, run.spec, run.clock.seconds
    lines = [f"{counted(tally.rows, 'row')}: {tally.ok} predicted"]
    if tally.failures:
        lines[0] += f", {tally.failures.total()} failed ({tally.failures_text})"
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
        total = sum(stage_seconds.values())
        ranked = sorted(stage_seconds.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{stage} {100 * seconds / total:.0f} %" for stage, seconds in ranked)
        beside = "" if spec.concurrent else ", side by side"
        slowest = _BOTTLENECKS[bottleneck(stage_seconds, concurrent=spec.concurrent)]
        lines.append(f"time      {shares}{beside}: the bottleneck is {slowest}")
    return lines


def prediction_value(
    run: PredictionRun,
    status: Status,
    outputs: Sequence[Path],
    embeddings: EmbeddingsRecord | None = None,
) -> dict[str, Any]:
    """The same for ``--json``."""
    tally = run.tally
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
        "stage_seconds": {stage: round(value, 3) for stage, value in run.clock.seconds.items()},
        "session": msgspec.to_builtins(run.spec),
        "answer": None if tally.only is None else row_value(tally.only, run.top_k),
        "proof": status_value(status),
        **_embedding_value(run, embeddings),
        "outputs": [str(path) for path in outputs],
    }


def _embedding_value(run: PredictionRun, embeddings: EmbeddingsRecord | None) -> dict[str, Any]:
    if embeddings is None:
        return {}
    from deploykit.proof.embeddings import embeddings_value

    return {"embedding": embeddings_value(embeddings, run.spec)}


def row_text(row: Prediction) -> str:
    """A prediction in one line: ``robin.jpg: robin 97.3 %, crow 1.2 %; margin 4.31``."""
    if not row.ok or row.margin is None:
        return f"{row.path}: {row.status}: {row.reason}"
    expected = f"; expected {row.expected}" if row.expected not in (None, row.label) else ""
    return f"{row.path}: {_ranked(row)}; margin {row.margin:.2f}{expected}"
