"""The embeddings of a prediction: a row beside each of the table's, in a file of their own."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.errors import InputError
from deploykit.system.deps import check_installed, need
from deploykit.system.files import check_destination, replacing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deploykit.commands.predict.ledger import Row

ENDINGS = (".npy", ".parquet")
_VALUE_BYTES = 4
#: Of a group of a Parquet file, which is read and written as one.
_GROUP_BYTES = 2**23


def check_embeddings_file(path: Path) -> None:
    """Refuse before the work what could not be written after it.

    Raises:
        UsageError: See :func:`deploykit.system.files.check_destination`.
        DependencyError: A Parquet file without pyarrow.
    """
    check_destination(path, "embeddings file", ENDINGS)
    if path.suffix.lower() == ".parquet":
        check_installed("pyarrow")


def write_embeddings(path: Path, rows: Iterable[Row], *, count: int, size: int) -> None:
    """Write the embeddings of a run.

    Args:
        path: ``.npy``: float32 (rows, E), row i that of the table's row i, a row of NaN where there
            is no prediction. ``.parquet``: the columns ``path`` and ``embedding``, a list of E
            float32, null where there is no prediction.
        rows: All of them, in their order; taken one by one.
        count: How many there are.
        size: E, the number of values of an embedding.

    Raises:
        InputError: The system fails to write it: the disk may be full.
    """
    missing = np.full(size, np.nan, "<f4").tobytes()
    try:
        with replacing(path) as partial:
            if path.suffix.lower() == ".parquet":
                _write_parquet(partial, rows, size)
            else:
                with partial.open("wb") as file:
                    header = {"descr": "<f4", "fortran_order": False, "shape": (count, size)}
                    np.lib.format.write_array_header_1_0(file, header)
                    file.writelines(row.embedding or missing for row in rows)
    except OSError as exc:
        raise InputError(
            f"Writing {path} failed: {exc.strerror or exc}.",
            hint="Check the folder's permissions and the free space on its disk.",
        ) from exc


def _write_parquet(path: Path, rows: Iterable[Row], size: int) -> None:
    """Write path and embedding, group by group, uncompressed: nothing repeats in them.

    The lists are of no fixed size, though all have the same: pyarrow before 26 cannot read back a
    null of such a type.
    """
    pyarrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    values = pyarrow.field("item", pyarrow.float32(), nullable=False)
    schema = pyarrow.schema(
        [
            pyarrow.field("path", pyarrow.string(), nullable=False),
            pyarrow.field("embedding", pyarrow.list_(values)),
        ]
    )
    step = max(1, _GROUP_BYTES // (size * _VALUE_BYTES))
    remaining = iter(rows)
    with (
        path.open("wb") as file,
        parquet.ParquetWriter(
            file, schema, compression="none", use_dictionary=["path"], write_statistics=False
        ) as writer,
    ):
        while group := [*islice(remaining, step)]:
            there = np.array([row.embedding is not None for row in group])
            numbers = np.frombuffer(b"".join(row.embedding or b"" for row in group), "<f4")
            offsets = np.cumsum([0, *(there * size)], dtype=np.int32)
            # A bit a row. ListArray.from_arrays(mask=...) would take 70 ms to make ready all that
            # pyarrow can compute.
            valid = np.packbits(there, bitorder="little")
            embeddings = pyarrow.Array.from_buffers(
                schema.field("embedding").type,
                len(group),
                [pyarrow.py_buffer(valid), pyarrow.py_buffer(offsets)],
                children=[pyarrow.array(numbers)],
            )
            paths = pyarrow.array([row.row.path for row in group], pyarrow.string())
            writer.write_table(pyarrow.Table.from_arrays([paths, embeddings], schema=schema))
