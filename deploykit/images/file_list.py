"""File lists: a text file that names the images, one a line."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path, PurePath

from deploykit.errors import ImagesError
from deploykit.images.file_names import escape_name

LIST_EXTENSION = ".txt"


def read_file_list(path: Path) -> list[str]:
    """Read the names of the images that a text file lists.

    One path a line, relative to the list's folder or absolute. Blanks around a path, the double
    quotes that Windows copies with one, empty lines, and a path that was named before are left
    out. The text is UTF-8, or the UTF-16 that Windows
    PowerShell writes.

    Returns:
        The names in the order of the list, with ``/`` and escaped as :func:`escape_name` does.
        Whether a file is there, opening it says.

    Raises:
        ImagesError: The list cannot be read, is no such text, or names no file.
    """
    text = _read_text(path)
    if "\0" in text:  # no path has one; UTF-16 without its mark has many
        raise ImagesError(
            f"The file list {path} is not text in UTF-8: it holds zero bytes.",
            hint="Save it as UTF-8, with one path a line.",
        )
    # Not str.splitlines: it ends lines at characters that names may have, such as U+2028.
    lines = (line.strip(" \t\r") for line in text.split("\n"))
    names = list(dict.fromkeys(_name(_unquoted(line)) for line in lines if line))
    if not names:
        raise ImagesError(
            f"The file list {path} names no file.", hint="Write one path a line into it."
        )
    return names


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ImagesError(
            f"The file list {path} cannot be read: {exc.strerror}.", hint="Check its permissions."
        ) from exc
    utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        # As the system's own names are decoded: where they are bytes, those that are not UTF-8 are
        # kept; where they are text, there can be none.
        return data.decode("utf-16" if utf_16 else "utf-8-sig", sys.getfilesystemencodeerrors())
    except UnicodeDecodeError as exc:
        raise ImagesError(
            f"The file list {path} is not text in {'UTF-16' if utf_16 else 'UTF-8'}: "
            f"{exc.reason} at byte {exc.start}.",
            hint="Save it as UTF-8, with one path a line.",
        ) from exc


def _unquoted(line: str) -> str:
    quoted = len(line) > 2 and line.startswith('"') and line.endswith('"')
    return line[1:-1] if quoted else line


def _name(line: str) -> str:
    return "/".join(map(escape_name, PurePath(line).as_posix().split("/")))
