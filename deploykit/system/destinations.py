"""Where results are written: refused before the work what could not be written after it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploykit.errors import UsageError

STDOUT = Path("-")
"""The output that is no file: rows on stdout, as they come."""

PAGE_ENDINGS = (".html", ".htm")


def check_destination(path: Path, what: str, endings: Sequence[str]) -> None:
    """Refuse a file that could not be written.

    Args:
        path: The file; one that is there will be replaced.
        what: What it is to be: ``output``, ``page``.
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
            hint=f"Name a file in it: {path / f'{what}{endings[0]}'}",
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
            f"The {what}'s folder {path.parent} cannot be written to: {exc.strerror or exc}.",
            hint="Check its permissions, or write somewhere else.",
        ) from exc


def check_page_path(path: Path) -> None:
    """Refuse a page that could not be written.

    Raises:
        UsageError: See :func:`check_destination`.
    """
    check_destination(path, "page", PAGE_ENDINGS)


def check_all_different(paths: Mapping[str, Sequence[Path]]) -> None:
    """Refuse to write one file twice, or what is read.

    Args:
        paths: By what they are: ``{"output": [...], "page": [...], "source": [...]}``.

    Raises:
        UsageError: Two are the same file.
    """
    named: dict[str, str] = {}
    for what, those in paths.items():
        for path in those:
            place = os.path.normcase(path.resolve())
            if place in named:
                raise UsageError(
                    f"The {named[place]} and the {what} {path} are the same file.",
                    hint="Give each a name of its own.",
                )
            named[place] = f"{what} {path}"
