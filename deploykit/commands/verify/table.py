"""Another tool's table as the candidate: what it decided for, image by image."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np

from deploykit.errors import InputError
from deploykit.images.label_tables import table_rows
from deploykit.images.scan import IMAGE_EXTENSIONS, Scan, read_text
from deploykit.images.truth import match_rows
from deploykit.specs.model import Labels, Precision
from deploykit.specs.preprocessing import Size
from deploykit.specs.session import Closing, Given, ImageBatch, Logits, SessionSpec
from deploykit.system.deps import need
from deploykit.system.progress import Note, Progress
from deploykit.system.text import counted, visible

#: What tools call their columns, the surest name first. Beside a prediction, a ``label`` is what
#: would have been right.
_FILES = (
    *("path", "file", "filename", "filepath", "file path", "file name", "image", "image path"),
    *("image file", "image name", "img", "img path", "image id", "name", "id"),
)
_DECISIONS = (
    *("prediction", "predictions", "predicted", "predicted class", "predicted label", "pred"),
    *("pred class", "pred label", "y pred", "top1", "top 1", "answer"),
    *(
        "label",
        "labels",
        "class",
        "class name",
        "category",
        "class id",
        "label id",
        "target",
        "label 1",
    ),
)
_PROBABILITIES = ("probability", "confidence", "prob", "score", "conf", "probability 1", "p")
_SEPARATOR = re.compile(r"[\s_.-]+")
_BETWEEN = re.compile(r"\s*[|;]\s*")
_HINT = (
    "Write a header that names a column of paths and one of classes: path,label, and for "
    "probabilities path,label,probability."
)
_MOST_CHARACTERS = 300
_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".parquet")

_Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class TableMatch:
    """How a table and the images fit each other.

    Attributes:
        name: The table's.
        rows: How many it has.
        strangers: How many of them match no image.
        empty: How many of them have no answer.
        absent: How many images have no row.
    """

    name: str
    rows: int
    strangers: int
    empty: int
    absent: int


@dataclass(frozen=True)
class ToolTable:
    """What a table tells of images.

    Attributes:
        chosen: Which classes each is given, by the image's name: their places among the labels.
        probabilities: That of the class, by the image's name, of those images that have one.
        match: How many rows there are for which images.
    """

    chosen: Mapping[str, tuple[int, ...]]
    probabilities: Mapping[str, float]
    match: TableMatch


def read_tool_table(path: Path, labels: Labels, scan: Scan, progress: Progress) -> ToolTable:
    """Read what another tool, or this one elsewhere, decided for.

    Args:
        path: A CSV, JSON lines or Parquet.
        labels: The bundle's. The table has their names, or their numbers from 0.
        scan: The images.
        progress: Told which columns are taken, and what does not match.

    Raises:
        InputError: It cannot be read, it is not clear what its columns are, it has classes that
            the bundle has not, or no row matches an image.
        DependencyError: Parquet without pyarrow.
    """
    rows = _rows_of(path)
    columns = _Columns.of(path, rows, labels)
    progress(Note(visible(f"{path}: {columns}")))
    by_path = {str(row.get(columns.file) or ""): row for row in rows}
    if len(by_path) < len(rows):
        names = Counter(str(row.get(columns.file) or "") for row in rows)
        name = visible(names.most_common(1)[0][0])
        raise InputError(f"{path} has {name!r} twice.", hint="Give each image one row.")
    matched = match_rows(path, by_path, scan, progress, from_elsewhere=True)
    numbered = _are_numbers([row.get(columns.decision) for row in rows], labels)
    if numbered:
        progress(Note(f"{path}: its classes are numbers: taken for the bundle's, from 0"))
    chosen: dict[str, tuple[int, ...]] = {}
    probabilities: dict[str, float] = {}
    for name, image in matched.items():
        row = by_path[name]
        # In a table of ours the status says whether the file was predicted.
        cell = row.get(columns.decision) if row.get("status", "ok") == "ok" else None
        found = _places(cell, labels, numbered=numbered)
        if isinstance(found, str):
            raise InputError(
                f"{path} gives {visible(name)} the class {visible(found)!r}, which the bundle does "
                f"not have; it has {visible(', '.join(labels.names))[:_MOST_CHARACTERS]}.",
                hint="Rename the classes in the table, or name another bundle (--bundle).",
            )
        if found is None:
            continue
        chosen[image] = found
        value = row.get(columns.probability) if columns.probability else None
        if value not in (None, ""):
            probabilities[image] = _probability(value, path, name)
    if not chosen:
        raise InputError(
            f"{path} has no answer in {visible(columns.decision)!r} to any image.", hint=_HINT
        )
    if empty := len(matched) - len(chosen):
        progress(Note(f"{path}: {counted(empty, 'row has', 'rows have')} no answer"))
    match = TableMatch(
        name=path.name,
        rows=len(rows),
        strangers=len(rows) - len(matched),
        empty=empty,
        absent=len(scan.files) - len(matched),
    )
    return ToolTable(chosen, probabilities, match)


@dataclass(frozen=True)
class _Columns:
    """The names of the columns that are taken; of probabilities None for none."""

    file: str
    decision: str
    probability: str | None

    @classmethod
    def of(cls, path: Path, rows: Sequence[_Row], labels: Labels) -> Self:
        """Find them.

        Raises:
            InputError: There is no row, or it is not clear which they are.
        """
        columns = [*dict.fromkeys(key for row in rows for key in row)]
        file, decision = (_column(columns, names) for names in (_FILES, _DECISIONS))
        if file is None or decision is None:
            missing = "images" if file is None else "classes"
            what = f"no column is known to be that of the {missing}" if rows else "it has no row"
            shown = visible(", ".join(columns))[:_MOST_CHARACTERS] or "none"
            raise InputError(
                f"{path} cannot be compared: {what}; its columns: {shown}.", hint=_HINT
            )
        one_class = labels.head.name == "single-label"  # else no probability is the decision's
        return cls(file, decision, _column(columns, _PROBABILITIES) if one_class else None)

    def __str__(self) -> str:
        more = f", probabilities in {self.probability!r}" if self.probability else ""
        return f"images in {self.file!r}, classes in {self.decision!r}{more}"


class TableSession(Closing):
    """A table that answers to the images' names.

    Args:
        table: What it tells.
        labels: The bundle's.
        precision: What its tool computed in.
        input_size: The bundle's.
    """

    def __init__(
        self, table: ToolTable, labels: Labels, precision: Precision, input_size: Size
    ) -> None:
        self._table, self._labels = table, labels
        self.match = table.match
        self.spec = SessionSpec(
            runtime="table",
            graph=visible(table.match.name),
            precision=precision,
            device="another tool",
            input_size=input_size,
            classes=labels.logits,
            place="table",
            gives=self._given(),
        )

    def _given(self) -> Given:
        """Decisions alone where a probability is missing, or is none of what is decided for."""
        told, least = self._table.probabilities, 1 / len(self._labels)
        clear = all(each > least for each in told.values())
        # Of some images alone they would be no sample of all.
        return "headline" if clear and told.keys() == self._table.chosen.keys() else "decisions"

    def run_named(self, names: Sequence[str], images: ImageBatch) -> Logits:
        """What the table tells of images; see :class:`deploykit.specs.session.NamedSession`."""
        del images
        head, count = self._labels.head, len(self._labels)
        chosen = np.zeros((len(names), count), np.bool_)
        for row, name in enumerate(names):
            chosen[row, list(self._table.chosen[name])] = True
        if self.spec.gives == "decisions":
            return head.logits_for_decisions(chosen).astype(np.float32)
        told = np.array([self._table.probabilities[name] for name in names])[:, None]
        # What is left is shared by the others: of these nothing is compared.
        others = (1 - told) / max(1, count - 1)
        return head.logits_from(np.where(chosen, told, others)).astype(np.float32)

    def run(self, images: ImageBatch) -> Logits:
        """A table answers to names alone."""
        del images
        raise TypeError("a table answers to the names of images")

    def close(self) -> None:
        """Nothing is open."""


def _rows_of(path: Path) -> list[_Row]:
    """The rows of a table, by the names of its columns.

    Raises:
        InputError: It cannot be read.
        DependencyError: Parquet without pyarrow.
    """
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(f"{path} is no table; there are {', '.join(_SUFFIXES)}.", hint=_HINT)
    if suffix == ".parquet":
        return _parquet_rows(path)
    text = read_text(path, "table", "image")
    try:
        return [*(_json_rows(text) if suffix == ".jsonl" else _csv_rows(text))]
    except ValueError as exc:
        raise InputError(f"{path} cannot be read: {exc}.", hint=_HINT) from exc


def _csv_rows(text: str) -> Iterator[_Row]:
    rows = (row for _, row in table_rows(text))
    header = next(rows, [])
    if header and Path(header[0]).suffix.lower() in IMAGE_EXTENSIONS:
        rows = (row for _, row in table_rows(text))  # without a header
        header = ["path", "label", "probability"][: len(header)]
    for row in rows:
        yield dict(zip(header, row, strict=False))


def _json_rows(text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"line {number} is no JSON: {exc}") from exc
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no object")  # noqa: TRY004  # the text is wrong
        yield row


def _parquet_rows(path: Path) -> list[_Row]:
    parquet, arrow = need("pyarrow.parquet"), need("pyarrow")
    try:
        found = parquet.ParquetFile(path)
        usual = {*_FILES, *_DECISIONS, *_PROBABILITIES}
        columns = [name for name in found.schema_arrow.names if _plain(name) in usual]
        rows: list[_Row] = found.read(columns=columns).to_pylist()
    except (OSError, arrow.ArrowException) as exc:
        raise InputError(f"{path} cannot be read: {exc}.") from exc
    return rows


def _plain(column: str) -> str:
    """``Predicted_Class`` => ``predicted class``."""
    return _SEPARATOR.sub(" ", column.strip().lstrip("\ufeff")).lower()


def _column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column that has the surest of some names."""
    plain = {_plain(column): column for column in reversed(columns)}
    return next((plain[name] for name in names if name in plain), None)


def _are_numbers(cells: Sequence[object], labels: Labels) -> bool:
    """Whether classes are told by their places: whole numbers, which name no class."""
    told = {str(cell).strip() for cell in cells if cell not in (None, "")}
    return bool(told) and all(each.isdecimal() for each in told) and not told & {*labels.names}


def _places(cell: object, labels: Labels, *, numbered: bool) -> tuple[int, ...] | str | None:
    """The places of the classes in a cell; one that is none; or None for an empty cell."""
    if cell is None or (cell == "" and not labels.head.several):
        return None
    if isinstance(cell, list):
        names = [str(each) for each in cell]
    else:
        text = str(cell).strip()
        several = labels.head.several and text not in labels.names
        names = [*filter(None, _BETWEEN.split(text))] if several else [text]
    found = []
    for name in names:
        known = name if name in labels.names else name.removeprefix("'")
        if numbered and int(name) < len(labels):
            found.append(int(name))
        elif not numbered and known in labels.names:
            found.append(labels.names.index(known))
        else:
            return name
    return tuple(found)


def _probability(value: object, path: Path, name: str) -> float:
    """A probability.

    Raises:
        InputError: It is none.
    """
    try:
        found = float(str(value).replace(",", "."))  # as half of Europe writes it
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise InputError(
            f"{path} gives {visible(name)} {visible(str(value))[:40]!r}, which is no probability.",
            hint="Write numbers from 0 to 1, or leave the column out.",
        )
    return found
