"""Predictions as tables: one row an image file, streamed into files that appear whole."""

from __future__ import annotations

import csv
import json
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

# A spreadsheet takes a cell that begins with one of these for a formula, and a file's name may
# have been chosen by a stranger.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

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
        if path.suffix.lower() == _PARQUET:
            need("pyarrow")


def write_table(path: Path, rows: Iterable[Prediction], *, top_k: int) -> None:
    """Write a table, in the format that the name's ending says; it appears whole.

    ``.csv``: UTF-8 with the mark by which Excel knows it, RFC 4180 quoting; the top-k answers in
    columns ``label_1``, ``probability_1``, ... A path that a spreadsheet would take for a formula
    begins with ``./``, and still leads to the file.
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
    return json.dumps(_json_row(row, top_k)) + "\n"


def top_columns(top_k: int) -> list[str]:
    """``label_1``, ``probability_1``, ``label_2``, ..."""
    return [name for k in range(1, top_k + 1) for name in (f"label_{k}", f"probability_{k}")]


def _write_csv(path: Path, rows: Iterable[Prediction], top_k: int) -> None:
    columns = top_columns(top_k)
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*COLUMNS, *columns])
        for row in rows:
            name, *cells = _cells(row)
            if row.path.startswith(_FORMULA_STARTS):
                name = f"./{name}"
            top = [
                cell for each in row.top[:top_k] for cell in (each.label, _short(each.probability))
            ]
            writer.writerow([name, *cells, *top, *[None] * (len(columns) - len(top))])


def _write_jsonl(path: Path, rows: Iterable[Prediction], top_k: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(
            json.dumps(_json_row(row, top_k), ensure_ascii=False) + "\n" for row in rows
        )


def _write_parquet(path: Path, rows: Iterable[Prediction], top_k: int) -> None:
    """Write a Parquet table, group by group.

    The columns are those of CSV: strings, and numbers as float32, the type that logits have.
    ``path``, ``status`` and ``reason`` are never null.

    Args:
        path: The file.
        rows: Consumed a group at a time.
        top_k: How many of an image's answers a row shows.

    Raises:
        DependencyError: pyarrow is not installed.
        OSError: The system fails to write it.
    """
    pyarrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    schema = _parquet_schema(pyarrow, top_k)
    remaining = iter(rows)
    with path.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(remaining, _ROWS_PER_GROUP)):
            columns = _parquet_columns(group, top_k)
            writer.write_table(pyarrow.Table.from_pydict(columns, schema))


def _parquet_schema(pyarrow: Any, top_k: int) -> Any:
    return pyarrow.schema(
        [
            pyarrow.field(
                name,
                pyarrow.float32()
                if name.startswith(("probability", "margin"))
                else pyarrow.string(),
                nullable=name not in _NEVER_NULL,
            )
            for name in (*COLUMNS, *top_columns(top_k))
        ]
    )


def _parquet_columns(rows: Sequence[Prediction], top_k: int) -> dict[str, list[str | float | None]]:
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    for k in range(top_k):
        ranked = [row.top[k] if k < len(row.top) else None for row in rows]
        columns[f"label_{k + 1}"] = [each and each.label for each in ranked]
        columns[f"probability_{k + 1}"] = [each and each.probability for each in ranked]
    return columns


_PARQUET = ".parquet"
_FORMATS: dict[str, _Write] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    _PARQUET: _write_parquet,
}


def _json_row(row: Prediction, top_k: int) -> dict[str, Any]:
    top = [
        {"label": each.label, "probability": _short(each.probability)} for each in row.top[:top_k]
    ]
    return {**dict(zip(COLUMNS, _cells(row), strict=True)), "top": top}


def _cells(row: Prediction) -> tuple[str | float | None, ...]:
    """What ``COLUMNS`` names."""
    return (
        row.path,
        row.status,
        row.reason,
        row.label,
        _short(row.probability),
        _short(row.margin),
        row.expected,
    )


def _short(value: float | None) -> float | None:
    """Round to the shortest decimal that is the same float32, the type that logits have."""
    return None if value is None else float(str(np.float32(value)))
