"""Shards that a pattern names: ``birds-{000..128}.tar``, ``shards/*.tar``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from deploykit.errors import ImagesError
from deploykit.images.scan import escape_name
from deploykit.images.sources.cloud import objects_below
from deploykit.system.cloud import CloudPath

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")
_PATTERN = re.compile(r"[*?{\[]")
_MOST_NAMES = 1_000_000


def is_pattern(path: Path) -> bool:
    """Whether a path is a pattern, and no file's name."""
    if _PATTERN.search(path.as_posix()) is None:
        return False
    return not path.is_web if isinstance(path, CloudPath) else not path.exists()


def pattern_root(path: Path) -> Path:
    """The folder that is in no part a pattern."""
    while _PATTERN.search(path.as_posix()) is not None:
        path = path.parent
    return path


def named_by(path: Path) -> Iterator[str]:
    """The names of a pattern's files, relative to its root, sorted within each of its braces.

    Raises:
        ImagesError: No file matches.
    """
    root = pattern_root(path)
    pattern = path.relative_to(root).as_posix()
    found = 0
    for each in _unbraced(pattern):
        names = [each] if not re.search(r"[*?\[]", each) else _matching(root, each)
        for name in names:
            found += 1
            yield name
    if not found:
        raise ImagesError(
            f"No file matches {path}.",
            hint="Give a folder, or a pattern such as shards/birds-{000..128}.tar.",
        )


def _unbraced(pattern: str) -> Iterator[str]:
    """``{0..2}`` and ``{a,b}``, written out."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    choices: list[str] | Iterator[str] = match[1].split(",")
    if numbers := _RANGE.fullmatch(match[1]):
        first, last = int(numbers[1]), int(numbers[2])
        if abs(last - first) >= _MOST_NAMES:
            raise ImagesError(
                f"{{{match[1]}}} names more than {_MOST_NAMES} files.", hint="Give a folder."
            )
        step = 1 if last >= first else -1
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        choices = (f"{number:0{width}}" for number in range(first, last + step, step))
    for choice in choices:
        yield from _unbraced(f"{pattern[: match.start()]}{choice}{pattern[match.end() :]}")


def _matching(root: Path, pattern: str) -> list[str]:
    if isinstance(root, CloudPath):
        names = (item.name for item in objects_below(root))
        parts = pattern.count("/")
        return [n for n in names if n.count("/") == parts and fnmatchcase(n, pattern)]
    found = (path.relative_to(root) for path in root.glob(pattern) if path.is_file())
    return sorted("/".join(map(escape_name, path.parts)) for path in found)
