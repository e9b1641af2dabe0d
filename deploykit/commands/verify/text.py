"""The result of a verification, for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import msgspec

from deploykit.commands.diagnose.text import diagnosis_text, diagnosis_value
from deploykit.commands.verify.conclusion import conclusion_of
from deploykit.commands.verify.result import Verification
from deploykit.parity.accuracy import Accuracy
from deploykit.proof.embeddings import failure_text, similarity_text
from deploykit.proof.text import (
    OUTCOMES,
    flips_text,
    images_text,
    reasons_text,
    verdict_value,
    verdicts_text,
)
from deploykit.specs.session import SessionSpec
from deploykit.specs.value import plain_value
from deploykit.system.text import table_text

_SHOWN_CLASSES = 20
_WORST_CLASSES = 10


def verification_text(result: Verification) -> str:
    """The verdicts with their flips and reasons, the diagnosis, and the conclusion at the end.

    Before them stands that the trained network was not asked, where it was not.
    """
    conclusion = conclusion_of(result)
    lines = [line for line in (conclusion.stand_in, conclusion.command, "") if conclusion.stand_in]
    lines += [
        verdicts_text(result.verdicts),
        f"reference  {result.reference.description}",
        f"images     {images_text(result.images)}",
    ]
    if result.unreadable:
        lines.append(f"           {result.unreadable} more could not be read")
    lines += (f"embeddings {spec.title}: {text}" for spec, text in _similarities(result))
    if result.accuracy:
        lines += _accuracy_text(result)
    for verdict in result.verdicts:
        lines += flips_text(verdict)
    lines += reasons_text(result.verdicts)
    if not result.verdicts:
        lines.append("UNPROVEN  no candidate was compared")
    for block in diagnosis_text(result.diagnosis):
        lines += ("", block)
    if result.export_command is not None:
        lines += ("", "To mend all that export can:", result.export_command)
    lines += ("", conclusion.sentence, *conclusion.reasons)
    lines += (f"note    {limit}" for limit in conclusion.limits)
    return "\n".join(lines)


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
        yield spec, failure_text(found) or similarity_text(found)


def verdict_text(result: Verification) -> str:
    """The last line: PASSED, FAILED or UNPROVEN."""
    return OUTCOMES[conclusion_of(result).outcome].upper()


def _accuracy_text(result: Verification) -> Iterator[str]:
    """How often each side is right on the labelled images, and on which classes."""
    reference, *candidates = result.accuracy
    sides = {"reference": reference}
    yield f"accuracy   {_rate_text(reference)}: the reference"
    for verdict, found in zip(result.verdicts, candidates, strict=True):
        name = verdict.candidate.title
        if found == reference:
            yield f"           the same, class by class: {name}"
        else:
            yield f"           {_rate_text(found)}: {name}"
            sides[name] = found
    rows = list(zip(*(side.classes for side in sides.values()), strict=True))
    yield ""
    if len(rows) > _SHOWN_CLASSES:
        yield f"the worst {_WORST_CLASSES} of {len(rows)} classes:"
        rows = sorted(rows, key=lambda row: min(found.rate for found in row))[:_WORST_CLASSES]
    header = ["class", "images"]
    for name in sides:
        header += (name, "its errors at most")
    table = []
    for row in rows:
        cells = [row[0].label, str(row[0].images)]
        for found in row:
            cells += (f"{100 * found.rate:.1f} %", f"{100 * found.error_rate_bound:.1f} %")
        table.append(cells)
    yield table_text(header, table)


def _rate_text(found: Accuracy) -> str:
    """``97.9 % (47 of 48), errors at most 9.4 %``."""
    return (
        f"{100 * found.rate:.1f} % ({found.correct} of {found.images}), "
        f"errors at most {100 * found.error_rate_bound:.1f} %"
    )


def verification_value(result: Verification) -> dict[str, Any]:
    """Everything that was found, as plain values."""
    reference, mining = result.reference, result.mining
    accuracy = [msgspec.to_builtins(side) for side in result.accuracy]
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
        "verdicts": [verdict_value(verdict) for verdict in result.verdicts],
        **_similarities_value(result),
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
