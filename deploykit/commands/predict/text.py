"""The summary of a prediction, as text for a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from deploykit.commands.predict.tables import row_value
from deploykit.proof.text import status_text, status_value
from deploykit.specs.model import Labels
from deploykit.specs.prediction import Prediction, Ranked
from deploykit.system.text import command_line, counted, table_text, visible
from deploykit.system.threads import Stage, bottleneck

if TYPE_CHECKING:
    from deploykit.commands.predict.tally import (
        ClassTally,
        ClusterReport,
        PredictionSummary,
        ShardSummary,
    )

_SHOWN_CLASSES = 20
_SHOWN_HOSTS = 10
# On Windows a thread's CPU time advances in steps of 15.6 ms: of less, the shares are chance.
_LEAST_SECONDS = 0.5
_BOTTLENECKS: dict[Stage, str] = {
    "decode": "decoding",
    "resize": "resizing",
    "session": "the network",
    "write": "writing",
}


def prediction_text(run: PredictionSummary) -> str:
    """Rows, failures by kind, classes, accuracy, speed, where the time went, the status.

    Of a single image its answer takes the place of what many add up to.
    """
    labels = run.bundle.manifest.labels
    lines = _sums(run, labels) if run.tally.only is None else _answer(run.tally.only)
    lines += f"proof     {status_text(run.status)}".split("\n")  # a command has a line of its own
    if run.embeddings is not None:
        from deploykit.proof.embeddings_text import run_text

        lines.append(f"embedding {run_text(run.bundle, run.embeddings, run.spec)}")
    lines += (f"written   {path}" for path in run.outputs)
    return "\n".join(map(visible, lines))


def _answer(row: Prediction) -> list[str]:
    """A single image's label and its probability, or its labels; and the best classes."""
    if not row.ok:
        return [f"image     {row.path}", f"{row.status:<9} {row.reason}"]
    margin = "" if row.margin is None else f", margin {row.margin:.2f}"
    # Its own probability may be another class's; what was decided for is ranked first.
    decided = (
        f"label     {row.label}, probability {100 * row.top[0].probability:.1f} %"
        if row.labels is None
        else f"labels    {_names(row.labels)}"
    )
    return [
        f"image     {row.path}",
        f"{decided}{margin}{_expected(row)}",
        f"{f'top {len(row.top)}':<9} {_ranked(row.top)}",
    ]


def _names(labels: Sequence[str]) -> str:
    return ", ".join(labels) or "none"


def _expected(row: Prediction) -> str:
    """``; expected crow``, where the answer is another."""
    is_other = row.truth is not None and {*row.truth} != {*row.decided}
    return f"; expected {_names(row.truth or ())}" if is_other else ""


def _ranked(top: Iterable[Ranked]) -> str:
    return ", ".join(f"{each.label} {100 * each.probability:.1f} %" for each in top)


def _sums(run: PredictionSummary, labels: Labels) -> list[str]:
    """What the rows of several images add up to."""
    tally, spec, stage_seconds = run.tally, run.spec, run.stage_seconds
    lines = [f"{counted(tally.rows, 'row')}: {tally.ok} predicted"]
    if tally.failures:
        lines[0] += f", {tally.failures.total()} failed ({tally.failures_text})"
    if tally.skipped:
        lines[0] += f"; {counted(tally.skipped, 'other file')} without a row"
    classes = tally.labels.most_common(_SHOWN_CLASSES)
    lines.append("classes   " + ", ".join(f"{count} {label}" for label, count in classes))
    if len(tally.labels) > _SHOWN_CLASSES:
        lines[-1] += f", ... ({len(tally.labels)} classes)"
    if tally.unlabelled:
        lines[-1] += f"{', ' if classes else ''}{counted(tally.unlabelled, 'image')} without any"
    if tally.accuracy is not None:
        # One of several labels too many, and an image counts as wrong.
        match = "exact match, " if labels.head.several else ""
        lines.append(
            f"accuracy  {100 * tally.accuracy:.1f} % "
            f"({match}{tally.correct} of {tally.labelled} labelled images)"
        )
        lines += _class_lines(tally.classes)
    speed = _speed(run)
    if speed:
        lines.append(f"speed     {speed} ({spec.precision} on {spec.runtime}, {spec.device})")
    lines += _host_lines(run)
    if sum(stage_seconds.values()) >= _LEAST_SECONDS:
        total = sum(stage_seconds.values())
        ranked = sorted(stage_seconds.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{stage} {100 * seconds / total:.0f} %" for stage, seconds in ranked)
        beside = "" if spec.concurrent else ", side by side"
        slowest = _BOTTLENECKS[bottleneck(stage_seconds, concurrent=spec.concurrent)]
        lines.append(f"time      {shares}{beside}: the bottleneck is {slowest}")
    return lines


def _speed(run: PredictionSummary) -> str:
    if run.report is not None:
        together, workers = run.report.images_per_second, sum(run.report.workers.values())
        hosts = counted(len(run.report.workers), "host")
        where = f"{counted(workers, 'worker')} on {hosts}"
        return "" if together is None else f"{together:.1f} images/s, {where}"
    if run.tally.images_per_second is None:
        return ""
    each = f" a worker, on {len(run.hosts)} machines" if len(run.hosts) > 1 else ""
    return f"{run.tally.images_per_second:.1f} images/s{each}"


def _host_lines(run: PredictionSummary) -> list[str]:
    """What the hosts of a cluster have done, the slowest first, and what befell the workers."""
    report = run.report
    if report is None:
        return []
    rates = {name: _host_rate(run, name) for name in run.hosts}
    slowest = sorted(run.hosts, key=lambda name: (rates[name] or 0.0, name))
    shown = [
        f"{name} {run.hosts[name].rows:,} rows, {_workers(report, name)}"
        + ("" if (rate := rates[name]) is None else f", {rate:.1f} images/s")
        for name in slowest[:_SHOWN_HOSTS]
    ]
    if len(slowest) > _SHOWN_HOSTS:
        shown.append(f"... ({len(slowest)} hosts, the slowest are first)")
    lines = [f"hosts     {'; '.join(shown)}"] if shown else []
    if report.lost:
        lines.append(f"lost      {counted(report.lost, 'worker')}")
    if report.doubled:
        lines.append(f"late      {counted(report.doubled, 'shard')}, which two workers began")
    lines += (f"refused   {name}: {reason}" for name, reason in report.refused.items())
    return lines


def _workers(report: ClusterReport, host: str) -> str:
    """How many there were; of a host that has left, or was here before a resumption, none are."""
    workers = report.workers.get(host, 0)
    return counted(workers, "worker") if workers else "each worker"


def _host_rate(run: PredictionSummary, host: str) -> float | None:
    """Images a second of its workers side by side, as many as this command had there."""
    workers = 0 if run.report is None else run.report.workers.get(host, 0)
    return run.hosts[host].images_per_second(max(1, workers))


def _cluster_value(run: PredictionSummary) -> dict[str, Any]:
    """The hosts of a cluster; nothing without one."""
    report = run.report
    if report is None:
        return {}
    hosts = {
        name: {
            "rows": run.hosts[name].rows,
            "workers": report.workers.get(name, 0),
            "images_per_second": _host_rate(run, name),
        }
        for name in sorted(run.hosts)
    }
    return {
        "hosts": hosts,
        "cluster": {
            "workers": sum(report.workers.values()),
            "refused": report.refused,
            "lost_workers": report.lost,
            "late_shards": report.doubled,
            "predicted": report.predicted,
            "seconds": round(report.seconds, 3),
            "images_per_second": report.images_per_second,
        },
    }


def _class_lines(tally: ClassTally | None) -> list[str]:
    """How each class fares; where there are many, those with the lowest recall."""
    if tally is None:
        return []
    results = tally.results()
    shown = results
    if len(results) > _SHOWN_CLASSES:
        lowest = sorted(results, key=lambda each: 2.0 if each.recall is None else each.recall)
        kept = {*lowest[:_SHOWN_CLASSES]}
        shown = tuple(each for each in results if each in kept)
    rows: list[tuple[str, ...]] = [
        (
            each.label,
            f"{each.images:,}",
            *(_share(part) for part in (each.recall, each.precision, each.average_precision)),
        )
        for each in shown
    ]
    header: tuple[str, ...] = ("class", "images", "recall", "precision", "average precision")
    if tally.complete:
        rows.append(("mean", "", "", "", _share(tally.mean_average_precision)))
    else:
        header, rows = header[:-1], [row[:-1] for row in rows]
    lines = ["", *table_text(header, rows).splitlines()]
    if len(shown) < len(results):
        lines.append(
            f"The {len(shown)} classes of {len(results)} with the lowest recall; --html and --json "
            "have all."
        )
    if not tally.complete:
        lines.append("Average precision needs each class's probability: add --top-k all.")
    return [*lines, ""]


def _share(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.1f} %"


def prediction_value(run: PredictionSummary) -> dict[str, Any]:
    """The same for ``--json``."""
    tally, head = run.tally, run.bundle.manifest.labels.head
    found = {} if tally.classes is None else _class_values(tally.classes)
    return {
        "rows": tally.rows,
        "ok": tally.ok,
        "failures": dict(tally.failures),
        "labels": dict(tally.labels),
        "skipped": tally.skipped,
        "labelled": tally.labelled,
        "correct": tally.correct,
        "accuracy": tally.accuracy,
        **found,
        "seconds": round(tally.seconds, 3),
        "images_per_second": tally.images_per_second,
        "stage_seconds": {stage: round(value, 3) for stage, value in run.stage_seconds.items()},
        **_cluster_value(run),
        "session": msgspec.to_builtins(run.spec),
        "answer": None if tally.only is None else row_value(tally.only, run.top_k, head),
        "proof": status_value(run.status),
        **_embedding_value(run),
        "outputs": [str(path) for path in run.outputs],
    }


def shard_text(done: ShardSummary) -> str:
    """What one process has done, and what makes the tables."""
    missing = done.files - done.rows
    collect = command_line(["deploykit", "collect", str(done.folder)])
    left = f"{missing:,} are missing; when they are there" if missing else "all are there"
    return (
        f"shard     {done.shard}: {counted(done.predicted, 'image')} predicted\n"
        f"run       {visible(str(done.folder))}: {done.rows:,} of {counted(done.files, 'row')}\n"
        f"next      {left}: {visible(collect)}"
    )


def shard_value(done: ShardSummary) -> dict[str, Any]:
    """The same for ``--json``."""
    return {**dataclasses.asdict(done), "folder": str(done.folder)}


def _class_values(tally: ClassTally) -> dict[str, Any]:
    """How each class fares; a share that nothing is known of is null."""
    return {
        "mean_average_precision": tally.mean_average_precision,
        "classes": [
            {
                "label": each.label,
                "images": each.images,
                "decided": each.decided,
                "correct": each.correct,
                "precision": each.precision,
                "recall": each.recall,
                "average_precision": each.average_precision,
            }
            for each in tally.results()
        ],
    }


def _embedding_value(run: PredictionSummary) -> dict[str, Any]:
    if run.embeddings is None:
        return {}
    from deploykit.proof.embeddings_text import embeddings_value

    return {"embedding": embeddings_value(run.bundle, run.embeddings, run.spec)}


def row_text(row: Prediction) -> str:
    """A prediction in one line: ``robin.jpg: robin 97.3 %, crow 1.2 %; margin 4.31``.

    Of several labels those come first that were given: ``robin.jpg: bird 97.3 %, water 61.0 %; not
    boat 3.1 %; margin 0.45``.
    """
    if not row.ok or row.margin is None:
        return visible(f"{row.path}: {row.status}: {row.reason}")
    ranked = _ranked(row.top)
    if row.labels is not None:
        known = {each.label: each for each in row.top}
        given = [_ranked([known[label]]) if label in known else label for label in row.labels]
        others = [each for each in row.top if each.label not in row.labels]
        ranked = ", ".join(given) or "none"
        ranked += f"; not {_ranked(others)}" if others else ""
    return visible(f"{row.path}: {ranked}; margin {row.margin:.2f}{_expected(row)}")
