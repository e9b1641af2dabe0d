"""The result of a verification, for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from deploykit.commands.verify.claims import claim_of, limits_of
from deploykit.commands.verify.result import Verification
from deploykit.parity.accuracy import Accuracy, ClassAccuracy
from deploykit.parity.diagnosis import StageReport
from deploykit.proof.text import (
    flips_of,
    flips_text,
    photos_text,
    verdict_value,
    verdicts_text,
)
from deploykit.proof.verdict import Verdict
from deploykit.specs.value import plain_value
from deploykit.system.text import counted, table_text

_SHOWN_CLASSES = 20
_WORST_CLASSES = 10


def verification_text(result: Verification) -> str:
    """The verdicts, the flips, and what speaks against those that failed."""
    lines = [
        verdicts_text(result.verdicts),
        f"reference  {result.reference}",
    ]
    claim = claim_of(result)
    if claim.limit:
        lines.append(f"           {claim.limit}")
    lines.append(f"images     {photos_text(result.photos)}")
    if result.photos.kind == "golden":
        lines.append("           chosen at export for their margins: no bound follows for photos")
    if result.unreadable:
        lines.append(f"           {result.unreadable} more could not be read")
    if result.mining is not None:
        first, *others = result.mining.sentences
        lines += (f"margins    {first}", *(f"           {sentence}" for sentence in others))
    if result.accuracy:
        lines += accuracy_text(result)
    for verdict in result.verdicts:
        lines += flips_text(verdict)
    for verdict in result.verdicts:
        lines += (f"FAILED  {verdict.candidate.title}: {reason}" for reason in verdict.reasons)
        if verdict.note is not None:
            lines.append(f"note    {verdict.candidate.title}: {verdict.note}")
    if not result.verdicts:
        lines.append("FAILED  no candidate was compared")
    return "\n".join(lines)


def numbers_text(verdict: Verdict) -> str:
    """What was measured of a candidate, in a line."""
    found = verdict.measurement
    return (
        f"flips {flips_of(found)}, error {found.max_relative_error:.1e} of the scale, "
        f"|dp| {found.max_probability_change:.1e}, {verdict.kind} on {verdict.candidate.device}, "
        f"batches of {', '.join(map(str, found.batch_sizes))}"
    )


def comparison_text(result: Verification) -> str:
    """The comparison's own verdict, where other lines follow that may fail the whole."""
    if result.passed:
        return "PASSED  comparison: every candidate is within its tolerance"
    if not result.verdicts:
        return "FAILED  comparison: no candidate was compared"
    failed = sum(not verdict.passed for verdict in result.verdicts)
    return f"FAILED  comparison: {failed} of {counted(len(result.verdicts), 'candidate')} failed"


def verdict_text(passed: bool) -> str:
    """The last line."""
    return "PASSED" if passed else "FAILED"


def accuracy_text(result: Verification) -> list[str]:
    """How often each side is right on the labelled images, and on which classes."""
    reference, *candidates = result.accuracy
    sides = {"reference": reference}
    lines = [f"accuracy   {_rate_text(reference)}: the reference"]
    for verdict, found in zip(result.verdicts, candidates, strict=True):
        name = verdict.candidate.title
        if found == reference:
            lines.append(f"           the same, class by class: {name}")
        else:
            lines.append(f"           {_rate_text(found)}: {name}")
            sides[name] = found
    return [*lines, "", _classes_text(sides), ""]


def _rate_text(found: Accuracy) -> str:
    """``97.9 % (47 of 48), errors at most 9.4 %``."""
    return (
        f"{100 * found.rate:.1f} % ({found.correct} of {found.images}), "
        f"errors at most {100 * found.error_rate_bound:.1f} %"
    )


def _classes_text(sides: Mapping[str, Accuracy]) -> str:
    """A table with a row for each class, or for the worst ones where there are many."""
    rows = list(zip(*(side.classes for side in sides.values()), strict=True))
    caption = []
    if len(rows) > _SHOWN_CLASSES:
        caption = [f"the worst {_WORST_CLASSES} of {len(rows)} classes:"]
        rows = sorted(rows, key=lambda row: min(found.rate for found in row))[:_WORST_CLASSES]
    header = ["class", "images"]
    for side in sides:
        header += (side, "its errors at most")
    table = table_text(header, map(_class_row, rows))
    return "\n".join((*caption, table))


def _class_row(sides: Sequence[ClassAccuracy]) -> list[str]:
    cells = [sides[0].label, str(sides[0].images)]
    for found in sides:
        cells += (f"{100 * found.rate:.1f} %", f"{100 * found.error_rate_bound:.1f} %")
    return cells


def verification_value(result: Verification, stages: StageReport | None = None) -> dict[str, Any]:
    """The verdicts, what was compared, and how often each side is right on labelled images.

    Args:
        result: What was found.
        stages: The walk over the stages, which may limit what was proven; None without one.
    """
    reference, *candidates = result.accuracy or (None,)
    return {
        "passed": result.passed,
        "reference": result.reference,
        "reference_kind": result.reference_kind,
        "is_recorded": result.is_recorded,
        "obstacle": result.obstacle,
        "claim": claim_of(result).holds,
        "limit": " ".join(limits_of(result, stages)) or None,
        "photos": msgspec.to_builtins(result.photos),
        "unreadable": result.unreadable,
        "verdicts": [verdict_value(verdict) for verdict in result.verdicts],
        "skipped": [
            {"candidate": str(candidate), "reason": reason}
            for candidate, reason in result.skipped.items()
        ],
        "accuracy": {
            "reference": msgspec.to_builtins(reference),
            "candidates": msgspec.to_builtins(candidates),
        }
        if reference is not None
        else None,
        "mining": None
        if result.mining is None
        else {**plain_value(result.mining), "sentences": list(result.mining.sentences)},
        "created": result.created,
        "seconds": None if result.seconds is None else round(result.seconds, 3),
        "versions": result.versions,
    }
