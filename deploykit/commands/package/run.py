"""A bundle becomes what something else takes: checked, written aside, and renamed into place."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from deploykit import __version__
from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import MANIFEST_NAME, sha256_of
from deploykit.bundle.packed import is_packed
from deploykit.commands.package import container, triton, web, zipped
from deploykit.commands.package.request import PackageFormat, PackageRequest, Written
from deploykit.errors import InputError, UsageError
from deploykit.specs.value import Shown, Value, decode_json
from deploykit.system.files import home_of, read_file
from deploykit.system.progress import Progress, silent

_Writer: TypeAlias = Callable[[Bundle, Path, PackageRequest, Progress], Written]

#: By their names, what writes them: each is given the bundle, the place, which is an empty folder
#: (for ``zip`` a file that is not there yet), and the request.
FORMATS: dict[PackageFormat, _Writer] = {
    "triton": triton.write,
    "zip": zipped.write,
    "container": container.write,
    "web": web.write,
}
#: Tells in a folder that this command has written it, so that it may be replaced.
RECORD_NAME = "deploykit.json"
_MAX_RECORD_BYTES = 2**20
_PHOTOS = (
    "whoever gets it gets the golden images, which are some of your photos; of an export with "
    "--golden generated they are none"
)


class PackageRecord(Value, frozen=True):
    """What a folder is, for whoever finds it.

    Attributes:
        written_by: The program.
        version: Its version.
        schema: The version of this layout.
        format: What the folder is for.
        bundle: The bundle's name.
        bundle_sha256: Of its manifest, in lowercase hex.
        files: All files of the folder but this one: nothing else in it may be lost.
    """

    written_by: Literal["deploykit package"]
    version: str
    schema: Literal[1]
    format: PackageFormat
    bundle: str
    bundle_sha256: str
    files: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class PackageResult(Shown):
    """What was written.

    Attributes:
        bundle: The bundle.
        format: What it became.
        output: Where it is: absolute.
        files: The size in bytes of each file, by its path in ``output``.
        written: What the format tells of it.
    """

    bundle: Bundle
    format: PackageFormat
    output: Path
    files: dict[str, int]
    written: Written


def package_bundle(
    bundle: Bundle, request: PackageRequest, progress: Progress = silent
) -> PackageResult:
    """Write a package; it appears whole or not at all.

    Raises:
        UsageError: Something else has the name, or it is inside the bundle.
        InputError: The bundle cannot be packaged so, or the system fails to write.
        ParityError: What would be served has been shown to decide otherwise.
        MissingError: A Python package is not here.
    """
    output = Path(os.path.abspath(request.output))  # noqa: PTH100  # ".." has no name
    _check_outside(output, bundle, request)
    _check_free(output, request)
    try:
        with home_of(output) as beside:
            made = beside / output.name
            if request.format != "zip":
                made.mkdir()
            written = FORMATS[request.format](bundle, made, request, progress)
            if bundle.manifest.golden == "photos":
                written = replace(written, notes=(*written.notes, _PHOTOS))
            if request.format != "zip":
                _record(bundle, made, request)
            files = _sizes(made)
            _check_free(output, request)
            _publish(made, output, beside / ".replaced")
    except OSError as exc:
        raise InputError(
            f"Writing {request.output} failed: {exc.strerror or exc}.",
            hint="Check the folder's permissions and the free space on its disk.",
        ) from exc
    return PackageResult(bundle, request.format, output, files, written)


def _check_outside(output: Path, bundle: Bundle, request: PackageRequest) -> None:
    """Refuse to write into the bundle: an export that replaces it would take the package along.

    Raises:
        UsageError: It is in the bundle.
    """
    if output.parent.resolve().is_relative_to(bundle.folder.resolve()):
        raise UsageError(
            f"{request.output} is inside the bundle, whose files are the export's alone.",
            hint="Name a place outside of it.",
        )


def _check_free(output: Path, request: PackageRequest) -> None:
    """Refuse to replace what this command did not write, or what it was not told to replace.

    Raises:
        UsageError: Something is there.
    """
    if output.is_symlink():
        raise UsageError(
            f"{request.output} is a link, and what it leads to would be replaced.",
            hint="Remove the link, or name another place.",
        )
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not _is_ours(output):
        raise UsageError(
            f"{request.output} is there, and this command did not write it, or not all of it.",
            hint="Name another place, or move that one away.",
        )
    if not request.overwrite:
        raise UsageError(
            f"{request.output} is there.",
            hint="Replace it with --overwrite, or name another place.",
        )


def _is_ours(output: Path) -> bool:
    if output.is_file():
        return is_packed(output)
    try:
        data = read_file(output / RECORD_NAME, limit=_MAX_RECORD_BYTES)
        record = decode_json(data, PackageRecord)
    except (OSError, ValueError):
        return False
    return {*_sizes(output)} <= {RECORD_NAME, *record.files}


def _record(bundle: Bundle, made: Path, request: PackageRequest) -> None:
    record = PackageRecord(
        written_by="deploykit package",
        version=__version__,
        schema=1,
        format=request.format,
        bundle=bundle.name,
        bundle_sha256=sha256_of(bundle.folder / MANIFEST_NAME),
        files=tuple(_sizes(made)),
    )
    text = msgspec.json.format(msgspec.json.encode(record), indent=2)
    (made / RECORD_NAME).write_bytes(text + b"\n")


def _sizes(made: Path) -> dict[str, int]:
    if made.is_file():
        return {made.name: made.stat().st_size}
    files = sorted(path for path in made.rglob("*") if path.is_file())
    return {path.relative_to(made).as_posix(): path.stat().st_size for path in files}


def _publish(made: Path, output: Path, aside: Path) -> None:
    """Rename a whole package into its place; what was there goes once the new one is there."""
    try:
        if output.is_dir():
            output.replace(aside)
        made.replace(output)
    except OSError as exc:
        if aside.exists():
            aside.replace(output)
        raise InputError(
            f"{output} could not be put in place ({exc.strerror}).",
            hint="Close what uses it, and run the command again.",
        ) from exc
