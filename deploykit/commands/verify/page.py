"""The certificate of a verification: the verdict first, then all that it rests on."""

from __future__ import annotations

import base64
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.bundle.folder import CANONICAL_GRAPH
from deploykit.commands.verify.conclusion import (
    conclusion_of,
    names_the_fault,
    noun_of,
    reference_name,
    totals_of,
)
from deploykit.commands.verify.scatter import Movement, movements, scatter_of
from deploykit.html.document import render, write_document
from deploykit.html.thumbnails import make_thumbnails
from deploykit.html.words import number
from deploykit.proof.embeddings_text import similarity_text
from deploykit.proof.text import budget_text, images_text, names_text, outcome_of
from deploykit.specs.model import Labels
from deploykit.specs.prediction import Ranked

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle
    from deploykit.commands.verify.result import Verification
    from deploykit.parity.accuracy import Accuracy, ClassAccuracy
    from deploykit.specs.heads import BaseHead
    from deploykit.specs.session import Given, Logits

_STYLES = (
    "tiles.css",
    "tables.css",
    "verdict.css",
    "picture.css",
    "images.css",
    "diagnosis.css",
    "print.css",
)
_OUTCOMES = {
    "passed": ("Passed", "good"),
    "failed": ("Failed", "bad"),
    "unproven": ("Not proven", "warn"),
}
_TOP_K = 3
#: Of the classes that an image got or lost, which the best may not be.
_MOST_CHANGED = 6
_MOST_FLIPS = 24
_CLOSEST = 6
_MOST_CLASSES = 40


def write_certificate(
    path: Path, bundle: Bundle, found: Verification, *, images: Path | None = None
) -> None:
    """Write the page; one that is there is replaced when the new one is whole.

    Args:
        path: The page.
        bundle: What was verified.
        found: What was found.
        images: The folder of the images, or the file that lists them; None for what the
            verification names. An image that cannot be read there is shown without its thumbnail.

    Raises:
        InputError: The system fails to write it: the disk may be full.
    """
    if images is None and found.images.kind == "photos":
        images = Path(found.images.source)
    elif images is not None and images.is_file():
        images = images.parent  # to which the names in it are relative
    labels = bundle.manifest.labels
    candidates = [_candidate(found, place, labels) for place in range(len(found.verdicts))]
    _fold_the_same(candidates)
    shown = {each["name"] for view in candidates for each in (*view["flips"], *view["closest"])}
    graphs = (CANONICAL_GRAPH, *(verdict.candidate.graph for verdict in found.verdicts))
    files = bundle.manifest.files
    sides = found.accuracy_sides()
    accuracy = [side for side, _ in sides]
    context = {
        "bundle": bundle.name,
        "manifest": bundle.manifest,
        "verification": found,
        "created": datetime.fromisoformat(found.created),
        "conclusion": conclusion_of(found),
        "names_the_fault": names_the_fault(found),
        "outcomes": _OUTCOMES,
        "totals": totals_of(found.verdicts) if found.verdicts else None,
        "noun": noun_of(found),
        "images_words": images_text(found.images),
        "graphs": {graph: files[graph].sha256 for graph in graphs if graph in files},
        "candidates": candidates,
        "thumbnails": _thumbnail_urls(shown, images),
        "head": labels.head,
        "accuracy_names": [reference_name(found), *(names_text(of) for _, of in sides[1:])],
        "accuracy_same": names_text(sides[0][1]) if sides and sides[0][1] else "",
        "accuracy": accuracy,
        "classes": _shown_classes(accuracy, labels.head),
        "part_of": _part_of,
    }
    pieces = render(__package__, "certificate.html.j2", _STYLES, ("picture.js",), context)
    write_document(path, pieces)


def _candidate(found: Verification, place: int, labels: Labels) -> dict[str, Any]:
    """What the page shows of a candidate, beside its verdict.

    Returns:
        The ``scatter`` of its images, None where there is nothing to draw, with a row of
        ``points`` for each that is drawn; how many images have finite numbers, ``placed``, and how
        many of those moved too little to change their decision, ``safe``; how many times further
        the nearest one would have to move, ``room``; the ``flips``, the largest margins first, and
        where there are none the ``closest``; the classes that ``changed``, those that lose most
        first; the budget that it passed ``within``, "" without; and of its embeddings how near they
        are to the network's, ``similarity``, empty where they were not compared or the reasons tell
        of them.
    """
    verdict, names = found.verdicts[place], found.answers.paths
    sides = {"reference": found.answers.reference, "candidate": found.answers.candidates[place]}
    images = movements(
        sides["reference"], sides["candidate"], labels.head, verdict.candidate.precision
    )
    embeddings = found.similarities.get(verdict.candidate)
    scale, limit = verdict.measurement.scale, verdict.tolerance.max_relative_error

    gives = verdict.candidate.gives

    def shown(image: Movement) -> dict[str, Any]:
        both = {side: logits[[image.index]] for side, logits in sides.items()}
        name, first = names[image.index], _changed_classes(both, labels)
        nearest = int(labels.head.nearest(both["reference"])[0])
        answers = {side: _answer(row, labels, first, nearest) for side, row in both.items()}
        if gives in ("headline", "decisions"):
            answers["candidate"] |= {"top": _known(both["candidate"], labels, gives)}
        return {
            "name": name,
            "expected": found.expected.get(name),
            "decidable": image.decidable,
            "room": image.room,
            **answers,
        }

    def point(image: Movement) -> list[Any]:
        """Its name, both decisions, margin, change, and whether the margin decides."""
        rows = (logits[[image.index]] for logits in sides.values())
        decisions = (labels.title_of(labels.head.decide(row)[0]) for row in rows)
        numbers = number(image.margin), number(image.change)
        return [names[image.index], *decisions, *numbers, image.decidable]

    allowed = None if limit is None else limit * scale
    scatter = scatter_of(images, allowed) if gives == "logits" else None
    flips = sorted((each for each in images if each.flipped), key=lambda each: -each.margin)
    closest = [] if flips or scatter is None else sorted(images, key=lambda each: each.room)
    changes = found.class_changes.get(verdict.candidate, ())
    within = verdict.budget if verdict.passed else None
    return {
        "verdict": verdict,
        "gives": gives,
        "latencies": found.latencies.get(verdict.candidate, ()),
        "within": "" if within is None else budget_text(within, verdict.measurement),
        "changed": [each for each in changes if each.lost][:_MOST_CLASSES],
        "outcome": outcome_of(verdict),
        "similarity": similarity_text(embeddings) if embeddings and embeddings.passed else "",
        "scatter": scatter,
        "points": [point(image) for _, _, image in scatter.points] if scatter else [],
        "placed": len(images),
        "safe": sum(image.kind == "safe" for image in images),
        "room": min((image.room for image in images), default=None),
        "flips": [*map(shown, flips[:_MOST_FLIPS])],
        "closest": [*map(shown, closest[:_CLOSEST])],
    }


def _fold_the_same(views: Sequence[dict[str, Any]]) -> None:
    """Mark all but one of the candidates that say the same: the one they are ``folded`` under.

    They have the same verdict for the same reasons and change the same decisions. The one that
    stays open came nearest to another decision.
    """
    alike: dict[Hashable, list[dict[str, Any]]] = {}
    for view in views:
        verdict = view["verdict"]
        said = view["outcome"], verdict.kind, verdict.reasons, view["similarity"], view["within"]
        decided = [(each.path, each.candidate) for each in verdict.measurement.flipped]
        alike.setdefault((*said, *view["latencies"], *decided), []).append(view)
    for group in alike.values():
        rooms = [math.inf if view["room"] is None else view["room"] for view in group]
        shown = group[rooms.index(min(rooms))]
        for view in group:
            view["folded"] = "" if view is shown else names_text([shown["verdict"]])


def _known(row: Logits, labels: Labels, gives: Given) -> list[Ranked]:
    """What is known of an answer (1, L) that is no more than a decision: its one probability."""
    if gives == "decisions":
        return []
    (place,) = labels.head.decide(row)[0].tolist()
    probability = float(labels.head.probabilities(row)[0, place])
    return [Ranked(label=labels.names[place], probability=probability)]


def _changed_classes(sides: Mapping[str, Logits], labels: Labels) -> list[int]:
    """The classes that one of both sides, (1, L) each, gives an image that may have several."""
    head = labels.head
    ours, theirs = (head.chosen(head.decide(row), len(labels)) for row in sides.values())
    changed = np.flatnonzero((ours != theirs)[0]).tolist()
    return changed[:_MOST_CHANGED] if head.several else []


def _answer(row: Logits, labels: Labels, first: Sequence[int], nearest: int) -> dict[str, Any]:
    """What one side, (1, L), gives an image.

    Args:
        row: The logits.
        labels: What they mean.
        first: Classes to show before the best.
        nearest: The class whose probability shows how clear the decision is.

    Returns:
        The decision, ``title``; classes, the best behind the first; the nearest; the margin.
    """
    head = labels.head
    probabilities = head.probabilities(row)[0]
    best = [i for i in np.argsort(-head.scores(row)[0], kind="stable").tolist() if i not in first]

    def ranked(i: int) -> Ranked:
        return Ranked(label=labels.names[i], probability=float(probabilities[i]))

    return {
        "title": labels.title_of(head.decide(row)[0]),
        "top": [ranked(i) for i in (*first, *best[: max(0, _TOP_K - len(first))])],
        "nearest": ranked(nearest),
        "margin": float(head.margins(row)[0]),
    }


def _thumbnail_urls(names: Iterable[str], folder: Path | None) -> Mapping[str, str]:
    """The thumbnail of each image that can still be read, as a ``data:`` URL."""
    if folder is None:
        return {}
    wanted = sorted(names)
    return {
        wanted[place]: f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        for place, jpeg in make_thumbnails(list(enumerate(wanted)), folder)
        if jpeg is not None
    }


def _shown_classes(accuracy: Sequence[Accuracy], head: BaseHead) -> list[tuple[ClassAccuracy, ...]]:
    """The classes that are shown, each as the reference and then every candidate has it.

    Of many, those that differ come first, then those that are recognised worst.
    """

    def interest(row: tuple[ClassAccuracy, ...]) -> tuple[bool, float]:
        reference, *others = row
        told = reference.told(head.class_measures)
        same = all(each.told(head.class_measures) == told for each in others)
        return same, reference.rate

    rows = list(zip(*(side.classes for side in accuracy), strict=True))
    return rows if len(rows) <= _MOST_CLASSES else sorted(rows, key=interest)[:_MOST_CLASSES]


def _part_of(value: float, whole: float) -> float:
    """How far a bar is filled; a value that is no finite number fills it."""
    return value / whole if 0 <= value < whole < math.inf else float(value != 0)
