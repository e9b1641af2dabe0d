"""Which classes images are of, out of a table: a path a row, with names or columns of 0 and 1."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import InputError
from deploykit.images.scan import IMAGE_EXTENSIONS, read_text

_DELIMITERS = (",", ";", "\t")
#: Between names in one cell; a name that has one itself is taken whole where it is a class.
_BETWEEN = re.compile(r"\s*[|;,]\s*")
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
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
    """

    labels: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]


def read_label_table(
    path: Path, labels: Sequence[str] | None = None, *, positive: str | None = None
) -> LabelTable:
    """Read the classes of images.

    Args:
        path: A CSV, with commas, semicolons or tabs. The first column is an image's path. The
            others hold names, one or several in a cell (``cat|dog``, ``cat; dog``), none or an
            empty cell for an image of no class; or each is named in a header after a class, and has
            0 or 1.
        labels: The classes that there are; None to take them from the table.
        positive: Of two classes the one that a single column of 0 and 1 is about, unless its header
            is the other one's name; None where each class has a column.

    Raises:
        InputError: The table cannot be read, or it is not clear what an image's classes are.
    """
    text = read_text(path, "table of labels", "image")
    try:
        return _table_of(text, labels, positive)
    except (ValueError, csv.Error) as exc:
        raise InputError(f"The labels in {path} are not clear: {exc}.", hint=_HINT) from exc


def _table_of(text: str, labels: Sequence[str] | None, positive: str | None) -> LabelTable:
    first = text.lstrip("\n").partition("\n")[0]
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(io.StringIO(text), delimiter=max(_DELIMITERS, key=first.count))
        if any(map(str.strip, row))
    ]
    header: list[str] = []
    if rows and Path(rows[0][0]).suffix.lower() not in IMAGE_EXTENSIONS:
        header = rows.pop(0)
    if not rows:
        raise ValueError("it has no image")
    if labels and positive and all(len(row) == 2 and row[1].lower() in _FLAGS for row in rows):
        about = header[1] if header and header[1] in labels else positive
        (other,) = (label for label in labels if label != about)
        named = [[about if _FLAGS[row[1].lower()] else other] for row in rows]
        known = tuple(labels)
    elif len(header) > 1 and all(cell.lower() in _FLAGS for row in rows for cell in row[1:]):
        named = _of_columns(header[1:], rows)
        known = tuple(header[1:] if labels is None else labels)
        if {*known} != {*header[1:]}:
            odd = sorted({*known} ^ {*header[1:]})
            whose = "no class" if odd[0] in header else "a class without a column"
            raise ValueError(f"{odd[0]!r} is {whose}")
    else:
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
    return LabelTable(known, found)


def _of_columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The classes of each row of 0 and 1."""
    if len({*columns}) < len(columns):
        raise ValueError("its header has a class twice")
    for row in rows:
        if len(row) != len(columns) + 1:
            raise ValueError(f"{row[0]} has {len(row) - 1} values for {len(columns)} classes")
    return [
        [name for name, cell in zip(columns, row[1:], strict=True) if _FLAGS[cell.lower()]]
        for row in rows
    ]


def _of_cells(cells: Sequence[str], labels: Sequence[str] | None) -> list[str]:
    """The names in a row's cells."""
    names = []
    for cell in filter(None, cells):
        whole = labels is not None and cell in labels
        parts = [cell] if whole else [*filter(None, _BETWEEN.split(cell))]
        # Spaces are between names only where these are known: a class may be african crane.
        if labels is not None and not {*parts} <= {*labels} and {*cell.split()} <= {*labels}:
            parts = cell.split()
        names += parts
    return names
