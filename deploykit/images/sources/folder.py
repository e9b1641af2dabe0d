"""The images of a folder, those of a list, or one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from deploykit.images.scan import ImageFile, class_folder, no_image_error, own_folder, walk
from deploykit.images.sources import (
    CONTAINER_ENDINGS,
    container_of,
    listed_file,
    members_of,
    place_of,
)
from deploykit.images.sources.containers import Container
from deploykit.images.sources.sorting import sorted_names


class FolderSource:
    """The image files below a folder; where there is none, those in the archives below it.

    See :func:`deploykit.images.scan.scan_images` and
    :class:`deploykit.images.sources.Source`.

    Raises:
        ImagesError: It cannot be read, or there is none.
    """

    def __init__(self, path: Path, labels: Collection[str]) -> None:
        self.path = self.root = path
        self._classes = {label: label for label in labels}
        others = Counter[str]()
        names = sorted_names(walk(path, others))
        self._first = next(names, None)
        self._rest = names
        if self._first is None and not any(others[end] for end in CONTAINER_ENDINGS):
            raise no_image_error(path, others)
        self.skipped = others.total()

    def __iter__(self) -> Iterator[ImageFile]:
        """See :class:`deploykit.images.sources.Source`; once."""
        if self._first is None:
            self.skipped = 0
            yield from self._members()
            return
        for names in ([self._first], self._rest):
            for name in names:
                folder = class_folder(name, self._classes)
                yield ImageFile(self.root, name, self._classes.get(folder))

    def _members(self) -> Iterator[ImageFile]:
        found = walk(self.root, Counter(), CONTAINER_ENDINGS)
        listed = ListedSource(self.path, self.root, sorted_names(found), self._classes)
        yield from listed
        self.skipped = listed.skipped


class ListedSource:
    """Files that are named one by one; of archives among them, the images in them.

    Args:
        path: What was named.
        root: What the names are relative to.
        names: As rows show them; URLs among them.
        labels: The model's classes.
        container: What reads the files; None for what their endings say.
        folder: The name of the folder that all are in; None for what the names say.
    """

    def __init__(
        self,
        path: Path,
        root: Path,
        names: Iterable[str],
        labels: Collection[str],
        container: Container | None = None,
        *,
        folder: str | None = None,
    ) -> None:
        self.path, self.root, self.skipped = path, root, 0
        self._names, self._container, self._folder = names, container, folder
        self._classes = {label: label for label in labels}

    def __iter__(self) -> Iterator[ImageFile]:
        """See :class:`deploykit.images.sources.Source`."""
        for name in self._names:
            place = place_of(self.root, name)
            container = self._container
            if container is None and name.lower().endswith(CONTAINER_ENDINGS):
                container = container_of(place)
            if container is not None and place.is_file():
                yield from self._members(name, place, container)
            else:
                folder = own_folder(name) if self._folder is None else self._folder
                yield listed_file(self.root, name, self._classes.get(folder))

    def _members(self, name: str, place: Path, container: Container) -> Iterator[ImageFile]:
        files = members_of(self.root, name, place, container, self._skip)
        for file, label in files:
            below = file.name[len(name) + 1 :]
            expected = label if label in self._classes else class_folder(below, self._classes)
            yield replace(file, expected=self._classes.get(expected))

    def _skip(self) -> None:
        self.skipped += 1
