"""Which image files there are: a folder's, a class's, a sample of them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from deploykit.errors import ImagesError, UsageError
from deploykit.images.file_list import LIST_EXTENSION, read_file_list
from deploykit.images.file_names import escape_name, unescape_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

IMAGE_EXTENSIONS = frozenset(
    # What torchvision's ImageFolder lists,
    {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
    # what else people keep photos in and Pillow reads,
    | {".avif", ".gif", ".jfif", ".jp2", ".jpe", ".mpo", ".pbm", ".pnm"}
    # and what phones write and Pillow does not read: a row that says so beats a file left out.
    | {".heic", ".heif"}
)
"""The endings by which a folder's image files are told, in lower case; any case counts."""

_ENDINGS = tuple(sorted(IMAGE_EXTENSIONS))
#: The parts that a data set is often split into; the first is the one to name classes by.
_SPLITS = ("train", "val", "valid", "validation", "test")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image file: one row of the result, whatever is wrong with it.

    There is one for each of a folder's files, so it holds little: what many share, and its name.

    Attributes:
        root: The folder that the name is relative to.
        name: ``/`` on every system; what is not Unicode is written as
            :func:`deploykit.images.file_names.escape_name` does, hence no two files share a name.
        expected: The class that the file's folder names; None where no class is known.
    """

    root: Path
    name: str
    expected: str | None = None

    @property
    def path(self) -> Path:
        """What to open."""
        return self.root / unescape_name(self.name)


@dataclass(frozen=True)
class Scan:
    """What a path holds.

    Attributes:
        root: The folder that the names are relative to.
        files: The image files, sorted by name; those of a list in its order.
        skipped: How many other files there are.
    """

    root: Path
    files: tuple[ImageFile, ...]
    skipped: int = 0


def scan_images(path: Path, labels: Collection[str] | None = None) -> Scan:
    """List the image files below a folder, those that a file list names, or the one that is given.

    Every folder is descended into, whatever its name. A linked folder is descended into once, and
    not at all if its target is listed anyway. A link to nothing is a file of the result, and so is
    a folder that cannot be listed (its name ends in ``/``): opening them says what is wrong.

    Args:
        path: A folder, whose files are told by ``IMAGE_EXTENSIONS``; a ``.txt`` file, see
            :func:`deploykit.images.file_list.read_file_list`; or an image file with any other
            ending.
        labels: The model's classes. A file is expected to be of the class that the first folder
            below ``path`` is named after; a file that is listed or given, of the class that its own
            folder is.

    Raises:
        ImagesError: The path does not exist, cannot be read, or holds no image file.
    """
    # Each label stands for itself, so that all files of a class share one string.
    classes = {label: label for label in labels or ()}
    if _is_directory(path):
        return _scan_folder(path, classes)
    root = path.parent
    if path.suffix.lower() != LIST_EXTENSION:
        expected = classes.get(path.absolute().parent.name)
        return Scan(root, (ImageFile(root, escape_name(path.name), expected),))
    names = read_file_list(path)
    return Scan(
        root, tuple(ImageFile(root, name, classes.get(_own_folder(name))) for name in names)
    )


def _scan_folder(root: Path, classes: dict[str, str]) -> Scan:
    walk = _Walk(root)
    walk.run()
    if not walk.names:
        raise ImagesError(
            f"No image file in {root} ({_describe_others(walk.others)}).",
            hint=f"Images are told by their ending: {' '.join(_ENDINGS)}.",
        )
    walk.names.sort()
    files = tuple(ImageFile(root, name, classes.get(_first_folder(name))) for name in walk.names)
    return Scan(root, files, skipped=walk.others.total())


def class_folders(path: Path) -> list[str]:
    """Name the classes of a folder with one sub-folder a class.

    The order is that of torchvision's ``ImageFolder``: by code point, ``10`` before ``2`` and
    ``Z`` before ``a``, hidden folders included. It is what the logits of a network that was
    trained on such a folder follow.

    Raises:
        UsageError: The path is not a folder, cannot be read, or has no sub-folder.
        ImagesError: Its sub-folders are ``train``, ``val`` and ``test``, which are no classes.
    """
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as exc:
        raise UsageError(
            f"The classes cannot be read from {path}: {exc.strerror}.",
            hint="Give the folder that the network was trained on, with one sub-folder a class.",
        ) from exc
    if not names:
        raise UsageError(
            f"{path} has no sub-folders to name the classes.",
            hint="Give the folder that holds one sub-folder a class.",
        )
    shown = [name for name in names if not name.startswith(".")]
    if shown and all(name.lower() in _SPLITS for name in shown):
        first = min(shown, key=lambda name: _SPLITS.index(name.lower()))
        raise ImagesError(
            f"The sub-folders of {path} are parts of a data set, not classes: {', '.join(shown)}.",
            hint=f"Give the part that names the classes: {path / first}",
        )
    return [escape_name(name) for name in names]


def sample_images(files: Sequence[ImageFile], count: int, seed: int = 0) -> list[ImageFile]:
    """Draw files evenly over their classes.

    The draw ranks each file by a hash of its name, so it is the same on every system and hardly
    changes when files come or go.

    Args:
        files: What to draw from. A file without an expected class counts to its folder's.
        count: How many; all of them where there are fewer.
        seed: Another seed gives another sample.

    Returns:
        The sample, in the order of ``files``.

    Raises:
        UsageError: The count is below 1.
    """
    if count < 1:
        raise UsageError(f"A sample of {count} images is none.", hint="Ask for at least 1.")
    drawn = sorted(range(len(files)), key=lambda index: _rank(files[index], seed))
    taken: Counter[str] = Counter()
    rounds: dict[int, int] = {}  # every class gives one file a round
    for index in drawn:
        file = files[index]
        group = file.expected or str(PurePosixPath(file.name).parent)
        rounds[index] = taken[group]
        taken[group] += 1
    chosen = sorted(drawn, key=rounds.__getitem__)[:count]
    return [files[index] for index in sorted(chosen)]


class _Folder(NamedTuple):
    """A folder to list.

    Attributes:
        path: Where it is.
        prefix: How the names of what it holds begin: nothing, or ``sub/``.
    """

    path: str
    prefix: str


class _Walk:
    """A walk over a folder.

    Attributes:
        names: The name of each image file, and of each folder that cannot be listed.
        others: How many other files there are, by ending.
    """

    def __init__(self, root: Path) -> None:
        self.names: list[str] = []
        self.others: Counter[str] = Counter()
        self._root = root
        self._seen: set[str] = set()
        self._links: deque[_Folder] = deque()

    def run(self) -> None:
        """Walk the folder itself, then what its links lead to that was not met on the way."""
        self._descend(_Folder(os.fspath(self._root), ""))
        while self._links:
            self._descend(self._links.popleft())

    def _descend(self, top: _Folder) -> None:
        folders = [top]
        while folders:
            folder = folders.pop()
            place = os.path.realpath(folder.path)
            if place in self._seen:
                continue
            self._seen.add(place)
            inner = []
            for entry in self._entries(folder):
                if _is_folder(entry):
                    inner.append(entry)
                else:
                    self._add(entry, folder.prefix)
            # In an order of our own: it decides which of two links gives a folder its name.
            for entry in sorted(inner, key=lambda entry: entry.name):
                below = _Folder(entry.path, f"{folder.prefix}{escape_name(entry.name)}/")
                (self._links if entry.is_symlink() else folders).append(below)

    def _entries(self, folder: _Folder) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder.path) as entries:
                yield from entries
        except OSError as exc:
            if not folder.prefix:
                raise ImagesError(
                    f"The folder {self._root} cannot be read: {exc.strerror}.",
                    hint="Check its permissions.",
                ) from exc
            self.names.append(folder.prefix)

    def _add(self, entry: os.DirEntry[str], prefix: str) -> None:
        if entry.name.lower().endswith(_ENDINGS) and _is_file_or_broken(entry):
            self.names.append(prefix + escape_name(entry.name))
        else:
            self.others[PurePath(entry.name).suffix.lower()] += 1


def _is_directory(path: Path) -> bool:
    """Tell a folder from a file; refuse the rest: whoever opens a pipe waits for ever."""
    hint = "Give a folder of images, a .txt file that lists them, or one image file."
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as exc:
        raise ImagesError(f"{path} does not exist.", hint=hint) from exc
    except OSError as exc:
        raise ImagesError(f"{path} cannot be read: {exc.strerror}.", hint=hint) from exc
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise ImagesError(f"{path} is neither a folder nor a file.", hint=hint)
    return stat.S_ISDIR(mode)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle, or to where we may not look
        return False


def _is_file_or_broken(entry: os.DirEntry[str]) -> bool:
    """Whether an entry makes a row: a file, or a link that leads to none; no pipe, no socket."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True


def _first_folder(name: str) -> str:
    """``dog`` of ``dog/puppies/b.jpg``; empty for a file without a folder."""
    return name.rpartition("/")[0].partition("/")[0]


def _own_folder(name: str) -> str:
    """``puppies`` of ``dog/puppies/b.jpg``; empty for a file without a folder."""
    return name.rpartition("/")[0].rpartition("/")[2]


def _rank(file: ImageFile, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{file.name}".encode()).digest()


def _describe_others(others: Counter[str]) -> str:
    if not others:
        return "it is empty"
    endings = ", ".join(ending or "without ending" for ending, _ in others.most_common(5))
    return f"other files: {others.total()}, {endings}"
