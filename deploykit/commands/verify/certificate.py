"""The certificate of a verification: the verdict first, then all that it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.bundle.folder import CANONICAL_GRAPH
from deploykit.commands.verify.answers import Comparison, PhotoAnswers, thumbnail_urls
from deploykit.commands.verify.claims import claim_of
from deploykit.commands.verify.headline import Outcome, headline_of, outcome_of, worst_of
from deploykit.commands.verify.scatter import Scatter, scatter_of
from deploykit.html.document import render, script_json, write_document
from deploykit.html.words import (
    bound,
    number,
    percent,
    power_of_ten,
    sentence_of,
    stranger,
    visible,
)
from deploykit.proof.text import photos_text
from deploykit.system.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.bundle.folder import Bundle
    from deploykit.bundle.manifest import Manifest
    from deploykit.commands.diagnose.text import BrokenDiagnosis
    from deploykit.commands.verify.result import Verification
    from deploykit.parity.accuracy import Accuracy, ClassAccuracy
    from deploykit.parity.diagnosis import LayerReport, StageReport
    from deploykit.proof.verdict import Verdict

_TEMPLATE = "certificate.html.j2"
_STYLES = (
    "tiles.css",
    "tables.css",
    "verdict.css",
    "picture.css",
    "photos.css",
    "blame.css",
    "print.css",
)
_SCRIPTS = ("picture.js",)

_OUTCOME_WORDS = {"passed": "Passed", "failed": "Failed", "unproven": "Not proven"}
_OUTCOME_BADGES = {"passed": "good", "failed": "bad", "unproven": "warn"}

_MOST_FLIPS = 24
_CLOSEST = 6
_MOST_CLASSES = 40
_MOST_LAYERS = 30


def write_certificate(
    path: Path,
    bundle: Bundle,
    verification: Verification,
    *,
    stages: StageReport | None = None,
    layers: Sequence[LayerReport] = (),
    broken_off: Sequence[BrokenDiagnosis] = (),
    mend: str | None = None,
    photos_folder: Path | None = None,
) -> None:
    """Write the page; one that is there is replaced when the new one is whole.

    Args:
        path: The page.
        bundle: What was verified.
        verification: What was found.
        stages: The walk over the stages; None where none was made.
        layers: The walks over the nodes.
        broken_off: The walks that broke off, which fail the whole.
        mend: The command that mends what the stages found; None for none.
        photos_folder: Where the photos that are shown are; None for the folder that the
            verification names. One that cannot be read there is shown without its picture.

    Raises:
        InputError: The system fails to write it: the disk may be full.
    """
    photos = verification.photos
    if photos_folder is None and photos.kind == "photos":
        photos_folder = Path(photos.source)
    candidates = [
        _candidate_view(Comparison(verification, place, bundle.manifest.labels.names), verdict)
        for place, verdict in enumerate(verification.verdicts)
    ]
    shown = {photo.name for view in candidates for photo in (*view.flips, *view.closest)}
    context = {
        "bundle": bundle.name,
        "manifest": bundle.manifest,
        "verification": verification,
        "created": datetime.fromisoformat(verification.created),
        "headline": headline_of(verification, stages, layers, broken_off),
        "worst": worst_of(verification.verdicts) if verification.verdicts else None,
        "photos_words": photos_text(photos),
        "reference_name": claim_of(verification).reference,
        "graphs": _graphs(bundle.manifest, verification.verdicts),
        "candidates": candidates,
        "pictures": thumbnail_urls(shown, photos_folder),
        "classes": _shown_classes(verification.accuracy),
        "stages": stages,
        "mend": mend,
        "layers": layers,
        "most_layers": _MOST_LAYERS,
    }
    write_document(path, render(__package__, _TEMPLATE, _STYLES, _SCRIPTS, {**context, **_tools()}))


def _tools() -> dict[str, Any]:
    """What the template computes with."""
    return {
        "words": _OUTCOME_WORDS,
        "badges": _OUTCOME_BADGES,
        "part_of": _part_of,
        "script_json": script_json,
        "bound": bound,
        "counted": counted,
        "number": number,
        "percent": percent,
        "power_of_ten": power_of_ten,
        "sentence_of": sentence_of,
        "stranger": stranger,
        "visible": visible,
    }


@dataclass(frozen=True)
class _CandidateView:
    """What the page shows of one candidate.

    Attributes:
        verdict: What was found.
        outcome: Whether it passed, failed, or shows nothing.
        scatter: The picture of all photos; None where there is nothing to draw.
        points: What the script says about each point that is drawn one by one.
        placed: How many photos have finite numbers.
        safe: Those of them whose logits moved too little to change their class.
        room: How many times further the nearest one's would have to move; infinite where no
            logit moved, None without photos.
        flips: The first photos whose class differs, the largest margins first.
        closest: Where none does, those that came closest.
    """

    verdict: Verdict
    outcome: Outcome
    scatter: Scatter | None
    points: tuple[list[Any], ...]
    placed: int
    safe: int
    room: float | None
    flips: tuple[PhotoAnswers, ...]
    closest: tuple[PhotoAnswers, ...]


def _candidate_view(comparison: Comparison, verdict: Verdict) -> _CandidateView:
    photos = comparison.photos
    limit = verdict.tolerance.max_relative_error
    allowed = None if limit is None else limit * verdict.measurement.scale
    scatter = scatter_of(photos, comparison.undecidable, allowed)
    flips = comparison.flipped(_MOST_FLIPS)
    closest = [] if flips else comparison.closest(_CLOSEST)
    drawn = scatter.points if scatter else ()
    return _CandidateView(
        verdict=verdict,
        outcome=outcome_of(verdict),
        scatter=scatter,
        points=tuple(comparison.point(each.photo) for each in drawn),
        placed=len(photos),
        safe=sum(photo.kind == "safe" for photo in photos),
        room=min((photo.room for photo in photos), default=None),
        flips=tuple(map(comparison.shown, flips)),
        closest=tuple(map(comparison.shown, closest)),
    )


def _graphs(manifest: Manifest, verdicts: Sequence[Verdict]) -> Mapping[str, str]:
    """The SHA-256 of the canonical graph and of every file that was compared."""
    files = dict.fromkeys([CANONICAL_GRAPH, *(verdict.candidate.graph for verdict in verdicts)])
    return {file: manifest.files[file].sha256 for file in files if file in manifest.files}


def _shown_classes(accuracy: Sequence[Accuracy]) -> list[tuple[ClassAccuracy, ...]]:
    """The classes that are shown, each as the reference and then every candidate has it.

    Of many, those that differ come first, then those that are recognised worst.
    """
    rows = list(zip(*(side.classes for side in accuracy), strict=True))
    if len(rows) <= _MOST_CLASSES:
        return rows
    return sorted(rows, key=_interest)[:_MOST_CLASSES]


def _interest(row: tuple[ClassAccuracy, ...]) -> tuple[bool, float]:
    reference, *others = row
    same = all(each.correct == reference.correct for each in others)
    return same, reference.rate


def _part_of(value: float, whole: float) -> float:
    """How far a bar is filled; a value that is no finite number fills it."""
    return value / whole if 0 <= value < whole < math.inf else float(value != 0)
