"""A bundle in one ``.zip`` file: written so that its bytes follow from the bundle, read strictly.

Whoever sends such a file may have made it by hand: nothing of it is written before its directory
was checked, and nothing stays of one that is not whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import struct
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path

from deploykit.bundle.manifest import (
    MANIFEST_NAME,
    UNPACKED_MARK,
    Manifest,
    read_manifest,
)
from deploykit.errors import BundleError
from deploykit.system.files import held, home_of, open_file
from deploykit.system.text import has_control_character

#: A bundle has some tens of files.
_MAX_FILES = 4096
_MAX_DIRECTORY_BYTES = 2**21
_MAX_MANIFEST_BYTES = 64 * 2**20
_LOCK_SECONDS = 600.0
_PIECE = 2**20
#: The same for every file, so that the archive's bytes follow from those of its files alone.
_DATE, _MODE, _UNIX = (1980, 1, 1, 0, 0, 0), 0o100644, 3
_UTF_8 = 0x800
#: APPNOTE.TXT 6.3.10, sections 4.3.14 to 4.3.16: the end of an archive without a comment.
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
#: What ``zipfile`` raises on bytes that are no archive, or one of another time, beside OSError.
ZIP_ERRORS = (
    *(EOFError, ValueError, OverflowError, RuntimeError, MemoryError),
    *(KeyError, struct.error, zipfile.BadZipFile),
)
_AGAIN = "Get it again from whoever made it: deploykit package --format zip"


class _RefusedError(Exception):
    """What is wrong with an archive, as the end of a sentence."""


def pack(folder: Path, name: str, files: Iterable[str], target: Path) -> None:
    """Write a bundle's files into an archive.

    They are stored, not compressed: weights hardly shrink, and whatever compresses them gives other
    bytes in another version. So equal files give an equal archive, on every system.

    Args:
        folder: The bundle.
        name: The name of the folder in the archive.
        files: Those to pack, relative to the bundle, with ``/``; the manifest is added.
        target: The file to write; it must not be there.

    Raises:
        OSError: A file cannot be read, or the archive not be written.
    """
    with zipfile.ZipFile(target, "x", zipfile.ZIP_STORED) as archive:
        for file in (MANIFEST_NAME, *sorted(files)):
            member = archived(f"{name}/{file}")
            with open_file(folder / file) as source:
                member.file_size = os.fstat(source.fileno()).st_size
                with archive.open(member, "w") as sink:
                    shutil.copyfileobj(source, sink, _PIECE)


def archived(name: str) -> zipfile.ZipInfo:
    """The entry of a plain file in an archive whose bytes follow from those of its files."""
    member = zipfile.ZipInfo(name, _DATE)
    member.create_system, member.external_attr = _UNIX, _MODE << 16
    return member


def is_packed(path: Path) -> bool:
    """Whether a file is a bundle in one file, as far as its directory tells."""
    try:
        with open_file(path) as file:
            _checked_members(path, file)
    except (OSError, BundleError):
        return False
    return True


def unpacked(path: Path) -> Path:
    """The folder of a bundle that is in one file, in a folder that only this user may write to.

    The folder follows from the archive's SHA-256, so several processes share it.

    Args:
        path: The archive.

    Raises:
        BundleError: It cannot be read, is no bundle, is not whole, or holds what no bundle does.
    """
    try:
        with open_file(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            name, members = _checked_members(path, file)
            home = bundles_cache() / f"zip-{digest[:32]}"
            folder = home / name
            with held(home.with_name(f"{home.name}.lock"), seconds=_LOCK_SECONDS):
                if not _is_whole(folder, members):
                    _unpack(path, file, members, folder)
            return folder
    except OSError as exc:
        place = exc.filename or path
        raise BundleError(
            f"{path} cannot be unpacked: {place}: {exc.strerror or exc}.",
            hint="Check its permissions, and the space in the folder for temporary files.",
        ) from exc


def packed_manifest(path: Path) -> bytes:
    """What the manifest in a packed bundle holds; nothing is unpacked, nor checked by its hash.

    Raises:
        BundleError: It is no packed bundle.
        OSError: It cannot be read.
    """
    with open_file(path) as file:
        _, members = _checked_members(path, file)
        try:
            with zipfile.ZipFile(file) as archive:
                return archive.read(members[MANIFEST_NAME])
        except ZIP_ERRORS as exc:
            raise BundleError(f"{path} is damaged: {_reason(exc)}.", hint=_AGAIN) from exc


def _checked_members(path: Path, file: BufferedReader) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The name of a packed bundle and, by their paths in it, its files.

    Raises:
        BundleError: It is no packed bundle, or was made to do harm.
    """
    try:
        _check_end(file)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        size = os.fstat(file.fileno()).st_size
        _check_members(members, size)
        return _relative(members)
    except (_RefusedError, *ZIP_ERRORS) as exc:
        raise BundleError(f"{path} is no packed bundle: {_reason(exc)}.", hint=_AGAIN) from exc


def _reason(exc: Exception) -> str:
    return (str(exc) or type(exc).__name__).rstrip(".")


def _check_end(file: BufferedReader) -> None:
    """Check how much of a directory there is, before Python's ``zipfile`` reads all of it.

    Raises:
        _RefusedError: It is too much, or no archive of ours ends so.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - _LOCATOR_64.size - _END_64.size))
    tail = file.read()
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\x05\x06"):
        raise _RefusedError("it does not end as a ZIP archive without a comment")
    _, _, _, _, count, directory, _, _ = _END.unpack(tail[-_END.size :])
    at = len(tail) - _END.size - _LOCATOR_64.size
    if at >= _END_64.size and tail[at:].startswith(b"PK\x06\x07"):
        fields = _END_64.unpack(tail[at - _END_64.size : at])
        count, directory = fields[7], fields[8]
    if count > _MAX_FILES or directory > _MAX_DIRECTORY_BYTES:
        raise _RefusedError(
            f"its directory has {count} entries in {directory} bytes; at most {_MAX_FILES} in "
            f"{_MAX_DIRECTORY_BYTES} are taken"
        )


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    """Check each entry by itself, and that together they are no larger than the archive.

    Raises:
        _RefusedError: One is no plain file as :func:`pack` stores it.
    """
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.orig_filename != member.filename or has_control_character(member.filename):
            raise _RefusedError(f"the name {member.orig_filename!r} has a character that none has")
        if kind not in (0, stat.S_IFREG) or member.is_dir():
            raise _RefusedError(f"{member.filename!r} is a folder, a link or a device, no file")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & ~_UTF_8:
            raise _RefusedError(f"{member.filename!r} is compressed or encrypted")
        if member.compress_size != member.file_size:
            raise _RefusedError(f"{member.filename!r} has two sizes")
    total = sum(member.file_size for member in members)
    if total > size:
        raise _RefusedError(f"its files claim {total} bytes, and it has {size}")


def _relative(members: list[zipfile.ZipInfo]) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The one folder that all files are in, and the files by their paths in it.

    Raises:
        _RefusedError: A path leads elsewhere, or two are the same on some system.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    seen: dict[str, str] = {}
    tops = {member.filename.partition("/")[0] for member in members}
    for member in members:
        parts = member.filename.split("/")
        if any(bad in member.filename for bad in '\\:*?"<>|') or any(
            part.startswith(".") or part.endswith((".", " ")) or not part for part in parts
        ):
            raise _RefusedError(f"the name {member.filename!r} is none of a bundle's files")
        same = unicodedata.normalize("NFC", member.filename).casefold()
        if same in seen:
            raise _RefusedError(
                f"{member.filename!r} and {seen[same]!r} are the same file on some systems"
            )
        seen[same] = member.filename
        found["/".join(parts[1:])] = member
    if len(tops) != 1 or MANIFEST_NAME not in found:
        raise _RefusedError(f"its files are not those of one folder with a {MANIFEST_NAME}")
    inside = {parent for name in found for parent in name.split("/")[:-1]} & {"cache", "reports"}
    if inside:
        raise _RefusedError(f"it has a folder {min(inside)}, which is not packed")
    if found[MANIFEST_NAME].file_size > _MAX_MANIFEST_BYTES:
        raise _RefusedError(f"its {MANIFEST_NAME} has {found[MANIFEST_NAME].file_size} bytes")
    return tops.pop(), found


def _is_whole(folder: Path, members: dict[str, zipfile.ZipInfo]) -> bool:
    """Whether a bundle was unpacked, and nobody has removed a part of it: temporary files age."""
    if not (folder.parent / UNPACKED_MARK).is_file():
        return False
    with contextlib.suppress(OSError):
        return all((folder / name).stat().st_size == m.file_size for name, m in members.items())
    return False


def _unpack(
    path: Path, file: BufferedReader, members: dict[str, zipfile.ZipInfo], folder: Path
) -> None:
    """Unpack an archive aside, check each file's hash, and rename the whole into its place.

    Raises:
        BundleError: It is not what its manifest says.
        OSError: The system fails to write.
    """
    with home_of(folder.parent) as beside, zipfile.ZipFile(file) as archive:
        made = beside / folder.parent.name / folder.name
        made.mkdir(parents=True)
        try:
            _extract(archive, members[MANIFEST_NAME], made / MANIFEST_NAME)
            manifest = read_manifest(made)
            _check_files(manifest, members)
            for name in members.keys() - {MANIFEST_NAME}:
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                digest = _extract(archive, members[name], made / name)
                _check_digest(manifest, name, digest)
        except (_RefusedError, *ZIP_ERRORS) as exc:
            raise BundleError(f"{path} is damaged: {_reason(exc)}.", hint=_AGAIN) from exc
        except BundleError as exc:
            reason = exc.message.replace(str(made), str(path))
            raise BundleError(reason, hint=_AGAIN) from exc
        (made.parent / UNPACKED_MARK).touch()
        if folder.parent.exists():
            folder.parent.replace(beside / "damaged")
        made.parent.replace(folder.parent)


def _check_files(manifest: Manifest, members: dict[str, zipfile.ZipInfo]) -> None:
    """Check that an archive has the files of its manifest, of their sizes, and no other.

    Engines, and the passports beside them, may be missing: a copy of a bundle may be made without.

    Raises:
        _RefusedError: It has not.
    """
    for name, member in members.items():
        if name == MANIFEST_NAME:
            continue
        record = manifest.files.get(name)
        if record is None:
            raise _RefusedError(f"its manifest names no {name}")
        if record.bytes != member.file_size:
            raise _RefusedError(
                f"{name} has {member.file_size} bytes, and its manifest says {record.bytes}"
            )
    engines = manifest.engines
    missing = [
        name for name in manifest.files if name not in members and not name.startswith(engines)
    ]
    if missing:
        raise _RefusedError(f"it has no {missing[0]}")


def _check_digest(manifest: Manifest, name: str, digest: str) -> None:
    if digest != manifest.files[name].sha256:
        raise _RefusedError(f"the SHA-256 of {name} is not that of its manifest")


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> str:
    """Write one file; returns its SHA-256 in lowercase hex."""
    digest = hashlib.sha256()
    with archive.open(member) as source, target.open("xb") as sink:
        while piece := source.read(_PIECE):
            digest.update(piece)
            sink.write(piece)
    return digest.hexdigest()


# Where ------------------------------------------------------------------------------------------


def bundles_cache() -> Path:
    """Where this user's bundles are kept on this host; nobody else may write there.

    Raises:
        BundleError: Somebody else has made it, or may write there.
        OSError: It cannot be made.
    """
    folder = Path(tempfile.gettempdir()) / f"deploykit-bundles-{_user()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    is_ours = found.st_uid == _user() and not (os.name == "posix" and found.st_mode & 0o022)
    if not (stat.S_ISDIR(found.st_mode) and is_ours):
        raise BundleError(
            f"{folder} cannot be used: it is no folder that only this user may write to.",
            hint="Remove it, or put the bundle's folder on a drive that all hosts share.",
        )
    return folder


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0
