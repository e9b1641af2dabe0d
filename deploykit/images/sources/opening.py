"""Which source a path or a URL names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path

from deploykit.errors import ImagesError, UsageError
from deploykit.images.scan import (
    IMAGE_EXTENSIONS,
    LIST_EXTENSION,
    ImageFile,
    escape_name,
    root_of,
)
from deploykit.images.sources import CONTAINER_ENDINGS, VIDEO_ENDINGS, Source
from deploykit.images.sources.folder import FolderSource, ListedSource
from deploykit.system.cloud import CloudPath

#: What is compressed as a whole: each image would be unpacked from the beginning.
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PATTERN_MARKS = frozenset("*?{[")
_OBJECTS = (*IMAGE_EXTENSIONS, *CONTAINER_ENDINGS, *VIDEO_ENDINGS, LIST_EXTENSION)


def open_source(
    path: Path, labels: Collection[str] = (), *, every: Fraction | None = None
) -> Source:
    """Find out what a path names, and look for the first image.

    Args:
        path: A folder, a ``.txt`` list, an archive, a Parquet file, a video, an image; a pattern
            of them; or an object or a prefix of cloud storage.
        labels: The model's classes: an image is expected to be of the one that its folder
            is called.
        every: Of a video, seconds from one frame to the next.

    Raises:
        ImagesError: It does not exist, cannot be read, or holds no image.
        UsageError: It is not unpacked, or ``every`` was given for what is no video.
    """
    _check(path, every)
    root = source_root(path)
    if isinstance(path, CloudPath):
        source = _in_cloud(path, root, labels, every)
    elif _is_pattern(path):
        source = _patterned(path, root, labels)
    elif root == path:
        source = FolderSource(path, labels)
    else:
        source = _named(path, root, labels, every)
    return _Begun(source)


def source_root(path: Path) -> Path:
    """What the names of a source's images are relative to: itself, or the folder that it is in.

    Raises:
        ImagesError: See :func:`deploykit.images.scan.root_of`.
    """
    if _is_pattern(path):
        from deploykit.images.sources.patterns import pattern_root

        return pattern_root(path)
    if isinstance(path, CloudPath):
        return path.parent if _is_object(path) else path
    return root_of(path)


def is_one_image(path: Path) -> bool:
    """Whether a path names an image file itself, and nothing that holds or lists some."""
    if path.suffix.lower() in (LIST_EXTENSION, *CONTAINER_ENDINGS, *VIDEO_ENDINGS):
        return False
    return _is_object(path) if isinstance(path, CloudPath) else path.is_file()


class _Begun:
    """A source of which the first image is known: there is one, and it can be read."""

    def __init__(self, source: Source) -> None:
        self.path, self.root = source.path, source.root
        self._source = source
        self._files = iter(source)
        first = self._next()
        if first is None:
            raise ImagesError(
                f"No image in {self.path} (other files: {source.skipped}).",
                hint=f"Images are told by their ending: {' '.join(sorted(IMAGE_EXTENSIONS))}.",
            )
        self._first = first

    @property
    def skipped(self) -> int:
        return self._source.skipped

    def __iter__(self) -> Iterator[ImageFile]:
        yield self._first
        while (file := self._next()) is not None:
            yield file

    def _next(self) -> ImageFile | None:
        try:
            return next(self._files, None)
        except OSError as exc:
            raise ImagesError(
                f"{self.path} cannot be listed: {exc.strerror or exc}.",
                hint="Check its name, and what you may read.",
            ) from exc


def _check(path: Path, every: Fraction | None) -> None:
    name = path.name.lower()
    if name.endswith(_COMPRESSED):
        raise UsageError(
            f"{path} is compressed as a whole: each image would be unpacked from its beginning.",
            hint="Unpack it to a plain .tar, which takes hardly more space: photos are compressed.",
        )
    if every is not None and not name.endswith(VIDEO_ENDINGS):
        raise UsageError(
            f"--every picks frames, and {path} is no video.",
            hint=f"Videos are told by their ending: {' '.join(VIDEO_ENDINGS)}.",
        )


def _in_cloud(
    path: CloudPath, root: Path, labels: Collection[str], every: Fraction | None
) -> Source:
    if _is_pattern(path):
        return _patterned(path, root, labels)
    if _is_object(path):
        return _named(path, root, labels, every)
    if path.is_web:
        raise ImagesError(
            f"{path} cannot be listed: a web server does not tell which files it has.",
            hint="Give a .txt file with one URL a line.",
        )
    from deploykit.images.sources.cloud import PrefixSource

    return PrefixSource(path, labels)


def _named(path: Path, root: Path, labels: Collection[str], every: Fraction | None) -> Source:
    """A list, a container, a video or an image."""
    name = path.name if isinstance(path, CloudPath) else escape_name(path.name)
    if path.suffix.lower() == LIST_EXTENSION:
        from deploykit.images.sources.lists import listed_in

        return ListedSource(path, root, listed_in(path), labels)
    if path.suffix.lower() in VIDEO_ENDINGS:
        from deploykit.images.sources.video import DEFAULT_EVERY, Video

        return ListedSource(path, root, [name], labels, Video(every or DEFAULT_EVERY))
    folder = path.absolute().parent.name
    return ListedSource(path, root, [name], labels, folder=folder)


def _patterned(path: Path, root: Path, labels: Collection[str]) -> Source:
    from deploykit.images.sources.patterns import named_by

    return ListedSource(path, root, named_by(path), labels)


def _is_object(path: CloudPath) -> bool:
    name = path.name.partition("?")[0] if path.is_web else path.name
    return name.lower().endswith(_OBJECTS) or (path.is_web and "?" in path.name)


def _is_pattern(path: Path) -> bool:
    if not _PATTERN_MARKS.intersection(path.as_posix()):
        return False
    from deploykit.images.sources.patterns import is_pattern

    return is_pattern(path)
