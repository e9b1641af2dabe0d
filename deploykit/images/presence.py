"""Whether the folder that is being read is still there: a drive may go away meanwhile."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from deploykit.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


class FolderPresence:
    """What a folder looked like before its files were read.

    Args:
        folder: What the files are read from.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = _device_of(folder)

    def check(self) -> None:
        """See that the folder is where it was, now that a file is missing or unreadable.

        Raises:
            InputError: It cannot be listed any more, or another drive has its place, as below the
                mount point of one that was unmounted.
        """
        now = _device_of(self._folder)
        # A folder that could never be listed may still have files that can be read.
        if isinstance(self._before, str) or now == self._before:
            return
        why = now if isinstance(now, str) else "another drive is in its place"
        raise InputError(
            f"{self._folder} went away while its images were read: {why}.",
            hint="Bring it back, then add --resume: the rows so far are in the tables' journal.",
        )


def _device_of(folder: Path) -> int | str:
    """The number of the device that a folder is on, or why the folder cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
        return folder.stat().st_dev
    except OSError as exc:
        return exc.strerror or str(exc)
