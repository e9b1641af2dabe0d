"""The plan of a run: what its rows follow from, and the files that are to have one each."""

from __future__ import annotations

import functools
import hashlib
import math
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeAlias

import msgspec

from deploykit.commands.predict.provenance import Fingerprint
from deploykit.images.scan import escape_name, unescape_name
from deploykit.specs.session import SessionSpec
from deploykit.specs.value import Value
from deploykit.system.cloud import CloudPath, as_path

#: What a kill may cost, where a run is not so large that there would be too many parts.
_SHARD_FILES = 32
_MOST_SHARDS = 2**17
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class Shard(NamedTuple):
    """Consecutive files of a plan, by their ordinals: from ``start`` up to ``stop``, without it."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many files there are."""
        return self.stop - self.start


class ListedFile(Value, frozen=True, omit_defaults=True):
    """A line of a plan's list.

    Attributes:
        ordinal: Its place in the list, from 0.
        path: See :class:`deploykit.images.scan.ImageFile`, as the last two.
        size: In bytes; None of a file that was not there, as ``changed``.
        changed: When it was changed, in nanoseconds of the epoch; of an object its ETag. Of an
            image in an archive it is the archive's.
        inside: See :class:`deploykit.images.sources.SourceFile`, as the next.
        at: Where the image is in its archive.
        expected: The class that is right; None where it is not known.
        expected_labels: The same where an image may be of several.
    """

    ordinal: _Count
    path: Annotated[str, msgspec.Meta(pattern=r"\A[^\0]+\Z")]
    size: int | None = None
    changed: int | str | None = None
    inside: _Count = 0
    at: int = 0
    expected: str | None = None
    expected_labels: tuple[str, ...] | None = None


class Plan(Value, frozen=True, omit_defaults=True, dict=True):
    """What a run is to do. It is made once, and nothing in it changes.

    Paths are as :func:`kept_path` writes them, those of outputs relative to where the run's folder
    is.

    Attributes:
        run: What the file is, for whoever finds it.
        schema: The version of this layout.
        fingerprint: What the rows follow from.
        files: How many there are.
        list_sha256: Of the list, which has a line a file, in lowercase hex.
        skipped: How many other files the source has.
        shard_size: Files a shard.
        shared: Whether several schedulers work on it; then ``collect`` makes the tables.
        session: What computes the rows.
        bundle: Its folder.
        root: The folder that the files' paths are relative to.
        outputs: The tables.
        page: The page; None for none.
        embeddings: Where the embeddings go; None for nowhere.
    """

    run: Literal["deploykit predict"]
    schema: Literal[1]
    fingerprint: Fingerprint
    files: _Count
    list_sha256: str
    skipped: _Count
    shard_size: Annotated[int, msgspec.Meta(ge=1)]
    shared: bool
    session: SessionSpec
    bundle: str
    root: str
    outputs: tuple[str, ...]
    page: str | None = None
    embeddings: str | None = None

    @functools.cached_property
    def digest(self) -> str:
        """What tells its parts from those of other plans, in lowercase hex."""
        decisive = self.fingerprint, self.files, self.list_sha256, self.shard_size
        return hashlib.sha256(msgspec.json.encode(decisive)).hexdigest()

    def shard_number(self, shard: Shard) -> int:
        """Of the shard that these files are in, from 0."""
        return shard.start // self.shard_size


def shard_size_of(files: int, workers: int, usual: int | None = None) -> int:
    """How many files a shard has: few, because a kill costs one; but not too many shards.

    Args:
        files: How many there are.
        workers: How many should have something to do.
        usual: What is right for one of them; None for that of a process on a few cores.
    """
    size = max(usual or _SHARD_FILES, math.ceil(files / _MOST_SHARDS))
    return max(1, min(size, -(-files // workers)))


def kept_path(path: Path) -> str:
    """A path as a text that leads to the same file, whatever bytes are in it."""
    text = str(path) if isinstance(path, CloudPath) else path.as_posix()
    return "/".join(map(escape_name, text.split("/")))


def path_of(kept: str) -> Path:
    """What :func:`kept_path` wrote."""
    return as_path(unescape_name(kept))
