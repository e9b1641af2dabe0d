"""Written next."""

from __future__ import annotations

from pathlib import Path

from deploykit.bundle.folder import Bundle
from deploykit.commands.package.request import PackageRequest, Written
from deploykit.errors import UsageError
from deploykit.system.progress import Progress


def write(bundle: Bundle, made: Path, request: PackageRequest, progress: Progress) -> Written:
    """Not there yet."""
    raise UsageError(f"--format {request.format} is not there yet.")


def is_packed(path: Path) -> bool:
    """Whether a file is a bundle in one file."""
    return False
