"""Predictions as tables: one row an image file, streamed into files that appear whole."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from deploykit.errors import InputError
from deploykit.specs.heads import ASSUMED_HEAD, Head
from deploykit.specs.prediction import Prediction
from deploykit.system.deps import check_installed, need
from deploykit.system.files import STDOUT, check_destination, replacing

_COLUMNS = ("path", "status", "reason", "label", "probability", "margin", "expected")
#: Where an image may be given several classes, and where there are lists of them.
_COLUMNS_OF_SEVERAL = ("path", "status", "reason", "labels", "margin", "expected")
_LISTS = frozenset({"labels", "expected"})
#: Between the classes of a list in a cell of CSV.
_BETWEEN = "|"

# A spreadsheet takes a cell that begins with one of these for a formula, some of them in their wide
# form, too; and files and classes may have been named by a stranger
# (https://owasp.org/www-community/attacks/CSV_Injection). Behind apostrophes it stands for itself.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")

# Groups are compressed and skipped as one; a group of this many rows takes a few megabytes.
_ROWS_PER_GROUP = 16_384
_NEVER_NULL = ("path", "status", "reason")

_Cell: TypeAlias = str | float | list[str] | None
_Write: TypeAlias = Callable[[Path, Iterable[Prediction], Head, int], None]


def check_outputs(paths: Sequence[Path]) -> None:
    """Refuse before the work what could not be written after it.

    Args:
        paths: The outputs of one run: tables, and :data:`STDOUT`.

    Raises:
        UsageError: See :func:`deploykit.system.files.check_destination`.
        DependencyError: A Parquet table without pyarrow.
    """
    for path in paths:
        if path == STDOUT:
            continue
        check_destination(path, "output", tuple(_FORMATS))
        if path.suffix.lower() == ".parquet":
            check_installed("pyarrow")


def write_table(
    path: Path, rows: Iterable[Prediction], *, top_k: int, head: Head = ASSUMED_HEAD
) -> None:
    """Write a table, in the format that the name's ending says; it appears whole.

    ``.csv``: UTF-8 with the mark by which Excel knows it, RFC 4180 quoting; the top-k answers in
    columns ``label_1``, ``probability_1``, ... A path that a spreadsheet would take for a formula
    begins with ``./``, and still leads to the file; any other text has an apostrophe before it,
    one more where it begins with some. Where an image may be given several classes, ``labels`` and
    ``expected`` have ``|`` between them.
    ``.jsonl``: UTF-8, an object a line; the top-k answers in a list ``top``.
    ``.parquet``: the columns of CSV, numbers as float32.
    In the last two ``labels`` and ``expected`` of several classes are lists.

    All give probabilities and margins with as many digits as tell one float32 from the next.

    Args:
        path: As :func:`check_outputs` lets it pass; what has the name stays until the new is whole.
        rows: Consumed one by one: memory does not grow with them.
        top_k: How many of an image's answers a row shows.
        head: Whose answers they are.

    Raises:
        InputError: The system fails to write it, or to give it its name.
    """
    try:
        with replacing(path) as partial:
            _FORMATS[path.suffix.lower()](partial, rows, head, top_k)
    except OSError as exc:
        raise InputError(
            f"Writing {path} failed: {exc.strerror or exc}.",
            hint="Check the folder's permissions and the free space on its disk, and close the "
            "program that has the table open.",
        ) from exc


def json_line(row: Prediction, top_k: int, head: Head = ASSUMED_HEAD) -> str:
    """A row as JSON for stdout: ASCII only, so that it reads the same whatever the encoding is."""
    return json.dumps(row_value(row, top_k, head)) + "\n"


def _first_columns(head: Head) -> tuple[str, ...]:
    """Those before the ranking."""
    return _COLUMNS_OF_SEVERAL if head.several else _COLUMNS


def _columns(head: Head, top_k: int) -> list[str]:
    """``path``, ``status``, ... ``label_1``, ``probability_1``, ``label_2``, ..."""
    ranking = (f"{name}_{k}" for k in range(1, top_k + 1) for name in ("label", "probability"))
    return [*_first_columns(head), *ranking]


def _cells(row: Prediction, head: Head, top_k: int) -> list[_Cell]:
    """What ``_columns`` names; a number as the shortest decimal that is the same float32."""
    first = _first_columns(head)
    cells: list[_Cell] = [getattr(row, name) for name in first]
    if head.several:
        for name, classes in (("labels", row.labels), ("expected", row.expected_labels)):
            cells[first.index(name)] = None if classes is None else [*classes]
    for ranked in row.top[:top_k]:
        cells += [ranked.label, ranked.probability]
    cells += [None] * (len(first) + 2 * top_k - len(cells))
    return [float(str(np.float32(cell))) if isinstance(cell, float) else cell for cell in cells]


def row_value(row: Prediction, top_k: int, head: Head = ASSUMED_HEAD) -> dict[str, Any]:
    """A row as plain values: the first columns, and the best classes in a list ``top``."""
    first = _first_columns(head)
    cells = _cells(row, head, min(top_k, len(row.top)))
    top = cells[len(first) :]
    return {
        **dict(zip(first, cells, strict=False)),
        "top": [
            {"label": label, "probability": probability}
            for label, probability in zip(top[::2], top[1::2], strict=True)
        ],
    }


def _write_csv(path: Path, rows: Iterable[Prediction], head: Head, top_k: int) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(_columns(head, top_k))
        for row in rows:
            name, *cells = _cells(row, head, top_k)
            writer.writerow([_guarded(name, "./"), *(_guarded(cell, "'") for cell in cells)])


def _guarded(cell: _Cell, guard: str) -> _Cell:
    """A text that no spreadsheet takes for a formula; a number as it is."""
    if isinstance(cell, list):
        cell = _BETWEEN.join(cell)
    return f"{guard}{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def _write_jsonl(path: Path, rows: Iterable[Prediction], head: Head, top_k: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(
            json.dumps(row_value(row, top_k, head), ensure_ascii=False) + "\n" for row in rows
        )


def _write_parquet(path: Path, rows: Iterable[Prediction], head: Head, top_k: int) -> None:
    """Write a Parquet table, group by group: strings and lists of them, and numbers as float32."""
    pyarrow, parquet = need("pyarrow"), need("pyarrow.parquet")

    def kind(name: str) -> Any:
        if head.several and name in _LISTS:
            return pyarrow.list_(pyarrow.string())
        is_number = name.startswith(("probability", "margin"))
        return pyarrow.float32() if is_number else pyarrow.string()

    fields = [
        pyarrow.field(name, kind(name), nullable=name not in _NEVER_NULL)
        for name in _columns(head, top_k)
    ]
    schema = pyarrow.schema(fields)
    remaining = iter(rows)
    with path.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(remaining, _ROWS_PER_GROUP)):
            cells = zip(*(_cells(row, head, top_k) for row in group), strict=True)
            writer.write_table(pyarrow.Table.from_arrays([*map(list, cells)], schema=schema))


_FORMATS: dict[str, _Write] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
