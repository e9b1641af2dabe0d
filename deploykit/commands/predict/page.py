"""The page of a prediction: a gallery that a person can search, and what the run adds up to."""

from __future__ import annotations

import base64
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from deploykit.bundle.manifest import printable
from deploykit.commands.predict.tally import tally_of
from deploykit.html.document import render, script_json, write_document
from deploykit.html.thumbnails import ThumbnailChoice, make_thumbnails
from deploykit.html.words import duration, percent, shares
from deploykit.proof.text import proof_words
from deploykit.system.cloud import CloudPath
from deploykit.system.deps import installed_versions
from deploykit.system.progress import Progress, Step, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from markupsafe import Markup

    from deploykit.commands.predict.tally import PredictionSummary
    from deploykit.images.scan import ImageFile
    from deploykit.specs.model import Labels
    from deploykit.specs.prediction import Prediction

_STYLES = (
    "tiles.css",
    "tables.css",
    "layout.css",
    "gallery.css",
    "photo.css",
    "classes.css",
)
_SCRIPTS = (
    "rows.js",
    "view.js",
    "gallery.js",
    "photo.js",
    "confusions.js",
    "classes.js",
    "failures.js",
    "main.js",
)


def write_prediction_page(
    run: PredictionSummary,
    rows: Iterable[Prediction],
    path: Path,
    progress: Progress = silent,
    file_at: Callable[[int], ImageFile] | None = None,
) -> None:
    """Write the page; one that is there is replaced when the new one is whole.

    The rows are taken one by one and not kept: memory does not grow with their number.

    Args:
        run: That has ended; thumbnails are made from the files in its folder.
        rows: One prediction a file, in the order of the gallery.
        path: The page.
        progress: Called when the rows begin, and after every thumbnail.
        file_at: Gives the file of a row; None where all are files below the run's folder.

    Raises:
        InputError: The system fails to write it: the disk may be full.
    """
    progress(Step("writing", detail=path.name))
    labels = run.bundle.manifest.labels
    head = labels.head
    context = {
        "run": run,
        "labels": labels,
        "status": run.status,
        "created": datetime.now(UTC),
        "versions": installed_versions(),
        "root": printable(run.root),
        "photos_url": _url_of(run.root, path.parent),
        "content": _Content(labels, run.root, progress, file_at),
        "head": {
            "several": head.several,
            "thresholds": _thresholds(labels),
            "margin": head.margin_words,
        },
        "rows": rows,
        "proof_sentences": proof_words(run.status.proof) if run.status.proof else [],
        "stages": shares({str(stage): value for stage, value in run.stage_seconds.items()}),
        "script_json": script_json,
        "duration": duration,
        "percent": percent,
    }
    write_document(path, render(__package__, "predictions.html.j2", _STYLES, _SCRIPTS, context))


class _Content:
    """The rows and thumbnails as JSON, in one pass, and what the rows add up to behind them.

    Attributes:
        tally: What the rows that have gone by add up to.
        choice: Which of them get a thumbnail.
    """

    def __init__(
        self,
        labels: Labels,
        root: Path,
        progress: Progress,
        file_at: Callable[[int], ImageFile] | None,
    ) -> None:
        self.tally = tally_of(labels)
        self.choice = ThumbnailChoice(len(labels))
        self._several = labels.head.several
        self._classes = {label: i for i, label in enumerate(labels.names)}
        self._root = root
        self._progress = progress
        self._file_at = file_at

    def rows_json(self, rows: Iterable[Prediction]) -> Iterator[Markup]:
        """Each row as JSON, see :meth:`_cells`; counted as it goes by."""
        for index, row in enumerate(rows):
            self.tally.add(row)
            self.choice.add(index, row)
            yield script_json(self._cells(row))

    def thumbnails_json(self) -> Iterator[Markup]:
        """``[place, JPEG in base64]`` of each chosen row; null where the file is gone."""
        chosen = self.choice.chosen()
        for index, image in make_thumbnails(chosen, self._root, self._progress, self._file_at):
            encoded = None if image is None else base64.b64encode(image).decode()
            yield script_json([index, encoded])

    def average_precisions(self) -> list[float | None]:
        """One a class, from the rows that have gone by; empty where it is not shown."""
        if self.tally.classes is None:
            return []
        found = {each.label: each.average_precision for each in self.tally.classes.results()}
        return [found.get(label) for label in self._classes]

    def _cells(self, row: Prediction) -> list[Any]:
        """A row, short: classes by their number, and no more digits than a person reads.

        ``[path, expected, class, probability, margin, class_1, probability_1, ...]``, and of a row
        without a prediction ``[path, expected, status, reason]``. The probability is that of what
        was decided for. Where an image may be given several classes, ``expected`` and ``class`` are
        lists, and the probability is null.
        """
        expected = None if row.truth is None else self._numbers(row.truth)
        if not row.ok or row.margin is None:
            return [row.path, expected, row.status, row.reason]
        top = [
            value
            for answer in row.top
            for value in (self._classes[answer.label], round(answer.probability, 4))
        ]
        probability = None if self._several else top[1]
        margin = float(f"{row.margin:.4g}")
        return [row.path, expected, self._numbers(row.decided), probability, margin, *top]

    def _numbers(self, labels: tuple[str, ...]) -> int | list[int]:
        """The numbers of classes; of the one that there is by itself."""
        numbers = [self._classes[label] for label in labels]
        return numbers if self._several else numbers[0]


def _thresholds(labels: Labels) -> list[float | None]:
    """Each class's; null of one that has none of its own."""
    own = labels.head.thresholds
    return [*[None] * (len(labels) - len(own)), *own]


def _url_of(folder: Path, base: Path) -> str:
    """Where a folder is, seen from another: relative where both are on one drive."""
    if isinstance(folder, CloudPath):
        return f"{folder}/"
    if isinstance(base, CloudPath):
        return f"{folder.absolute().as_uri()}/"
    try:
        relative = os.path.relpath(folder, base)
    except ValueError:  # Windows: no way leads from one drive to another
        return f"{folder.absolute().as_uri()}/"
    return f"./{quote(os.fsencode(Path(relative).as_posix()))}/"
