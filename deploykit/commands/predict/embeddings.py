"""The embeddings of a prediction: a row each, kept as they come, in a file that appears whole.

They are kept in ``<file>.part``, which is laid out as the .npy file will be, so that row i is that
of the journal's row i: an interrupted run goes on where the journal does.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from deploykit.errors import InputError, UsageError
from deploykit.specs.session import Closing, Embeddings
from deploykit.system.deps import check_installed, need
from deploykit.system.files import check_destination, move_into_place, replacing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deploykit.specs.prediction import Prediction

ENDINGS = (".npy", ".parquet")
_SYNC_SECONDS = 5.0
#: Of a .npy file of version 1.0: the number of rows is written last, into the room that is left
#: (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html).
_HEADER_BYTES = 128
_MAGIC = b"\x93NUMPY\x01\x00"
_VALUE_BYTES = 4
#: Of a group of a Parquet file, which is read and written as one.
_GROUP_BYTES = 2**23


class EmbeddingsFile(Closing):
    """Where the embeddings of a run go.

    Args:
        path: ``.npy``: float32 (rows, E), row i that of the table's row i, a row of NaN where there
            is no prediction. ``.parquet``: the columns ``path`` and ``embedding``, a list of E
            float32, null where there is no prediction.

    Attributes:
        path: The file.
        part: What keeps the rows until then.

    Raises:
        UsageError: See :func:`deploykit.system.files.check_destination`.
        DependencyError: A Parquet file without pyarrow.
    """

    def __init__(self, path: Path) -> None:
        check_destination(path, "embeddings file", ENDINGS)
        if path.suffix.lower() == ".parquet":
            check_installed("pyarrow")
        self.path = path
        self.part = part_of(path)
        self._size = 0
        self._rows = 0
        self._missing = b""
        self._stream: BinaryIO | None = None
        self._synced = time.monotonic()

    def begin(self, size: int, done: int) -> None:
        """Make ready for rows.

        Args:
            size: E, the number of values of an embedding.
            done: How many rows an earlier run has left in the journal.

        Raises:
            UsageError: Their embeddings are not there, or the system refuses to write here.
        """
        self._size, self._rows = size, done
        self._missing = np.full(size, np.nan, "<f4").tobytes()
        try:
            self._stream = self.part.open("r+b" if done else "w+b")
            if done:
                self._check_part(self._stream, done)
            else:
                self._stream.write(_header(0, size))
            self._stream.truncate(self._end)
            self._stream.seek(self._end)
        except FileNotFoundError as exc:
            raise _no_part(self.part, done) from exc
        except OSError as exc:
            raise UsageError(
                f"{self.part} cannot be used: {exc.strerror or exc}.",
                hint="Check the folder's permissions, or write somewhere else.",
            ) from exc

    def write(self, embedding: Embeddings | None) -> None:
        """Add a row.

        Args:
            embedding: (E,) float32; None for a row without a prediction.

        Raises:
            InputError: The system fails to write it: the disk may be full.
        """
        if self._stream is None:
            raise RuntimeError("the embeddings have not begun")
        row = self._missing if embedding is None else embedding.astype("<f4", copy=False).tobytes()
        try:
            self._stream.write(row)
            self._stream.flush()  # so that the journal never has a row more
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()
        except OSError as exc:
            raise self._failure(exc) from exc
        self._rows += 1

    def finish(self, rows: Iterable[Prediction]) -> None:
        """Let the file appear, whole; what kept the rows goes.

        Args:
            rows: All of them, in their order; only a Parquet file asks for them.

        Raises:
            InputError: The system fails to write it.
        """
        if self._stream is None:
            raise RuntimeError("the embeddings have not begun")
        try:
            self._stream.seek(0)
            self._stream.write(_header(self._rows, self._size))
            self._stream.close()
            if self.path.suffix.lower() == ".parquet":
                with replacing(self.path) as partial:
                    self._write_parquet(partial, rows)
                self.part.unlink()
            else:
                move_into_place(self.part, self.path.resolve())
        except OSError as exc:
            raise self._failure(exc) from exc

    def close(self) -> None:
        """Stop writing; rows that are there stay, for a run that goes on."""
        if self._stream is None or self._stream.closed:
            return
        with suppress(OSError):  # what went wrong is told already
            os.fsync(self._stream.fileno())
            self._stream.close()
            if not self._rows:
                self.part.unlink()

    @property
    def _end(self) -> int:
        return _HEADER_BYTES + self._rows * self._size * _VALUE_BYTES

    def _rows_in(self, size: int) -> int:
        return (size - _HEADER_BYTES) // (self._size * _VALUE_BYTES)

    def _check_part(self, stream: BinaryIO, done: int) -> None:
        """Check that the embeddings of the rows that are done are there."""
        # A run that was killed while it finished may have written the number of rows already.
        header, there = stream.read(_HEADER_BYTES), os.fstat(stream.fileno()).st_size
        known = _header(0, self._size), _header(self._rows_in(there), self._size)
        if header not in known or there < self._end:
            raise _no_part(self.part, done)

    def _write_parquet(self, path: Path, rows: Iterable[Prediction]) -> None:
        """Write path and embedding, group by group, uncompressed: nothing repeats in them."""
        pyarrow, parquet = need("pyarrow"), need("pyarrow.parquet")
        values = pyarrow.field("item", pyarrow.float32(), nullable=False)
        schema = pyarrow.schema(
            [
                pyarrow.field("path", pyarrow.string(), nullable=False),
                pyarrow.field("embedding", pyarrow.list_(values, self._size)),
            ]
        )
        step = max(1, _GROUP_BYTES // (self._size * _VALUE_BYTES))
        remaining = iter(rows)
        with (
            self.part.open("rb") as part,
            path.open("wb") as file,
            parquet.ParquetWriter(
                file, schema, compression="none", use_dictionary=["path"], write_statistics=False
            ) as writer,
        ):
            part.seek(_HEADER_BYTES)
            for start in range(0, self._rows, step):
                count = min(step, self._rows - start)
                group = [row for _, row in zip(range(count), remaining, strict=False)]
                numbers = np.fromfile(part, "<f4", count * self._size)
                # A bit a row. FixedSizeListArray.from_arrays(mask=...) would take 70 ms to make
                # ready all that pyarrow can compute.
                valid = np.packbits([row.ok for row in group], bitorder="little")
                embeddings = pyarrow.Array.from_buffers(
                    schema.field("embedding").type,
                    len(group),
                    [pyarrow.py_buffer(valid)],
                    children=[pyarrow.array(numbers)],
                )
                paths = pyarrow.array([row.path for row in group], pyarrow.string())
                writer.write_table(pyarrow.Table.from_arrays([paths, embeddings], schema=schema))

    def _failure(self, exc: OSError) -> InputError:
        return InputError(
            f"Writing {self.path} failed: {exc.strerror or exc}.",
            hint="Check the folder's permissions and the free space on its disk.",
        )


def part_of(path: Path) -> Path:
    """What keeps the rows until the file is whole."""
    return path.with_name(f"{path.name}.part")


def _no_part(part: Path, done: int) -> UsageError:
    return UsageError(
        f"{part} does not hold the embeddings of the {done} rows that are done.",
        hint="Name the --embeddings of the run that was interrupted. To start again, delete the "
        "journal of its table.",
    )


def _header(rows: int, size: int) -> bytes:
    """A .npy header of a fixed length."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {size}), }}"
    length = _HEADER_BYTES - len(_MAGIC) - 2
    return _MAGIC + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"
