"""File names as rows show them: Unicode, with ``/`` on every system, and the way back."""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\\u[0-9a-f]{4}")
_ESCAPED_CHARACTER = re.compile(r"\\(?:\\|u([0-9a-f]{4}))")


def escape_name(part: str) -> str:
    r"""Write one part of a path as Unicode, so that no two parts are written alike.

    A part that is not Unicode has its stray bytes written ``\udcXX`` and its backslashes doubled;
    so has one that looks as if it had been through that. Any other stays as it is.
    """
    if part.isascii() and "\\" not in part:
        return part
    escaped = part.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode()
    return escaped if _ESCAPE.search(escaped) else part


def unescape_name(name: str) -> str:
    """Turn a whole shown name, parts and ``/``, back into what the system calls the file."""
    return "/".join(map(_unescaped, name.split("/"))) if "\\" in name else name


def _unescaped(part: str) -> str:
    if not _ESCAPE.search(part):
        return part
    return _ESCAPED_CHARACTER.sub(lambda match: chr(int(match[1], 16)) if match[1] else "\\", part)
