"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file beside its name; it takes the name when the block ends well.

    Whoever reads ``path`` meanwhile, or after a crash or a power cut, finds the old file or the
    new one, whole.

    Args:
        path: The final name; what has it stays until the new file is whole.

    Yields:
        Where to write.

    Raises:
        OSError: The system fails to write it, or to give it its name.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())  # or a power cut may leave the name on an empty file
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
