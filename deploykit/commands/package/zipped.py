"""``--format zip``: the bundle in one file, which ``load``, ``predict`` and others open."""

from __future__ import annotations

from pathlib import Path

from deploykit.bundle.folder import Bundle, check_bundle_name
from deploykit.bundle.manifest import PACKED_ENDING
from deploykit.bundle.packed import pack
from deploykit.commands.package.request import PackageRequest, Written
from deploykit.errors import UsageError
from deploykit.inference.engines import engines_not_copied
from deploykit.system.progress import Progress, Step
from deploykit.system.text import command_line, counted


def write(bundle: Bundle, made: Path, request: PackageRequest, progress: Progress) -> Written:
    """Pack the files that the manifest names, each checked; no cache and no reports.

    Raises:
        UsageError: The file has another ending, by which nothing would know it.
        BundleError: A file is missing or changed.
    """
    if made.suffix.lower() != PACKED_ENDING:
        raise UsageError(
            f"{request.output} does not end in {PACKED_ENDING}.",
            hint=f"Name the file {request.output.name}{PACKED_ENDING}",
        )
    name = check_bundle_name(bundle.name)
    files = packed_files(bundle, progress)
    progress(Step("packing", detail=made.name))
    pack(bundle.folder, name, files, made)
    notes = []
    if absent := sorted(engines_not_copied(bundle)):
        engines = counted(len(absent), "file")
        notes.append(f"without {engines} of engines, which this bundle was copied without")
    return Written(
        content=f"bundle {name} with {counted(len(files) + 1, 'file')}",
        notes=tuple(notes),
        command=command_line(["deploykit", "predict", "DIR", "--bundle", str(request.output)]),
    )


def packed_files(bundle: Bundle, progress: Progress) -> list[str]:
    """The files of a bundle that travel, each checked: what its manifest names and is there.

    Raises:
        BundleError: One is missing or changed. Engines may be missing.
    """
    files = sorted(bundle.manifest.files.keys() - engines_not_copied(bundle))
    for done, file in enumerate(files):
        progress(Step("checking", done, len(files), detail=file))
        bundle.checked(file)
    return files
