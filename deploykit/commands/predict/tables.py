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
from deploykit.specs.prediction import Prediction
from deploykit.system.deps import need
from deploykit.system.files import STDOUT, check_destination, replacing

COLUMNS = ("path", "status", "reason", "label", "probability", "margin", "expected")

# A spreadsheet takes a cell that begins with one of these for a formula, some of them in their wide
# form, too; and files and classes may have been named by a stranger
# (https://owasp.org/www-community/attacks/CSV_Injection). Behind apostrophes it stands for itself.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")

# Groups are compressed and skipped as one; a group of this many rows takes a few megabytes.
_ROWS_PER_GROUP = 16_384
_NEVER_NULL = ("path", "status", "reason")

_Write: TypeAlias = Callable[[Path, Iterable[Prediction], int], None]


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
            need("pyarrow")


def write_table(path: Path, rows: Iterable[Prediction], *, top_k: int) -> None:
    """Write a table, in the format that the name's ending says; it appears whole.

    ``.csv``: UTF-8 with the mark by which Excel knows it, RFC 4180 quoting; the top-k answers in
    columns ``label_1``, ``probability_1``, ... A path that a spreadsheet would take for a formula
    begins with ``./``, and still leads to the file; any other text has an apostrophe before it,
    one more where it begins with some.
    ``.jsonl``: UTF-8, an object a line; the top-k answers in a list ``top``.
    ``.parquet``: the columns of CSV, numbers as float32.

    All give probabilities and margins with as many digits as tell one float32 from the next.

    Args:
        path: As :func:`check_outputs` lets it pass; what has the name stays until the new is whole.
        rows: Consumed one by one: memory does not grow with them.
        top_k: How many of an image's answers a row shows.

    Raises:
        InputError: The system fails to write it, or to give it its name.
    """
    try:
        with replacing(path) as partial:
            _FORMATS[path.suffix.lower()](partial, rows, top_k)
    except OSError as exc:
        raise InputError(
            f"Writing {path} failed: {exc.strerror or exc}.",
            hint="Check the folder's permissions and the free space on its disk, and close the "
            "program that has the table open.",
        ) from exc


def json_line(row: Prediction, top_k: int) -> str:
    """A row as JSON for stdout: ASCII only, so that it reads the same whatever the encoding is."""
    return json.dumps(row_value(row, top_k)) + "\n"


def columns(top_k: int) -> list[str]:
    """``COLUMNS``, ``label_1``, ``probability_1``, ``label_2``, ..."""
    ranks = range(1, top_k + 1)
    return [*COLUMNS, *(f"{name}_{k}" for k in ranks for name in ("label", "probability"))]


def _cells(row: Prediction, top_k: int) -> list[str | float | None]:
    """What ``columns`` names; a number as the shortest decimal that is the same float32."""
    cells = [getattr(row, name) for name in COLUMNS]
    for ranked in row.top[:top_k]:
        cells += [ranked.label, ranked.probability]
    cells += [None] * (len(COLUMNS) + 2 * top_k - len(cells))
    return [float(str(np.float32(cell))) if isinstance(cell, float) else cell for cell in cells]


def row_value(row: Prediction, top_k: int) -> dict[str, Any]:
    """A row as plain values: ``COLUMNS``, and the best classes in a list ``top``."""
    cells = _cells(row, min(top_k, len(row.top)))
    top = cells[len(COLUMNS) :]
    return {
        **dict(zip(COLUMNS, cells, strict=False)),
        "top": [
            {"label": label, "probability": probability}
            for label, probability in zip(top[::2], top[1::2], strict=True)
        ],
    }


def _write_csv(path: Path, rows: Iterable[Prediction], top_k: int) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns(top_k))
        for row in rows:
            name, *cells = _cells(row, top_k)
            writer.writerow([_guarded(name, "./"), *(_guarded(cell, "'") for cell in cells)])


def _guarded(cell: str | float | None, guard: str) -> str | float | None:
    """A text that no spreadsheet takes for a formula; a number as it is."""
    return f"{guard}{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def _write_jsonl(path: Path, rows: Iterable[Prediction], top_k: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(
            json.dumps(row_value(row, top_k), ensure_ascii=False) + "\n" for row in rows
        )


def _write_parquet(path: Path, rows: Iterable[Prediction], top_k: int) -> None:
    """Write a Parquet table, group by group: strings, and numbers as float32."""
    pyarrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    fields = [
        pyarrow.field(
            name,
            pyarrow.float32() if name.startswith(("probability", "margin")) else pyarrow.string(),
            nullable=name not in _NEVER_NULL,
        )
        for name in columns(top_k)
    ]
    schema = pyarrow.schema(fields)
    remaining = iter(rows)
    with path.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(remaining, _ROWS_PER_GROUP)):
            cells = zip(*(_cells(row, top_k) for row in group), strict=True)
            writer.write_table(pyarrow.Table.from_arrays([*map(list, cells)], schema=schema))


_FORMATS: dict[str, _Write] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
