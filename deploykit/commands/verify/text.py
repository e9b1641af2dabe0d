"""The result of a verification, for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import msgspec

from deploykit.commands.diagnose.text import diagnosis_text, diagnosis_value
from deploykit.commands.verify.conclusion import conclusion_of, names_the_fault
from deploykit.commands.verify.result import Verification
from deploykit.parity.accuracy import Accuracy, ClassAccuracy
from deploykit.proof.embeddings_text import failure_text, similarity_text
from deploykit.proof.text import (
    OUTCOMES,
    accuracy_change_text,
    flips_text,
    images_text,
    losses_text,
    names_text,
    reasons_text,
    said_once,
    verdict_value,
    verdicts_text,
)
from deploykit.specs.heads import BaseHead, ClassMeasure
from deploykit.specs.session import SessionSpec
from deploykit.specs.value import plain_value
from deploykit.system.text import counted, lines_text, table_text

_SHOWN_CLASSES = 20
_WORST_CLASSES = 10
#: With more sides than these the table of classes has a row a side.
_MOST_COLUMNS = 3


def verification_text(result: Verification) -> str:
    """The verdicts with their flips and reasons, the diagnosis, and the conclusion at the end.

    Before them stands that the trained network was not asked, where it was not.
    """
    conclusion = conclusion_of(result)
    lines = [line for line in (conclusion.stand_in, conclusion.command, "") if conclusion.stand_in]
    lines += [
        *verdicts_text(result.verdicts).split("\n"),
        f"reference  {result.reference.description}",
        f"images     {images_text(result.images)}",
    ]
    if result.unreadable:
        lines.append(f"           {result.unreadable} more could not be read")
    lines += table_match_text(result)
    lines += latencies_text(result)
    lines += (f"embeddings {spec.title}: {text}" for spec, text in _similarities(result))
    if result.accuracy:
        lines += _accuracy_text(result)
    for flipped, of in said_once((each.measurement.flipped, each) for each in result.verdicts):
        lines += flips_text(*of) if flipped else []
    losses = (
        (losses_text(result.class_changes.get(each.candidate, ())), each)
        for each in result.verdicts
    )
    lines += (f"{names_text(of)} {lost}" for lost, of in said_once(losses) if lost)
    lines += reasons_text(result.verdicts)
    if not result.verdicts:
        lines.append("UNPROVEN  no candidate was compared")
    last = []
    if result.export_command is not None:
        last += ["", "To mend all that export can:", result.export_command]
    last += ["", conclusion.sentence, *conclusion.reasons]
    if conclusion.diagnosis:
        last += [f"{names_the_fault(result)}:", conclusion.diagnosis]
    last += (f"note    {limit}" for limit in conclusion.limits)
    blocks = (f"\n{block}" for block in diagnosis_text(result.diagnosis))
    return "\n".join((lines_text(lines), *blocks, lines_text(last)))


def _similarities_value(result: Verification) -> dict[str, Any]:
    found = result.similarities.items()
    values = [
        {"candidate": msgspec.to_builtins(spec), "passed": each.passed, **plain_value(each)}
        for spec, each in found
    ]
    return {"embeddings": values} if values else {}


def _similarities(result: Verification) -> Iterator[tuple[SessionSpec, str]]:
    """What was found of the embeddings, by what gave them."""
    for spec, found in result.similarities.items():
        kind = result.reference.kind
        yield spec, failure_text(found, kind) or similarity_text(found, kind)


def table_match_text(result: Verification) -> Iterator[str]:
    """What of a table and of the images was not compared, a line; nothing without a table."""
    match = result.table
    if match is None:
        return
    left = {
        "matches no image": (match.strangers, "match no image"),
        "has no answer": (match.empty, "have no answer"),
    }
    told = [
        f"{count:,} {one if count == 1 else many}" for one, (count, many) in left.items() if count
    ]
    if match.absent:
        told.append(counted(match.absent, "image has no row", "images have no row"))
    yield f"table      {match.name}: {'; '.join([counted(match.rows, 'row'), *told])}"


def latencies_text(result: Verification, candidate: SessionSpec | None = None) -> Iterator[str]:
    """How long a server takes, a line for each size of a request; nothing without a server.

    Args:
        result: What was found.
        candidate: One of what was asked; None for all.
    """
    for spec, latencies in result.latencies.items():
        if candidate not in (None, spec):
            continue
        for each in latencies:
            yield (
                f"latency    {spec.graph}, {counted(each.batch_size, 'image')} a request: "
                f"p50 {each.p50_ms:.1f} ms, p90 {each.p90_ms:.1f} ms, p99 {each.p99_ms:.1f} ms "
                f"({counted(each.requests, 'request')}, one after the other)"
            )


def verdict_text(result: Verification) -> str:
    """The last line: PASSED, FAILED or UNPROVEN."""
    return OUTCOMES[conclusion_of(result).outcome].upper()


def _accuracy_text(result: Verification) -> Iterator[str]:
    """How often each side is right on the labelled images, and on which classes not as often."""
    (reference, same), *others = result.accuracy_sides()
    head = result.head
    sides = {"reference": reference}
    yield f"{head.accuracy:<10} {_rate_text(reference, head)}: the reference"
    if same:
        all_same = len(same) > 1 and not others
        name = f"all {len(same)} candidates" if all_same else names_text(same)
        yield f"           the same in each class: {name}"
    for found, of in others:
        name = names_text(of)
        yield f"           {_rate_text(found, head)}: {name}"
        changes = dict.fromkeys(verdict.measurement.accuracy for verdict in of)
        yield from (f"           {accuracy_change_text(each)}" for each in changes if each)
        sides[name] = found
    classes = list(zip(*(side.classes for side in sides.values()), strict=True))
    rows = [row for row in classes if any(_told(each, head) != _told(row[0], head) for each in row)]
    if not rows:
        return
    yield ""
    different = f"different in {len(rows)} of {counted(len(classes), 'class', 'classes')}"
    worst = ""
    if len(rows) > _SHOWN_CLASSES:
        worst = f", the worst {_WORST_CLASSES}"
        rows = sorted(rows, key=lambda row: min(found.rate for found in row))[:_WORST_CLASSES]
    yield f"{different}{worst}:"
    narrow = len(head.class_measures) == 1 and len(sides) <= _MOST_COLUMNS
    table = _columns_of_sides if narrow else _rows_of_sides
    yield from table_text(*table([*sides], rows, head)).split("\n")


_Table: TypeAlias = tuple[list[str], list[list[str]]]


def _columns_of_sides(
    sides: Sequence[str], rows: Iterable[Sequence[ClassAccuracy]], head: BaseHead
) -> _Table:
    """A table of one measure a class: each side has its column."""
    header = ["class", "images"]
    for name in sides:
        header += (name, "its errors at most")
    table = []
    for row in rows:
        cells = [row[0].label, str(row[0].images)]
        for found in row:
            bound = f"{100 * found.error_rate_bound:.1f} %"
            cells += (*_told(found, head), bound)
        table.append(cells)
    return header, table


def _rows_of_sides(
    sides: Sequence[str], rows: Iterable[Sequence[ClassAccuracy]], head: BaseHead
) -> _Table:
    """A table of several measures a class: a side has a row where it is not as the reference."""
    table = []
    for row in rows:
        reference, *others = (_told(found, head) for found in row)
        table.append([row[0].label, str(row[0].images), *reference, sides[0]])
        table += (
            ["", "", *cells, name]
            for name, cells in zip(sides[1:], others, strict=True)
            if cells != reference
        )
    return ["class", "images", *head.class_measures, "model"], table


def _told(found: ClassAccuracy, head: BaseHead) -> list[str]:
    return [f"{100 * each:.1f} %" for each in found.told(head.class_measures)]


def _rate_text(found: Accuracy, head: BaseHead) -> str:
    """``97.9 % (47 of 48), of such images at least 90.5 %``."""
    text = (
        f"{100 * found.rate:.1f} % ({found.correct} of {found.images}), "
        f"of such images at least {100 * (1 - found.error_rate_bound):.1f} %"
    )
    if "average precision" in head.class_measures:
        text += f", mean average precision {100 * found.mean_average_precision:.1f} %"
    return text


def accuracy_line(found: Accuracy, head: BaseHead) -> str:
    """All that is told of one side's accuracy, in one line."""
    classes = (
        f"{each.label} "
        + ", ".join(
            f"{name} {100 * value:.1f} %"
            for name, value in zip(head.class_measures, each.told(head.class_measures), strict=True)
        )
        for each in found.classes
    )
    return "; ".join((f"{head.accuracy} {_rate_text(found, head)}", *classes))


def _accuracy_value(found: Accuracy) -> dict[str, Any]:
    """An accuracy as plain values, with what can be derived from it."""
    measures: tuple[ClassMeasure, ...] = ("recall", "precision")
    return {
        **msgspec.to_builtins(found),
        "mean_average_precision": found.mean_average_precision,
        "classes": [
            {
                **msgspec.to_builtins(each),
                **dict(zip(measures, each.told(measures), strict=True)),
            }
            for each in found.classes
        ],
    }


def _elsewhere_value(result: Verification) -> dict[str, Any]:
    """What there is to tell of a server or a table; nothing of what ran here."""
    found: dict[str, Any] = {}
    if result.table is not None:
        found["table"] = asdict(result.table)
    if result.latencies:
        found["latencies"] = [
            {"candidate": msgspec.to_builtins(spec), "requests": msgspec.to_builtins(latencies)}
            for spec, latencies in result.latencies.items()
        ]
    return found


def verification_value(result: Verification) -> dict[str, Any]:
    """Everything that was found, as plain values."""
    reference, mining = result.reference, result.mining
    accuracy = [_accuracy_value(side) for side in result.accuracy]
    return {
        "passed": result.passed,
        "conclusion": asdict(conclusion_of(result)),
        "reference": {
            "kind": reference.kind,
            "description": reference.description,
            "is_recorded": reference.is_recorded,
            "module_reason": reference.module_reason,
        },
        "images": msgspec.to_builtins(result.images),
        "unreadable": result.unreadable,
        "verdicts": [
            {
                **verdict_value(verdict),
                "classes": [
                    {**plain_value(each), "lost": each.lost}
                    for each in result.class_changes.get(verdict.candidate, ())
                ],
            }
            for verdict in result.verdicts
        ],
        **_similarities_value(result),
        **_elsewhere_value(result),
        "skipped": [
            {"candidate": str(candidate), "reason": reason}
            for candidate, reason in result.skipped.items()
        ],
        "accuracy": {"reference": accuracy[0], "candidates": accuracy[1:]} if accuracy else None,
        "mining": mining and {**plain_value(mining), "sentences": list(mining.sentences)},
        **diagnosis_value(result.diagnosis),
        "export_command": result.export_command,
        "created": result.created,
        "seconds": None if result.seconds is None else round(result.seconds, 3),
        "versions": result.versions,
    }
