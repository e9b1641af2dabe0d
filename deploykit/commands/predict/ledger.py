"""The folder of a run: its plan, the list of its files, and the rows of each shard.

``<output>.run/`` holds ``plan.json``; ``list-<SHA-256>.jsonl``, a file a line; and ``parts/``, a
file a shard, named after its first and last ordinal and the plan. A part appears whole, and ends
with a checksum; so two that write the same one do no harm, and what a power cut or an editor has
spoilt is noticed. That is why nothing waits for the disk here: 30 parts a second would.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from deploykit.commands.predict.listed import FilesNow, file_of_line, listed_line
from deploykit.commands.predict.plan import ListedFile, Plan, Shard
from deploykit.commands.predict.store import store_of
from deploykit.errors import InputError, UsageError
from deploykit.images.scan import ImageFile
from deploykit.specs.prediction import Prediction
from deploykit.specs.value import Value, decode_json
from deploykit.system.files import read_file
from deploykit.system.threads import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from io import BufferedReader
    from pathlib import Path

    from deploykit.specs.session import Embeddings

_PLAN, _PARTS = "plan.json", "parts"
_CHECKSUM_BYTES = 16
_SEAL = b'{"checksum":"%s"}\n'
_SEAL_BYTES = len(_SEAL % bytes(2 * _CHECKSUM_BYTES))
_DIGEST_DIGITS = 12
_OWN_NAME = re.compile(rf"list-[0-9a-f]+\.jsonl|\.list\..*|\.{re.escape(_PLAN)}\..*")
_PART_NAME = re.compile(r"(\d{10,})-(\d{10,})-([0-9a-f]{12})\.jsonl")


class Row(Value, frozen=True, omit_defaults=True):
    """A line of a part.

    Attributes:
        ordinal: Of the file.
        row: Its prediction.
        embedding: E float32, little endian; None where there is none.
    """

    ordinal: int
    row: Prediction
    embedding: bytes | None = None


class Work(Value, frozen=True):
    """The line of a part behind its rows: what they took.

    Attributes:
        host: The name of the machine.
        seconds: Since the part before.
        stages: See :attr:`deploykit.system.threads.StageClock.seconds`.
    """

    host: str
    seconds: float
    stages: dict[Stage, float]


_encode = msgspec.json.Encoder().encode
_decode_row = msgspec.json.Decoder(Row).decode
_decode_listed = msgspec.json.Decoder(ListedFile).decode


class Ledger:
    """The folder of a run.

    Args:
        folder: It need not be there yet.

    Attributes:
        folder: The folder.
        plan: None where there is none yet.

    Raises:
        UsageError: The system refuses to read it.
        InputError: What is there is no plan of this version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._store = store_of(folder, folder / _PARTS)
        self.plan = self._read_plan()

    @property
    def made(self) -> Plan:
        """The plan, which there is."""
        if self.plan is None:
            raise RuntimeError("the run has no plan yet")
        return self.plan

    # Plan and list --------------------------------------------------------------------------------

    def begin(
        self,
        plan: Plan,
        files: Iterable[ImageFile],
        finish: Callable[[Plan], Plan] = lambda plan: plan,
    ) -> None:
        """Make the list and the plan, unless somebody else has just made one: then take that.

        Args:
            plan: Without what follows from the list.
            files: What to list.
            finish: Adds to the plan what is not known before all files are.

        Raises:
            ImagesError: The source cannot be listed.
            InputError: The system refuses to write here.
        """
        with self._saying(self.folder):
            digest, count = hashlib.sha256(), 0
            with self._store.writing() as (stream, keep):
                for count, file in enumerate(files, start=1):
                    line = _encode(listed_line(count - 1, file)) + b"\n"
                    digest.update(line)
                    stream.write(line)
                plan = msgspec.structs.replace(plan, files=count, list_sha256=digest.hexdigest())
                plan = finish(plan)
                keep(self._list(plan))
            is_ours = self._store.create(self.folder / _PLAN, _encode(plan) + b"\n")
        self.plan = self._read_plan()
        if not is_ours and self.made.list_sha256 != plan.list_sha256:
            self._list(plan).unlink(missing_ok=True)

    def files(self, shards: Iterable[Shard], root: Path) -> Iterator[ImageFile]:
        """The files of shards, read from the list as they are needed.

        Args:
            shards: In the order of the plan.
            root: The folder that the files' paths are relative to.

        Raises:
            InputError: The list is not as it was written.
        """
        at = -1
        with self._reading_list() as lines:
            for shard in shards:
                if shard.start != at:
                    size = os.fstat(lines.fileno()).st_size
                    place = bisect.bisect_left(
                        range(size), shard.start, key=lambda place: _ordinal_from(lines, place)
                    )
                    _ordinal_from(lines, place)
                for ordinal in range(*shard):
                    listed = _decode_listed(lines.readline())
                    if listed.ordinal != ordinal:
                        raise ValueError(f"file {ordinal} is not where it should be")
                    yield file_of_line(root, listed)
                at = shard.stop

    def changed(self, root: Path) -> tuple[int, str]:
        """How many files are not as they were listed, and the first one's name."""
        found = 0, ""
        now = FilesNow(root)
        with self._reading_list() as lines:
            for listed in map(_decode_listed, lines):
                if not now.is_as(listed):
                    found = found[0] + 1, found[1] or listed.path
        return found

    def check_list(self) -> None:
        """Check that the list is the plan's.

        Raises:
            InputError: It is not.
        """
        with self._reading_list() as lines:
            if hashlib.file_digest(lines, "sha256").hexdigest() != self.made.list_sha256:
                raise ValueError("its checksum is another")

    # Parts ----------------------------------------------------------------------------------------

    def parts(self) -> list[Shard]:
        """What has its rows: in order, without overlap; of what two have, the longer counts."""
        stops = dict[int, int]()
        for name in self._store.names(self.folder / _PARTS):
            match = _PART_NAME.fullmatch(name)
            if match and match[3] == self.made.digest[:_DIGEST_DIGITS]:
                start, stop = int(match[1]), int(match[2])
                stops[start] = max(stop, stops.get(start, 0))
        parts, at = [], 0
        for start, stop in sorted(stops.items()):
            if at <= start < stop <= self.made.files:
                parts.append(Shard(start, stop))
                at = stop
        return parts

    def missing(self) -> Iterator[Shard]:
        """What has no rows yet; where some of a shard's have, the rest of it."""
        at, size = 0, self.made.shard_size
        for part in [*self.parts(), Shard(self.made.files, self.made.files)]:
            while at < part.start:
                stop = min(part.start, (at // size + 1) * size)
                yield Shard(at, stop)
                at = stop
            at = part.stop

    def count(self) -> int:
        """How many files have their rows."""
        return 0 if self.plan is None else sum(part.size for part in self.parts())

    def write(
        self, start: int, rows: Sequence[tuple[Prediction, Embeddings | None]], work: Work
    ) -> None:
        """Add a part.

        Args:
            start: The first row's ordinal; those of the others follow.
            rows: The rows, each with its embedding, (E,).
            work: What they took.

        Raises:
            InputError: The system fails to write it: the disk may be full.
        """
        self.add(Shard(start, start + len(rows)), part_body(start, rows, work))

    def add(self, part: Shard, body: bytes) -> None:
        """Add a part that was made elsewhere.

        Args:
            part: Its files.
            body: See :func:`part_body`.

        Raises:
            InputError: See :meth:`write`.
        """
        path = self._part(part)
        with self._saying(path):
            self._store.put(path, body + self._seal(body))

    def read(self, part: Shard) -> tuple[list[Row], Work] | None:
        """The rows of a part; None where it is not as a run wrote it."""
        labels = {*self.made.fingerprint.labels}
        try:
            data = read_file(self._part(part))
            body = data[:-_SEAL_BYTES]
            if data[-_SEAL_BYTES:] != self._seal(body):
                return None
            *lines, work, _ = body.split(b"\n")
            rows = [_decode_row(line) for line in lines]
            found = msgspec.json.decode(work, type=Work)
        except (OSError, ValueError, RecursionError):
            return None
        fits = all(_is_possible(row.row, labels) for row in rows)
        return (rows, found) if fits and [row.ordinal for row in rows] == [*range(*part)] else None

    def rows(self) -> Iterator[Row]:
        """Read all rows back, in order.

        Raises:
            InputError: Not each file has its row.
        """
        for part, _ in self.whole_parts():
            yield from part

    def whole_parts(self) -> Iterator[tuple[list[Row], Work]]:
        """Read all parts back, in order.

        Raises:
            InputError: Not each file has its row.
        """
        at = 0
        for part in [*self.parts(), Shard(self.made.files, self.made.files)]:
            if part.start > at:
                break
            if not part.size:
                return
            read = self.read(part)
            if read is None:
                break
            yield read
            at = part.stop
        raise InputError(
            f"{self.folder} has no row of file {at} of {self.made.files}: it is not finished, or "
            "was damaged.",
            hint="Run the shards again: those that are there cost nothing."
            if self.made.shared
            else "The same command with --resume predicts what is missing.",
        )

    def drop_damaged(self, shards: Iterable[Shard]) -> int:
        """Remove the parts that are not as a run wrote them; their files are predicted again.

        Args:
            shards: Of these parts.

        Returns:
            How many files those are.

        Raises:
            InputError: The system refuses to remove one.
        """
        damaged = [part for part in shards if self.read(part) is None]
        for part in damaged:
            with self._saying(self._part(part)):
                self._part(part).unlink(missing_ok=True)
        return sum(part.size for part in damaged)

    def remove(self) -> None:
        """Remove the folder, the plan first: what a kill leaves then is no run.

        Raises:
            InputError: The system refuses to.
        """
        try:
            (self.folder / _PLAN).unlink(missing_ok=True)
            folders = {self.folder: _OWN_NAME, self.folder / _PARTS: _PART_NAME}
            self._store.remove(
                [
                    folder / name
                    for folder, own in folders.items()
                    for name in self._store.names(folder)
                    if own.fullmatch(name)
                ]
            )
        except OSError as exc:
            raise InputError(
                f"{self.folder} cannot be removed: {exc.strerror or exc}.",
                hint="Delete it, or the next run will take this one for interrupted.",
            ) from exc
        self.plan = None

    # Files ----------------------------------------------------------------------------------------

    def _list(self, plan: Plan) -> Path:
        return self.folder / f"list-{plan.list_sha256[:_DIGEST_DIGITS]}.jsonl"

    def _part(self, part: Shard) -> Path:
        name = f"{part.start:010}-{part.stop:010}-{self.made.digest[:_DIGEST_DIGITS]}.jsonl"
        return self.folder / _PARTS / name

    def _seal(self, body: bytes) -> bytes:
        """The last line of a part, which another plan's does not fit."""
        key = bytes.fromhex(self.made.digest)
        checksum = hashlib.blake2b(body, key=key, digest_size=_CHECKSUM_BYTES).hexdigest()
        return _SEAL % checksum.encode()

    def _read_plan(self) -> Plan | None:
        path = self.folder / _PLAN
        try:
            data = read_file(path).strip(b"\0\n")
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise UsageError(
                f"{self.folder} cannot be used: {exc.strerror or exc}.",
                hint="Check the folder's permissions, or write somewhere else.",
            ) from exc
        if not data:  # a power cut came before the disk had it
            return None
        try:
            return decode_json(data, Plan)
        except ValueError as exc:
            raise InputError(
                f"{path} is no plan that this version of deploykit reads: {exc}.",
                hint="Continue with the version that began the run; or delete the folder, to start "
                "again.",
            ) from exc

    @contextmanager
    def _reading_list(self) -> Iterator[BufferedReader]:
        path = self._list(self.made)
        try:
            with self._store.reading(path) as lines:
                yield lines
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else exc
            raise InputError(
                f"{path} is not as the run wrote it: {reason}.",
                hint=f"Delete {self.folder}, to start again.",
            ) from exc

    @contextmanager
    def _saying(self, path: Path) -> Iterator[None]:
        """Say what keeps a file from being written."""
        try:
            yield
        except OSError as exc:
            raise InputError(
                f"Writing {path} failed: {exc.strerror or exc}. {self.folder} holds the "
                f"{self.count()} rows so far.",
                hint="Check its permissions, and the free space on its disk.",
            ) from exc


def run_folder(output: Path) -> Path:
    """The folder of the run whose first output this is."""
    return output.with_name(f"{output.name}.run")


def part_body(
    start: int, rows: Sequence[tuple[Prediction, Embeddings | None]], work: Work
) -> bytes:
    """What a part says: its rows, one a line, and what they took.

    Args:
        start: The first row's ordinal; those of the others follow.
        rows: The rows, each with its embedding, (E,).
        work: What they took.
    """
    lines = [
        _encode_row(ordinal, row, None if embedding is None else embedding.astype("<f4"))
        for ordinal, (row, embedding) in enumerate(rows, start=start)
    ]
    return b"".join(line + b"\n" for line in (*lines, _encode(work)))


def _ordinal_from(lines: BufferedReader, place: int) -> int:
    """The ordinal of the first line that begins at a place or behind; it is read next."""
    lines.seek(max(place - 1, 0))
    if place:
        lines.readline()
    start = lines.tell()
    line = lines.readline()
    lines.seek(start)
    return _decode_listed(line).ordinal if line else sys.maxsize


def _is_possible(row: Prediction, labels: set[str]) -> bool:
    """Whether the tables and the page can show a row: a checksum does not tell who made it."""
    answers = row.ok, bool(row.top), row.margin is not None
    ranked = (each.label for each in row.top)
    named = itertools.chain(row.decided, row.truth or (), ranked)
    return len({*answers}) == 1 and all(name in labels for name in named)


def _encode_row(ordinal: int, row: Prediction, embedding: Embeddings | None) -> bytes:
    """A row as JSON. What is no Unicode must not end a long run: it is escaped."""
    values = None if embedding is None else embedding.tobytes()
    try:
        return _encode(Row(ordinal=ordinal, row=row, embedding=values))
    except UnicodeEncodeError:
        escaped = msgspec.convert(_escaped(msgspec.to_builtins(row)), Prediction)
        return _encode(Row(ordinal=ordinal, row=escaped, embedding=values))


def _escaped(value: Any) -> Any:
    r"""Plain values with the strings' stray bytes written ``\udcXX``."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _escaped(each) for key, each in value.items()}
    return [_escaped(each) for each in value] if isinstance(value, list | tuple) else value
