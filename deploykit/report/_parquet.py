"""Predictions as a Parquet table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from deploykit.deps import need
from deploykit.report.tables import COLUMNS, top_columns
from deploykit.specs import Prediction

# Groups are compressed and skipped as one; a group of this many rows takes a few megabytes.
_ROWS_PER_GROUP = 16_384
_NEVER_NULL = ("path", "status", "reason")


def write_parquet(path: Path, rows: Iterable[Prediction], top_k: int) -> None:
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
    schema = _schema(pyarrow, top_k)
    remaining = iter(rows)
    with path.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(remaining, _ROWS_PER_GROUP)):
            columns = _columns(group, top_k)
            writer.write_table(pyarrow.Table.from_pydict(columns, schema))


def _schema(pyarrow: Any, top_k: int) -> Any:
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


def _columns(rows: Sequence[Prediction], top_k: int) -> dict[str, list[str | float | None]]:
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    for k in range(top_k):
        ranked = [row.top[k] if k < len(row.top) else None for row in rows]
        columns[f"label_{k + 1}"] = [each and each.label for each in ranked]
        columns[f"probability_{k + 1}"] = [each and each.probability for each in ranked]
    return columns
