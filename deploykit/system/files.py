"""Files that appear whole or not at all, and whether a result can be written where it should be."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path

from deploykit.errors import InputError, UsageError
from deploykit.system.cloud import CloudPath

_STAGING = ".new-"
_RANDOM_BYTES = 4
_LARGEST_BYTES = 2**30
_PART_BYTES = 2**26
_ATTEMPTS = 10


@contextlib.contextmanager
def held(lock: Path, *, seconds: float = 0) -> Iterator[None]:
    """Hold a lock file, which is there only while somebody holds it.

    Args:
        lock: The file.
        seconds: How long to wait while another process, or thread, holds it.

    Raises:
        filelock.Timeout: It is still held.
        OSError: It cannot be made.
    """
    from filelock import FileLock

    with FileLock(lock, timeout=seconds, blocking=seconds > 0):
        ours = None
        with contextlib.suppress(OSError):
            ours = lock.lstat()
        try:
            yield
        finally:
            # Removed while it is held: a moment later it might be another's. Who waits for it takes
            # no file that was removed for the lock. The folder may be another by now, with a lock
            # of its own. Windows does not let us, and removes it with the release.
            with contextlib.suppress(OSError):
                if ours is not None and os.path.samestat(lock.lstat(), ours):
                    lock.unlink()


@contextlib.contextmanager
def home_of(folder: Path) -> Iterator[Path]:
    """Make the folder that a new one will be in, and go without a trace if nothing is in it.

    Args:
        folder: The new one, which the block may make.

    Yields:
        A staging folder, see :func:`staged`.

    Raises:
        InputError: The system makes no folder there.
    """
    home = folder.parent
    missing = [each for each in (home, *home.parents) if not each.exists()]
    try:
        with contextlib.ExitStack() as stack:
            for left in reversed(range(_ATTEMPTS)):
                try:
                    home.mkdir(parents=True, exist_ok=True)
                    beside = stack.enter_context(staged(home))
                    break
                # Who else has made the home has just removed it; `mkdir` says "exists" where it
                # went between its two looks.
                except (FileNotFoundError, FileExistsError) as exc:
                    if not left or home.is_file():
                        raise InputError(
                            f"The folder {home} cannot be made: {refusal(exc)}.",
                            hint="Write somewhere else.",
                        ) from exc
            yield beside
    finally:
        for each in missing:
            with contextlib.suppress(OSError):  # something is in it
                each.rmdir()


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder for files that are to be moved into another one; it goes away with the block.

    What runs that were killed have left in the same folder goes, too.

    Args:
        folder: Where they will go; the staging folder is in it, hidden, on the same file system.

    Yields:
        Where to write.
    """
    from filelock import FileLock, Timeout

    _remove_abandoned(folder)
    path = folder / f"{_STAGING}{secrets.token_hex(_RANDOM_BYTES)}"
    lock = _staging_lock(path)
    try:
        # The lock is there, and held, before the folder is, and as long as its process lives.
        with _naming(folder), contextlib.ExitStack() as stack:
            try:
                stack.enter_context(FileLock(lock, timeout=_LOCK_SECONDS))
            except Timeout as exc:
                raise OSError(errno.ENOLCK, "no file can be locked there", str(folder)) from exc
            path.mkdir(mode=0o700)
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove the staging folders that no running process owns."""
    from filelock import FileLock, Timeout

    locked = {path.with_suffix("") for path in folder.glob(f"{_STAGING}*.lock")}
    for path in locked.union(folder.glob(f"{_STAGING}*/")):
        lock = _staging_lock(path)
        with contextlib.suppress(OSError, Timeout), FileLock(lock, blocking=False):
            shutil.rmtree(path, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _staging_lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


#: Nobody else knows of a staging folder's lock; in /proc filelock would try for ever.
_LOCK_SECONDS = 10.0

#: What a write to a file that is open may fail with, and then names no file; Windows has fewer.
_NO_ROOM = {
    getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO")
} - {None}


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let the error of a full disk name what was being written, not the hidden name it has yet."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _NO_ROOM:
            exc.filename = str(path)
        raise


def open_file(path: Path) -> BufferedReader:
    """Open a file to read.

    Raises:
        OSError: It cannot be read, or is not a regular file: a pipe would be waited for, a device
            never end.
    """
    if not isinstance(path, CloudPath) and path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return path.open("rb")


def read_file(path: Path, *, limit: int = _LARGEST_BYTES) -> bytes:
    """The contents of a file; see :func:`open_file`.

    Raises:
        OSError: Also where it has more than ``limit`` bytes: a file of 1 TB takes no space on a
            disk if nothing is in it.
    """
    if isinstance(path, CloudPath):
        return path.read_bytes()
    with open_file(path) as file:
        parts, left = [], limit + 1 - os.fstat(file.fileno()).st_size
        # Not by its size alone: those that the system makes as they are read have none, and may
        # never end. Part by part, because Python allocates what it is asked to read.
        while left > 0 and (part := file.read(min(limit + 1, _PART_BYTES))):
            parts.append(part)
            left = limit + 1 - sum(map(len, parts))
        if left <= 0:
            raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
        return b"".join(parts)


def move_into_place(source: Path, target: Path) -> None:
    """Give a finished file its name, in place of what has it, as a whole.

    Raises:
        OSError: The system refuses to.
    """
    with source.open("r+b") as file:
        os.fsync(file.fileno())  # or a power cut may leave the name on an empty file
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    if os.name == "nt":  # Windows opens no folders; its file systems keep the order of renames
        return
    # Let the disk have the folder's names: what is deleted next may be what the file was made from.
    # Some folders may be written but not read, and some file systems (FUSE) have no such call.
    with contextlib.suppress(OSError):
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, *, follow_link: bool = True) -> Iterator[Path]:
    """Write a file beside its name; it takes the name when the block ends well.

    Whoever reads ``path`` meanwhile, or after a crash or a power cut, finds the old file or the
    new one, whole.

    Args:
        path: The final name; what has it stays until the new file is whole.
        follow_link: Whether a link stays, and what it leads to is replaced; else the link is. In a
            bundle, which anybody may have made, it is.

    Yields:
        Where to write.

    Raises:
        OSError: The system fails to write it, or to give it its name.
    """
    if isinstance(path, CloudPath):
        with tempfile.TemporaryDirectory() as folder:
            yield (whole := Path(folder) / path.name)
            path.upload(whole)
        return
    path = _followed(path) if follow_link else path
    partial = path.with_name(f"{_partial_prefix(path)}{secrets.token_hex(_RANDOM_BYTES)}")
    try:
        with _naming(path):
            yield partial
            move_into_place(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def remove_partials(path: Path, *, follow_link: bool = True) -> None:
    """Remove what writers of a file that were killed have left; nobody else may be writing it.

    Args:
        path: The file.
        follow_link: As they gave it to :func:`replacing`.
    """
    if isinstance(path, CloudPath):  # an object appears whole
        return
    path = _followed(path) if follow_link else path
    ending = "[0-9a-f]" * 2 * _RANDOM_BYTES
    for partial in path.parent.glob(f"{glob.escape(_partial_prefix(path))}{ending}"):
        with contextlib.suppress(OSError):
            partial.unlink()


def _followed(path: Path) -> Path:
    return path.resolve() if path.is_symlink() else path


def _partial_prefix(path: Path) -> str:
    return f".{path.name}."


STDOUT = Path("-")
"""The output that is no file: rows on stdout, as they come."""

PAGE_ENDINGS = (".html", ".htm")


def check_destination(path: Path, what: str, endings: Sequence[str]) -> None:
    """Check that a file can be written.

    Args:
        path: The file; one that is there will be replaced.
        what: What it is to be: ``output``, ``page``, ``embeddings file``.
        endings: Those that it may have, in lower case.

    Raises:
        UsageError: It, or what it is a link to, has another ending; it is a folder or a device;
            or it is in a folder that does not exist or cannot be written to.
    """
    if path.suffix.lower() not in endings:
        raise UsageError(
            f"The {what} {path} does not say its format.",
            hint=f"Give it one of these endings: {', '.join(endings)}",
        )
    if isinstance(path, CloudPath):
        return
    target = path.resolve()
    if target.suffix.lower() not in endings:
        raise UsageError(
            f"The {what} {path} is a link to {target}, which would be replaced.",
            hint="Remove the link, or name another file.",
        )
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(
            f"The {what} {path} is a device or a pipe.", hint="Name a file of its own."
        )
    if path.is_dir():
        raise UsageError(
            f"The {what} {path} is a folder.",
            hint=f"Name a file in it: {path / f'{what.split()[0]}{endings[0]}'}",
        )
    if not path.parent.is_dir():
        raise UsageError(
            f"The {what}'s folder {path.parent} does not exist.",
            hint="Create it, or write somewhere else.",
        )
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as exc:
        raise UsageError(
            f"The {what}'s folder {path.parent} cannot be written to: {refusal(exc)}.",
            hint="Check its permissions, or write somewhere else.",
        ) from exc


def refusal(exc: OSError) -> str:
    """Why the system makes no file in a folder that is there, in words."""
    if isinstance(exc, FileNotFoundError):  # as of /proc, where "no such file" misleads
        return "the system makes no files there"
    return exc.strerror or str(exc)


def check_page_path(path: Path) -> None:
    """Check that a page can be written.

    Raises:
        UsageError: See :func:`check_destination`.
    """
    check_destination(path, "page", PAGE_ENDINGS)


#: What tells whose a report is stands in so many bytes at its beginning.
_BEGINNING_BYTES = 1024


def check_ours(path: Path, what: str, mark: str) -> None:
    """Check that no file would be lost: what has the name is an earlier report, or empty.

    Args:
        path: The report that will be written.
        what: What it is to be: ``page``.
        mark: What stands near the beginning of every such report.

    Raises:
        UsageError: Another file has the name, or one that cannot be read.
    """
    if path.exists() and not _is_ours(path, mark) and path.stat().st_size:
        raise UsageError(
            f"The {what} {path} would replace a file that this command did not write.",
            hint="Name another file, or move that one away.",
        )


def remove_ours(path: Path, mark: str) -> None:
    """Remove the report of an earlier run: nobody shall take it for that of a run that fails.

    Args:
        path: The report. A link stays, and what it leads to is removed.
        mark: As :func:`check_ours` takes it; what does not have it stays.

    Raises:
        OSError: The system refuses to.
    """
    if _is_ours(path, mark):
        path.resolve().unlink(missing_ok=True)


def _is_ours(path: Path, mark: str) -> bool:
    """Whether a file is there, can be read, and has the mark."""
    try:
        with open_file(path) as file:
            return mark.encode() in file.read(_BEGINNING_BYTES)
    except OSError:
        return False


def check_all_different(paths: Mapping[str, Sequence[Path]]) -> None:
    """Check that no file is written twice, and none that is read.

    Args:
        paths: By what they are: ``{"output": [...], "page": [...], "source": [...]}``.

    Raises:
        UsageError: Two are the same file.
    """
    named: dict[str, str] = {}
    for what, those in paths.items():
        for path in those:
            place = os.path.normcase(str(path.resolve()))
            if place in named:
                raise UsageError(
                    f"The {named[place]} and the {what} {path} are the same file.",
                    hint="Give each a name of its own.",
                )
            named[place] = f"{what} {path}"
