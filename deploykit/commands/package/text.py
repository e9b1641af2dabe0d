"""Packages: what was written, as text and as values."""

from __future__ import annotations

from typing import Any

from deploykit.commands.package.run import PackageResult
from deploykit.system.text import counted


def package_text(result: PackageResult) -> str:
    """What was written, what its user has to know, and the command that uses it."""
    written, size = result.written, sum(result.files.values()) / 1e6
    lines = [
        f"written  {result.output} ({counted(len(result.files), 'file')}, {size:.1f} MB)",
        f"content  {written.content}",
        *(f"note     {note}" for note in written.notes),
    ]
    if written.command:
        lines += ("To use it:", written.command)
    return "\n".join(lines)


def package_value(result: PackageResult) -> dict[str, Any]:
    """The same for ``--json``."""
    return {
        "bundle": str(result.bundle.folder),
        "format": result.format,
        "output": str(result.output),
        "files": result.files,
        "content": result.written.content,
        "notes": [*result.written.notes],
        "command": result.written.command,
    }
