"""Which classes images are of, out of a table: a path a row, with names or columns of 0 and 1."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from deploykit.errors import InputError
from deploykit.images.scan import IMAGE_EXTENSIONS, read_text

_Row: TypeAlias = list[str]
_DELIMITERS = (",", ";", "\t")
#: Between names in one cell; a name that has one itself is taken whole where it is a class.
_BETWEEN = re.compile(r"\s*[;,]\s*")
#: The same where a cell has one, and then nothing else is: no class of several has it in its name.
_BAR = re.compile(r"\s*[|]\s*")
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
#: Of a column that tells the class, whichever it is.
_PLAIN_HEADS = frozenset({"class", "classes", "label", "labels", "target", "y"})
_HINT = (
    "Write a row an image: its path and its classes, a.jpg,cat|dog; or, below a header "
    "path,cat,dog,owl, its path and a 0 or 1 for each class, a.jpg,1,1,0."
)


@dataclass(frozen=True)
class LabelTable:
    """What a table says.

    Attributes:
        labels: The classes: those asked for; else the header's, or the names that occur, sorted.
        rows: The classes of each image in the order of the labels, by its path with ``/``.
        sha256: Of the table's text in UTF-8, in lowercase hex.
    """

    labels: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]
    sha256: str


def read_label_table(
    path: Path, labels: Sequence[str] | None = None, *, several: bool = True
) -> LabelTable:
    """Read the classes of images.

    Args:
        path: A CSV, with commas, semicolons or tabs. The first column is an image's path. The
            others hold names, one or several in a cell (``cat|dog``, else ``cat; dog``), none or
            an empty cell for an image of no class; or each is named in a header after a class, and
            has 0 or 1.
        labels: The classes that there are; None to take them from the table.
        several: Whether an image may be of any number of classes. Else it is of exactly one, and of
            two classes the column of one says enough.

    Raises:
        InputError: The table cannot be read, or it is not clear what an image's classes are.
    """
    text = read_text(path, "table of labels", "image")
    try:
        known, rows = _table_of(text, labels, several=several)
    except ValueError as exc:
        raise InputError(f"The labels in {path} are not clear: {exc}.", hint=_HINT) from exc
    return LabelTable(known, rows, hashlib.sha256(text.encode()).hexdigest())


def table_rows(text: str, delimiters: Sequence[str] = _DELIMITERS) -> Iterator[tuple[int, _Row]]:
    """The rows of a CSV that are not empty, with the lines that they end in, from 1.

    Args:
        text: Its lines end as on any system.
        delimiters: What may be between cells: it is what the first line has most of.

    Raises:
        ValueError: A cell is longer than the csv module takes.
    """
    stream = io.StringIO(text, newline=None)
    first = stream.getvalue().lstrip("\n").partition("\n")[0]
    reader = csv.reader(stream, delimiter=max(delimiters, key=first.count))
    try:
        for row in reader:
            if cells := [cell.strip() for cell in row if any(map(str.strip, row))]:
                yield reader.line_num, cells
    except csv.Error as exc:
        raise ValueError(
            f"line {reader.line_num} is no row of a table, {exc}: a quote may have no end"
        ) from exc


def _table_of(
    text: str, labels: Sequence[str] | None, *, several: bool
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The classes, and those of each image."""
    numbered = [*table_rows(text)]
    header: list[str] = []
    if numbered and Path(numbered[0][1][0]).suffix.lower() not in IMAGE_EXTENSIONS:
        _, header = numbered.pop(0)
    rows = [row for _, row in numbered]
    if not rows:
        raise ValueError("it has no image")
    if all(len(row) == 1 for row in [header, *rows] if row):
        raise ValueError("it has only paths, and tells no image's class")
    if not several and labels and _is_one_column(header[1:], rows, labels):
        named = [[labels[_FLAGS[row[1].lower()]]] for row in rows]
        known = tuple(labels)
    elif _is_of_columns(header[1:], rows, labels):
        known = tuple(header[1:] if labels is None else labels)
        named = _of_columns(header[1:], rows, known, several=several)
    else:
        _check_no_flags(header[1:], numbered, labels, several=several)
        named = [_of_cells(row[1:], labels) for row in rows]
        known = tuple(sorted({*itertools.chain(*named)}) if labels is None else labels)
    found: dict[str, tuple[str, ...]] = {}
    for row, names in zip(rows, named, strict=True):
        name = row[0].replace("\\", "/").removeprefix("./")
        if name in found:
            raise ValueError(f"it has {name} twice")
        if unknown := [each for each in names if each not in known]:
            raise ValueError(f"{name} is of {unknown[0]!r}, which is no class")
        found[name] = tuple(label for label in known if label in names)
        if not several and len(found[name]) != 1:
            count = len(found[name]) or "no"
            raise ValueError(f"{name} is of {count} classes, and the model gives each image one")
    return known, found


def _is_one_column(
    columns: Sequence[str], rows: Sequence[Sequence[str]], labels: Sequence[str]
) -> bool:
    """Whether a column that no class is named after has the number of one of two classes."""
    is_of_two = len(labels) == 2 and not {*columns, "0", "1"} & {*labels}
    is_of_two = is_of_two and _PLAIN_HEADS.issuperset(map(str.lower, columns))
    return is_of_two and all(len(row) == 2 and row[1].lower() in _FLAGS for row in rows)


def _is_of_columns(
    columns: Sequence[str], rows: Sequence[Sequence[str]], labels: Sequence[str] | None
) -> bool:
    """Whether 0 and 1 below a header say if an image is of a column's class.

    They may as well be the names of classes, as below ``label``, or of a model whose classes are 0
    and 1.
    """
    cells = {cell for row in rows for cell in row[1:]}
    if labels is None:
        if len(columns) == 1 and columns[0].lower() in _PLAIN_HEADS:
            return False
    elif cells <= {*labels} and not {*columns} & {*labels}:
        return False
    return bool(columns) and all(cell.lower() in _FLAGS for cell in cells)


def _of_columns(
    columns: Sequence[str], rows: Sequence[Sequence[str]], known: Sequence[str], *, several: bool
) -> list[list[str]]:
    """The classes of each row of 0 and 1."""
    if len({*columns}) < len(columns):
        raise ValueError("its header has a class twice")
    for row in rows:
        if len(row) != len(columns) + 1:
            raise ValueError(f"{row[0]} has {len(row) - 1} values for {len(columns)} classes")
    named = [
        [name for name, cell in zip(columns, row[1:], strict=True) if _FLAGS[cell.lower()]]
        for row in rows
    ]
    missing = [*{*known} - {*columns}]
    if not several and len(known) == 2 and len(missing) == 1 and {*columns} < {*known}:
        return [names or missing for names in named]
    strangers = [f"the column {name!r} is no class" for name in columns if name not in known]
    absent = [f"{name!r} is a class without a column" for name in sorted(missing)]
    if strangers or absent:
        raise ValueError(", and ".join([*absent[:1], *strangers[:3]]))
    return named


def _check_no_flags(
    columns: Sequence[str],
    numbered: Sequence[tuple[int, _Row]],
    labels: Sequence[str] | None,
    *,
    several: bool,
) -> None:
    """Refuse what was meant as columns of 0 and 1, and has something else as well.

    Raises:
        ValueError: The first cell that is neither, or there is no header.
    """
    rows = [row for _, row in numbered]
    flags = {cell for row in rows for cell in row[1:] if cell.lower() in _FLAGS}
    if labels is not None and flags <= {*labels} and not {*columns} & {*labels}:
        return  # they are names, or there are none
    if not columns:
        if labels is not None or min(map(len, rows)) > 2:
            line, row = next((line, row) for line, row in numbered if flags.intersection(row[1:]))
            cell = next(cell for cell in row[1:] if cell in flags)
            if all(each in flags for each in row[1:]):
                raise ValueError(
                    f"{row[0]} (line {line}) has {cell!r}, and no header names the classes of the "
                    "columns"
                )
        return
    of_two = labels is not None and len(labels) == 2 and not several
    places = range(1, len(columns) + 1)
    mostly = [
        place
        for place, column in zip(places, columns, strict=True)
        if column.lower() not in _PLAIN_HEADS or (of_two and len(columns) == 1)
        if 2 * sum(row[place] in flags for row in rows if len(row) > place) > len(rows)
    ]
    if not mostly:
        return
    for line, row in numbered:
        where = f"{row[0]} (line {line})"
        if len(row) != len(columns) + 1:
            raise ValueError(f"{where} has {len(row) - 1} values for {len(columns)} columns")
        for column, cell in zip(columns, row[1:], strict=True):
            if cell not in flags:
                whose = labels is None or column in labels or column.lower() in _PLAIN_HEADS
                more = "" if whose else f", and {column!r} is no class"
                raise ValueError(
                    f"{where} has {cell[:40]!r} in the column {column!r}, which is neither 0 nor 1"
                    f"{more}"
                )


def _of_cells(cells: Sequence[str], labels: Sequence[str] | None) -> list[str]:
    """The names in a row's cells."""
    names = []
    for cell in filter(None, cells):
        whole = labels is not None and cell in labels
        between = _BAR if "|" in cell else _BETWEEN
        parts = [cell] if whole else [*filter(None, between.split(cell))]
        # Spaces are between names only where these are known: a class may be african crane.
        if labels is not None and not {*parts} <= {*labels} and {*cell.split()} <= {*labels}:
            parts = cell.split()
        names += parts
    return names
