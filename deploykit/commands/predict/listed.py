"""Files as a plan's list has them, and whether they are still like that."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from deploykit.commands.predict.plan import ListedFile
from deploykit.errors import ImagesError
from deploykit.images.scan import ImageFile
from deploykit.images.sources import SourceFile, listed_file, place_in_source, stamp_of
from deploykit.system.cloud import CloudPath

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def file_of_line(root: Path, listed: ListedFile) -> ImageFile:
    """The file of a line; its name is relative to the root."""
    return listed_file(
        root,
        listed.path,
        listed.expected,
        listed.expected_labels,
        size=listed.size,
        changed=listed.changed,
        inside=listed.inside,
        at=listed.at,
    )


def listed_line(ordinal: int, file: ImageFile) -> ListedFile:
    """The line of a file: what it is like now, where nobody has said yet."""
    place = place_in_source(file)
    if not place:
        with suppress(OSError):
            found = file.path.stat()
            place = {"size": found.st_size, "changed": found.st_mtime_ns}
    return ListedFile(
        ordinal=ordinal,
        path=file.name,
        expected=file.expected,
        expected_labels=file.expected_labels,
        **place,
    )


class FilesNow:
    """What files are like now: one after the other, in the order of the list.

    Args:
        root: What their names are relative to.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._objects: Iterator[ImageFile] | None = None
        self._next: ImageFile | None = None

    def is_as(self, listed: ListedFile) -> bool:
        """Whether a file is as it was listed, as far as that can be told."""
        file = file_of_line(self._root, listed)
        if not isinstance(file, SourceFile):
            return listed_line(listed.ordinal, file) == listed
        if file.inside:
            with suppress(OSError):
                return stamp_of(file.place) == listed.changed
            return False
        if listed.changed is None:  # of a list of URLs nothing is known before they are read
            return True
        return self._object(file.name) == (listed.size, listed.changed)

    def _object(self, name: str) -> tuple[int | None, int | str | None] | None:
        """Size and ETag of an object below the root, which is listed once more, page by page."""
        if self._objects is None:
            from deploykit.images.sources.cloud import PrefixSource

            if not isinstance(self._root, CloudPath):
                return None
            self._objects = iter(PrefixSource(self._root, ()))
            self._next = self._following()
        while self._next is not None and self._next.name < name:
            self._next = self._following()
        found = self._next
        if isinstance(found, SourceFile) and found.name == name:
            return found.size, found.changed
        return None

    def _following(self) -> ImageFile | None:
        with suppress(OSError, ImagesError):
            return next(self._objects, None) if self._objects else None
        return None
