"""The journal of a prediction: each row as it comes, so that no interruption loses one."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self, get_args

import msgspec
from filelock import Timeout

from deploykit.commands.predict.provenance import Fingerprint
from deploykit.commands.predict.run import NOT_FINITE
from deploykit.errors import InputError, UsageError
from deploykit.images.decode import FailureStatus
from deploykit.specs.prediction import Prediction
from deploykit.specs.session import Closing
from deploykit.specs.value import Value, decode_json
from deploykit.system.files import held, open_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_SYNC_SECONDS = 5.0
_BEGINNING = b'{"journal":"deploykit predict",'
#: Behind a line's own fields, over these and the checksum of the line before it.
_CHECKSUM = b',"checksum":"%s"}\n'
_CHECKSUM_BYTES = 8
_FAILURES = frozenset({*get_args(FailureStatus), NOT_FINITE[0]})

_encode = msgspec.json.Encoder().encode
_decode_row = msgspec.json.Decoder(Prediction).decode


class _Header(Value, frozen=True):
    """A journal's first line.

    Attributes:
        journal: What the file is, for whoever finds it.
        schema: The version of this layout.
        fingerprint: What the rows follow from.
    """

    journal: Literal["deploykit predict"]
    schema: Literal[2]
    fingerprint: Fingerprint


class Journal(Closing):
    """The rows of a run, written one by one; from them its tables are made in the end.

    It is ``<table>.journal``, JSON Lines: a header, then a row a line. Beside the table, because
    there the same command finds it again; of the first table alone, because one truth is enough
    for any number of them.

    The system has each row before the next one is predicted, so that a process that is killed
    loses none. The disk has them every five seconds, which is what a power cut can cost. A last
    line that is torn is dropped, and its file predicted again.

    Each line ends with a checksum of itself and of all lines before it. So what is not as it was
    written is noticed, and so are lines that are missing, repeated or in another order: the rows
    up to there are kept, and the files behind are predicted again.

    As a context manager it keeps other runs out. The journal stays when the block ends, unless it
    was removed or has no row.

    Args:
        table: The first of the tables.
        resume: Whether to go on with the rows that are there.

    Attributes:
        path: The journal's own.
        done: The ``path`` of each row that an earlier run has left.
        damaged: How many lines a power cut, or whoever edited the file, has spoilt: the first that
            is not as it was written, and those behind it, whose files are predicted again. A last
            line that was being written is none of them.
    """

    def __init__(self, table: Path, *, resume: bool) -> None:
        self.path = journal_of(table)
        self.done: frozenset[str] = frozenset()
        self.damaged = 0
        self._table = table
        self._resume = resume
        self._found = False
        self._before: Fingerprint | None = None
        self._whole_bytes = 0
        self._checksum = b""  # the last line's
        self._added = 0
        self._lock = ExitStack()
        self._stream: BinaryIO | None = None
        self._synced = time.monotonic()

    @property
    def count(self) -> int:
        """The number of rows, those of an earlier run included."""
        return len(self.done) + self._added

    def __enter__(self) -> Self:
        """Read what an earlier run has left, which without ``resume`` must be nothing.

        Raises:
            UsageError: There are rows, and nobody said what is to become of them; or another run
                is adding to them; or the system refuses to read them.
            InputError: The file is no journal of this version.
        """
        # Where there is none, none is made yet: the folder may be the one to be scanned.
        if os.path.lexists(self.path):
            with ExitStack() as lock, _refusing(self._table):
                lock.enter_context(only_writer(self._table))
                self._read()
                if (self.done or self.damaged) and not self._resume:
                    spoilt = f" ({self.damaged} more are damaged)" if self.damaged else ""
                    raise UsageError(
                        f"{self.path} holds the {self.count} rows of a run that was "
                        f"interrupted{spoilt}.",
                        hint="Continue it: add --resume. To start again, delete that file; or "
                        "name another --output.",
                    )
                self._lock = lock.pop_all()
                self._found = True
        return self

    def begin(self, fingerprint: Fingerprint) -> None:
        """Make the journal ready for rows.

        Args:
            fingerprint: What the rows will follow from.

        Raises:
            UsageError: The rows that are there follow from something else; or another run has
                begun the same table; or the system refuses to write here.
        """
        changes = self._before.changes_to(fingerprint) if self._before is not None else []
        if self._before is not None and changes:
            raise UsageError(
                f"{self.path} belongs to another run: {'; '.join(changes)}.",
                hint=f"Continue it as it was begun: {self._before.way_back(fingerprint)}. To start "
                "again, delete that file; or name another --output.",
            )
        with _refusing(self._table):
            if not self._found:
                self._lock.enter_context(only_writer(self._table))
            self._stream = self.path.open("r+b" if self._found else "xb")
            self._stream.truncate(self._whole_bytes)
            self._stream.seek(self._whole_bytes)
            if self._before is None:
                header = _Header(journal="deploykit predict", schema=2, fingerprint=fingerprint)
                self._append(self._stream, _encode(header))

    def write(self, row: Prediction) -> None:
        """Add a row.

        Raises:
            InputError: The system fails to write it: the disk may be full.
        """
        if self._stream is None:
            raise RuntimeError("the journal has not begun")
        try:
            self._append(self._stream, _encode_row(row))
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()
        except OSError as exc:
            raise InputError(
                f"Writing {self.path} failed: {exc.strerror or exc}. It holds the {self.count} "
                "rows so far.",
                hint="Make room on its disk.",
            ) from exc
        self._added += 1

    def rows(self) -> Iterator[Prediction]:
        """Read the rows back, those of earlier runs first.

        Raises:
            InputError: They are not as they were written any more.
        """
        with open_file(self.path) as lines:
            header = lines.readline()
            fingerprint, checksum = self._read_header(header)
            count = 0
            for row, _, _ in _whole_rows(lines, fingerprint, checksum):
                yield row
                count += 1
        if count < self.count:
            raise InputError(
                f"{self.path} was damaged while it was in use: of its {self.count} rows the first "
                f"{count} are whole.",
                hint="Look after its disk; the same command with --resume predicts the others "
                "again.",
            )

    def remove(self) -> None:
        """Remove the journal, when the tables are written.

        Raises:
            InputError: The system refuses to.
        """
        try:
            if self._stream is not None:
                self._stream.close()  # or Windows would not let it go
            self.path.unlink()
        except OSError as exc:
            raise InputError(
                f"The run is done, but {self.path} cannot be removed: {exc.strerror or exc}.",
                hint="Delete it, or the next run will take this one for interrupted.",
            ) from exc

    def close(self) -> None:
        """Stop writing and let other runs in; a journal without rows is removed."""
        with self._lock:
            if self._stream is None or self._stream.closed:
                return
            with suppress(OSError):  # what went wrong is told already
                os.fsync(self._stream.fileno())
            with suppress(OSError):
                self._stream.close()
            if self.count == 0:
                with suppress(OSError):
                    self.path.unlink()

    def _append(self, stream: BinaryIO, fields: bytes) -> None:
        line, self._checksum = _sealed(fields, self._checksum)
        stream.write(line)
        stream.flush()

    def _read(self) -> None:
        """Find the rows that are whole.

        After a power cut rows behind a torn one may be whole, too. They are predicted again.
        """
        with open_file(self.path) as lines:
            header = lines.readline()
            if _is_beginning(header):  # its run was killed before it had a row
                return
            before, checksum = self._read_header(header)
            end, names = len(header), set[str]()
            for row, whole, line in _whole_rows(lines, before, checksum):
                if row.path in names:  # no file has two rows
                    break
                checksum = whole
                names.add(row.path)
                end += len(line)
            lines.seek(end)
            self.damaged = sum(line.endswith(b"\n") for line in lines)
        if names:
            self.done, self._before = frozenset(names), before
            self._whole_bytes, self._checksum = end, checksum

    def _read_header(self, line: bytes) -> tuple[Fingerprint, bytes]:
        """What the rows follow from, and the line's checksum."""
        unsealed = _unsealed(line, b"")
        reason = "its first line is not as it was written"
        try:
            if unsealed is not None:
                return decode_json(unsealed[0], _Header).fingerprint, unsealed[1]
        except ValueError as exc:
            reason = str(exc)
        raise InputError(
            f"{self.path} is no journal that this version of deploykit reads: {reason}.",
            hint="Continue with the version that began it; or delete it, to start again.",
        )


def journal_of(table: Path) -> Path:
    """Where a run keeps its rows whose first table this is."""
    return table.with_name(f"{table.name}.journal")


def lock_of(table: Path) -> Path:
    """The lock of that journal."""
    return table.with_name(f"{table.name}.journal.lock")


@contextmanager
def _refusing(table: Path) -> Iterator[None]:
    """Say what keeps a run from beginning."""
    try:
        yield
    except (Timeout, FileExistsError) as exc:
        raise UsageError(
            f"Another run is writing {table}.",
            hint="Wait until it is done, or name another --output.",
        ) from exc
    except OSError as exc:
        raise UsageError(
            f"{journal_of(table)} cannot be used: {exc.strerror or exc}.",
            hint="Check the folder's permissions, or write somewhere else.",
        ) from exc


def _is_beginning(header: bytes) -> bool:
    """Whether a first line was being written; a power cut may leave zeros."""
    written = header.rstrip(b"\0")
    torn = written.startswith(_BEGINNING) and not header.endswith(b"\n")
    return torn or _BEGINNING.startswith(written)


def _sealed(fields: bytes, before: bytes) -> tuple[bytes, bytes]:
    """A JSON object as a line that ends with its checksum; and the checksum.

    Args:
        fields: The object.
        before: The checksum of the line before; empty for the first.
    """
    checksum = (
        hashlib.blake2b(before + fields, digest_size=_CHECKSUM_BYTES).hexdigest().encode("ascii")
    )
    return fields[:-1] + _CHECKSUM % checksum, checksum


def _unsealed(line: bytes, before: bytes) -> tuple[bytes, bytes] | None:
    """The JSON object of a line, and its checksum; None if it is not as it was written there."""
    fields = line[: -len(_CHECKSUM % bytes(2 * _CHECKSUM_BYTES))] + b"}"
    sealed, checksum = _sealed(fields, before)
    return (fields, checksum) if sealed == line else None


def _whole_rows(
    lines: Iterable[bytes], fingerprint: Fingerprint, before: bytes
) -> Iterator[tuple[Prediction, bytes, bytes]]:
    """The rows of a journal up to the first that is not as it was written.

    Args:
        lines: Those behind the header.
        fingerprint: The header's.
        before: Its checksum.

    Yields:
        Each row, the checksum and the line.
    """
    places = {label: place for place, label in enumerate(fingerprint.labels)}
    for line in lines:
        unsealed = _unsealed(line, before)
        if unsealed is None:
            return
        fields, before = unsealed
        try:
            row = _decode_row(fields)
        except (ValueError, RecursionError):
            return
        if not _is_possible(row, fingerprint, places):
            return
        yield row, before, line


def _is_possible(row: Prediction, run: Fingerprint, places: Mapping[str, int]) -> bool:
    """Whether a run can have written a row: a checksum does not tell who made it.

    Args:
        row: The row.
        run: What the rows follow from.
        places: The number of each class.
    """
    if not row.path or "\0" in row.path:
        return False
    known = row.expected if run.head.several else row.expected_labels
    if known is not None or not _are_classes(row.truth or (), places):
        return False
    if not row.ok:
        answer = (row.label, row.labels, row.probability, row.margin, row.top)
        return answer == (None, None, None, None, ()) and row.status in _FAILURES
    if len(row.top) != run.top_k or (row.margin is not None and row.margin < 0) or row.reason:
        return False
    found = {each.label: each.probability for each in row.top}
    if len(found) < run.top_k or not found.keys() <= places.keys():
        return False
    if not all(0 <= each <= 1 for each in found.values()):
        return False
    if run.head.several:
        # Of what a row ranks, its labels are ranked alike; others come behind.
        ranked = [label for label in found if label in (row.labels or ())]
        fits = row.labels is not None and [*row.labels[: len(ranked)]] == ranked
        answer_of_one = (row.label, row.probability)
        return fits and answer_of_one == (None, None) and _are_classes(row.decided, places)
    if row.labels is not None or row.label != row.top[0].label or row.probability is None:
        return False
    told = run.labels[run.head.headline_class(places[row.label])]
    return 0 <= row.probability <= 1 and found.get(told, row.probability) == row.probability


def _are_classes(names: tuple[str, ...], places: Mapping[str, int]) -> bool:
    """Whether names are those of classes, each once."""
    return len({*names}) == len(names) and all(name in places for name in names)


def _encode_row(row: Prediction) -> bytes:
    """A row as JSON. What is no Unicode must not end a long run: it is escaped."""
    try:
        return _encode(row)
    except UnicodeEncodeError:
        return _encode(_escaped(msgspec.to_builtins(row)))


def _escaped(value: Any) -> Any:
    r"""Plain values with the strings' stray bytes written ``\udcXX``."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _escaped(each) for key, each in value.items()}
    return [_escaped(each) for each in value] if isinstance(value, list | tuple) else value


@contextmanager
def only_writer(table: Path) -> Iterator[None]:
    """Keep other runs from a table.

    Raises:
        UsageError: Another run is writing it; or the system refuses to make the lock file.
    """
    with ExitStack() as lock:
        with _refusing(table):
            lock.enter_context(held(lock_of(table)))
        yield
