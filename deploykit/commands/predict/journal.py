"""The journal of a prediction: each row as it comes, so that no interruption loses one."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self

import msgspec
from filelock import FileLock, Timeout

from deploykit.bundle.manifest import printable
from deploykit.errors import InputError, UsageError
from deploykit.specs.model import Precision
from deploykit.specs.prediction import Prediction
from deploykit.specs.value import Value
from deploykit.system.deps import installed_versions, version_changes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from deploykit.commands.predict.run import PredictionRun

_SYNC_SECONDS = 5.0
_BEGINNING = b'{"journal":"deploykit predict",'
_SHOWN_HASH_DIGITS = 12
_WORDS = {"top_k": "--top-k", "tf32": "--tf32", "source": "what is predicted"}
#: Another version may decode or compute the last digits otherwise.
_DECISIVE = ("onnxruntime", "onnxruntime-gpu", "pillow", "tensorrt", "tensorrt_rtx")

_encode = msgspec.json.Encoder().encode
_decode_row = msgspec.json.Decoder(Prediction).decode


class Fingerprint(Value, frozen=True):
    """What a run's rows follow from: had any of it been otherwise, so would they.

    The batch size and the number of threads are not here. They move an answer's last digits at
    most, and a run that ran out of memory must be able to go on with smaller batches.

    Attributes:
        file: The graph or engine that runs, relative to the bundle.
        sha256: That file's, in lowercase hex.
        runtime: What executes it.
        device: On which device.
        precision: The precision of its arithmetic.
        tf32: Whether FP32 arithmetic may round to TensorFloat-32.
        labels: The classes' names, in the order of the logits.
        preprocessing: As JSON, see :meth:`deploykit.specs.Preprocessing.to_metadata`.
        top_k: How many classes a row ranks.
        source: The folder or file that is predicted, absolute.
        versions: Of the packages that decode and compute.
    """

    file: str
    sha256: str
    runtime: str
    device: str
    precision: Precision
    tf32: bool
    labels: tuple[str, ...]
    preprocessing: str
    top_k: int
    source: str
    versions: dict[str, str]

    def options(self) -> str:
        """The options that choose what ran: ``--runtime onnxruntime-cpu --precision fp32``."""
        return f"--runtime {self.runtime} --precision {self.precision}" + " --tf32" * self.tf32

    def changes_to(self, now: Fingerprint) -> list[str]:
        """What is otherwise in another fingerprint: ``top_k was 5, now 3``."""
        changes = []
        for name in self.__struct_fields__:
            before, after = getattr(self, name), getattr(now, name)
            if before == after:
                continue
            if name == "labels":
                changes.append(_change_of_labels(before, after))
            elif name == "versions":
                changes += version_changes(before, after)
            elif name == "sha256":
                before, after = (f"{hash_[:_SHOWN_HASH_DIGITS]}..." for hash_ in (before, after))
                changes.append(f"the SHA-256 of {now.file} was {before}, now {after}")
            else:
                changes.append(f"{_WORDS.get(name, name)} was {before}, now {after}")
        return changes


def fingerprint_of(run: PredictionRun) -> Fingerprint:
    """The fingerprint of a run whose session is open."""
    spec, manifest = run.spec, run.bundle.manifest
    return Fingerprint(
        file=spec.graph,
        sha256=manifest.files[spec.graph].sha256,
        runtime=spec.runtime,
        device=spec.device,
        precision=spec.precision,
        tf32=spec.tf32,
        labels=manifest.labels.names,
        preprocessing=manifest.preprocessing.to_metadata(),
        top_k=run.top_k,
        source=printable(run.request.source.resolve()),
        versions={name: v for name, v in installed_versions().items() if name in _DECISIVE},
    )


def _change_of_labels(before: tuple[str, ...], after: tuple[str, ...]) -> str:
    if len(before) != len(after):
        return f"there were {len(before)} labels, now {len(after)}"
    place, old, new = next(
        (place, old, new)
        for place, (old, new) in enumerate(zip(before, after, strict=True))
        if old != new
    )
    return f"label {place} was {old!r}, now {new!r}"


class _Header(Value, frozen=True):
    """A journal's first line.

    Attributes:
        journal: What the file is, for whoever finds it.
        schema: The version of this layout.
        fingerprint: What the rows follow from.
    """

    journal: Literal["deploykit predict"]
    schema: Literal[1]
    fingerprint: Fingerprint


class Journal:
    """The rows of a run, written one by one; from them its tables are made in the end.

    It is ``<table>.journal``, JSON Lines: a header, then a row a line. Beside the table, because
    there the same command finds it again; of the first table alone, because one truth is enough
    for any number of them.

    The system has each row before the next one is predicted, so that a process that is killed
    loses none. The disk has them every five seconds, which is what a power cut can cost. A last
    line that is torn is dropped, and its file predicted again.

    As a context manager it keeps other runs out. When the block ends well, the tables are written
    and the journal is removed; when it does not, the journal stays, unless it has no row.

    Args:
        table: The first of the tables.
        resume: Whether to go on with the rows that are there.

    Attributes:
        path: The journal's own.
        done: The ``path`` of each row that an earlier run has left.
        damaged: How many lines a power cut, or whoever edited the file, has spoilt: the first that
            is no row, and those behind it, whose files are predicted again. A last line that was
            being written is none of them.
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
                if self.done and not self._resume:
                    raise UsageError(
                        f"{self.path} holds the {self.count} rows of a run that was interrupted.",
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
                hint=f"Continue it as it was begun ({self._before.options()}). To start again, "
                "delete that file; or name another --output.",
            )
        with _refusing(self._table):
            if not self._found:
                self._lock.enter_context(only_writer(self._table))
            self._stream = self.path.open("r+b" if self._found else "xb")
            self._stream.truncate(self._whole_bytes)
            self._stream.seek(self._whole_bytes)
            if self._before is None:
                header = _Header(journal="deploykit predict", schema=1, fingerprint=fingerprint)
                self._stream.write(_encode(header) + b"\n")
                self._stream.flush()

    def write(self, row: Prediction) -> None:
        """Add a row.

        Raises:
            InputError: The system fails to write it: the disk may be full.
        """
        if self._stream is None:
            raise RuntimeError("the journal has not begun")
        try:
            self._stream.write(_encode_row(row))
            self._stream.flush()
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
        """Read the rows back, those of earlier runs first."""
        with self.path.open("rb") as lines:
            next(lines)  # the header
            yield from map(_decode_row, lines)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the journal, and remove it unless it is still of use.

        Raises:
            InputError: The system refuses to remove it.
        """
        with self._lock:
            if self._stream is None:
                return
            with suppress(OSError):  # the tables are written, or what went wrong is told already
                if kind is not None:
                    os.fsync(self._stream.fileno())
                self._stream.close()
            if kind is None:
                self._remove()
            elif self.count == 0:
                with suppress(OSError):
                    self.path.unlink()

    def _remove(self) -> None:
        try:
            self.path.unlink()
        except OSError as exc:
            raise InputError(
                f"The run is done, but {self.path} cannot be removed: {exc.strerror or exc}.",
                hint="Delete it, or the next run will take this one for interrupted.",
            ) from exc

    def _read(self) -> None:
        """Find the rows that are whole.

        After a power cut rows behind a torn one may be whole, too. They are predicted again.
        """
        with self.path.open("rb") as lines:
            header = lines.readline()
            if _is_beginning(header):  # its run was killed before it had a row
                return
            before = self._fingerprint_in(header)
            end, names = len(header), set[str]()
            for line in lines:
                row = _whole_row(line)
                if row is None or row.path in names:  # no file has two rows
                    self.damaged = line.endswith(b"\n") + sum(1 for _ in lines)
                    break
                names.add(row.path)
                end += len(line)
        if names:
            self.done, self._before, self._whole_bytes = frozenset(names), before, end

    def _fingerprint_in(self, header: bytes) -> Fingerprint:
        try:
            return msgspec.json.decode(header, type=_Header).fingerprint
        except msgspec.MsgspecError as exc:
            raise InputError(
                f"{self.path} is no journal that this version of deploykit reads: {exc}.",
                hint="Continue with the version that began it, or delete it.",
            ) from exc


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


def _encode_row(row: Prediction) -> bytes:
    """A row as a line. What is no Unicode must not end a long run: it is escaped."""
    try:
        return _encode(row) + b"\n"
    except UnicodeEncodeError:
        return _encode(_escaped(msgspec.to_builtins(row))) + b"\n"


def _escaped(value: Any) -> Any:
    r"""Plain values with the strings' stray bytes written ``\udcXX``."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _escaped(each) for key, each in value.items()}
    return [_escaped(each) for each in value] if isinstance(value, list | tuple) else value


def _whole_row(line: bytes) -> Prediction | None:
    """The row that a line holds; None for one that was being written, or is damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        return _decode_row(line)
    except msgspec.MsgspecError:
        return None


@contextmanager
def only_writer(table: Path) -> Iterator[None]:
    """Keep other runs from a table.

    Raises:
        UsageError: Another run is writing it; or the system refuses to make the lock file.
    """
    lock = FileLock(lock_of(table))
    with _refusing(table):
        lock.acquire(blocking=False)
    try:
        yield
    finally:
        # Removed while it is ours: a moment later it might be another run's. Windows does not let
        # us, and removes it with the release.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()
