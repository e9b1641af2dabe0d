"""Predictions as a table: one row an image file, written as they come."""

from __future__ import annotations

import csv
import json
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO, TypeAlias

import numpy as np
from filelock import FileLock, Timeout

from deploykit.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from deploykit.specs import Prediction

    _WriteRow: TypeAlias = Callable[[Prediction], object]

_COLUMNS = ("path", "status", "reason", "label", "probability", "margin", "expected")
_ROWS_PER_FLUSH = 100

# A spreadsheet takes a cell that begins with one of these for a formula, and a file's name may
# have been chosen by a stranger.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def open_table(path: Path, *, top_k: int) -> TableWriter:
    """Make a writer for a table, in the format that the name's ending says.

    ``.csv``: UTF-8 with the mark by which Excel knows it, RFC 4180 quoting; the top-k answers in
    columns ``label_1``, ``probability_1``, ... A path that a spreadsheet would take for a formula
    begins with ``./``, and still leads to the file.
    ``.jsonl``: UTF-8, an object a line; the top-k answers in a list ``top``.

    Both give probabilities and margins with as many digits as tell one float32 from the next.

    Args:
        path: The table; one that is there is replaced when the new one is whole.
        top_k: How many of an image's answers a row shows.

    Raises:
        UsageError: The ending is unknown, the folder does not exist, or the path is a folder.
    """
    if path.is_dir():
        raise UsageError(
            f"The output {path} is a folder.",
            hint=f"Name a file in it: {path / 'predictions.csv'}",
        )
    file_format = _FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise UsageError(
            f"The output {path} does not say its format.",
            hint=f"Give it one of these endings: {', '.join(_FORMATS)}",
        )
    if not path.parent.is_dir():
        raise UsageError(
            f"The output's folder {path.parent} does not exist.",
            hint="Create it, or write somewhere else.",
        )
    return TableWriter(path, file_format, top_k)


class TableWriter:
    """A table that grows row by row, and takes its name when it is whole.

    Until then it is ``<name>.partial``, and what had the name stays. When an exception ends the
    ``with`` block, the rows so far stay in the partial file; with none, it is removed. A partial
    file of an earlier run is overwritten; that of a run that still goes on is locked.

    ``open_table`` makes one.

    Attributes:
        path: The table's name.
        partial: Its name while it grows.
        rows: How many predictions it has.
    """

    def __init__(self, path: Path, file_format: _Format, top_k: int) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.rows = 0
        self._format = file_format
        self._top_k = top_k
        self._lock: ExitStack
        self._stream: TextIO
        self._write_row: _WriteRow

    def __enter__(self) -> Self:
        """Create the partial file.

        Raises:
            UsageError: The system refuses to, or another run is writing this table.
        """
        with ExitStack() as lock:
            try:
                lock.enter_context(_only_writer(self.path, self.partial))
                # Names that are not Unicode come escaped from the scan; a label may still have
                # such a character, and must not end a long run.
                self._stream = self.partial.open(
                    "w", encoding=self._format.encoding, errors="backslashreplace", newline=""
                )
            except OSError as exc:
                raise UsageError(
                    f"Writing {self.path} failed: {exc.strerror or exc}.",
                    hint="Check the folder's permissions, or write somewhere else.",
                ) from exc
            self._lock = lock.pop_all()
        self._write_row = self._format.begin(self._stream, self._top_k)
        return self

    def write(self, prediction: Prediction) -> None:
        """Add a row.

        Raises:
            InputError: The system fails to write it: the disk may be full.
        """
        with self._explaining():
            self._write_row(prediction)
            self.rows += 1
            if self.rows % _ROWS_PER_FLUSH == 0:
                self._stream.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the table its name, unless an exception says that it is not whole.

        Raises:
            InputError: The system refuses to: another program may have the old table open.
        """
        with self._lock:
            if kind is None:
                with self._explaining():
                    self._stream.close()
                    self.partial.replace(self.path)
                return
            with suppress(OSError):  # what went wrong first is the error to tell
                self._stream.close()
                if self.rows == 0:
                    self.partial.unlink()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Say what a failure leaves: the name was right, so this is no wrong usage."""
        try:
            yield
        except OSError as exc:
            kept = f" The rows so far are in {self.partial}." if self.rows else ""
            raise InputError(
                f"Writing {self.path} failed: {exc.strerror or exc}.{kept}",
                hint="Check the folder's permissions and the free space on its disk, and close "
                "the program that has the table open.",
            ) from exc


@contextmanager
def _only_writer(table: Path, partial: Path) -> Iterator[None]:
    """Keep other runs from a table.

    Raises:
        UsageError: Another run keeps this one from it.
        OSError: The system refuses to make the lock file.
    """
    lock = FileLock(f"{partial}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as exc:
        raise UsageError(
            f"Another run is writing {table}.",
            hint="Wait until it is done, or name another --output.",
        ) from exc
    try:
        yield
    finally:
        # Removed while it is ours: a moment later it might be another run's. Windows does not let
        # us, and removes it with the release.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


@dataclass(frozen=True)
class _Format:
    """A file format.

    Attributes:
        encoding: The text's.
        begin: Given a stream and k, writes what precedes the rows and returns what writes a row.
    """

    encoding: str
    begin: Callable[[TextIO, int], _WriteRow]


def _begin_csv(stream: TextIO, top_k: int) -> _WriteRow:
    ranks = range(1, top_k + 1)
    top_columns = [name for k in ranks for name in (f"label_{k}", f"probability_{k}")]
    writer = csv.writer(stream)
    writer.writerow([*_COLUMNS, *top_columns])

    def write(prediction: Prediction) -> None:
        path, *cells = _cells(prediction)
        if prediction.path.startswith(_FORMULA_STARTS):
            path = f"./{path}"
        ranked = prediction.top[:top_k]
        top = [cell for answer in ranked for cell in (answer.label, _shorten(answer.probability))]
        padding = [None] * (len(top_columns) - len(top))
        writer.writerow([path, *cells, *top, *padding])

    return write


def _begin_jsonl(stream: TextIO, top_k: int) -> _WriteRow:
    def write(prediction: Prediction) -> None:
        row: dict[str, object] = dict(zip(_COLUMNS, _cells(prediction), strict=True))
        row["top"] = [
            {"label": answer.label, "probability": _shorten(answer.probability)}
            for answer in prediction.top[:top_k]
        ]
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    return write


_FORMATS = {
    ".csv": _Format("utf-8-sig", _begin_csv),
    ".jsonl": _Format("utf-8", _begin_jsonl),
}


def _cells(prediction: Prediction) -> tuple[str | float | None, ...]:
    """What ``_COLUMNS`` names."""
    return (
        prediction.path,
        prediction.status,
        prediction.reason,
        prediction.label,
        _shorten(prediction.probability),
        _shorten(prediction.margin),
        prediction.expected,
    )


def _shorten(value: float | None) -> float | None:
    """Round to the shortest decimal that is the same float32, the type that logits have."""
    return None if value is None else float(str(np.float32(value)))
