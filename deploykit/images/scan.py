"""Which image files there are: a folder's, a class's, a sample of them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from deploykit.errors import ImagesError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

IMAGE_EXTENSIONS = frozenset(
    # What torchvision's ImageFolder lists,
    {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
    # what else people keep photos in and Pillow reads,
    | {".avif", ".gif", ".jfif", ".jp2", ".jpe", ".mpo", ".pbm", ".pnm"}
    # and what phones write and Pillow does not read: a row that says so beats a file left out.
    | {".heic", ".heif"}
)
"""The endings by which a folder's image files are told, in lower case; any case counts."""

_ESCAPE = re.compile(r"\\u[0-9a-f]{4}")


@dataclass(frozen=True, slots=True)
class ImageFile:
    r"""One image file: one row of the result, whatever is wrong with it.

    Attributes:
        path: What to open.
        name: Relative to the scanned folder, ``/`` on every system. A part that is not Unicode has
            its stray bytes written ``\udcXX`` and its backslashes doubled; so has one that looks
            as if it had been through that, hence no two files share a name.
        expected: The class that the file's folder names; None where no class is known.
    """

    path: Path
    name: str
    expected: str | None = None


@dataclass(frozen=True)
class Scan:
    """What a path holds.

    Attributes:
        root: The folder that the names are relative to.
        files: The image files, sorted by name.
        skipped: How many other files there are.
    """

    root: Path
    files: tuple[ImageFile, ...]
    skipped: int = 0


def scan_images(path: Path, labels: Collection[str] | None = None) -> Scan:
    """List the image files below a folder, or the one file that is given.

    Every folder is descended into, whatever its name. A linked folder is descended into once, and
    not at all if its target is listed anyway. A link to nothing is a file of the result, and so is
    a folder that cannot be listed (its name ends in ``/``): opening them says what is wrong.

    Args:
        path: A folder, whose files are told by ``IMAGE_EXTENSIONS``; or a file with any ending.
        labels: The model's classes. A file is expected to be of the class that the first folder
            below ``path`` is named after.

    Raises:
        ImagesError: The path does not exist, cannot be read, or holds no image file.
    """
    if not _is_directory(path):
        return Scan(root=path.parent, files=(ImageFile(path, _escape(path.name)),))
    walk = _Walk(path)
    walk.run()
    if not walk.images:
        raise ImagesError(
            f"No image file in {path} ({_describe_others(walk.others)}).",
            hint=f"Images are told by their ending: {' '.join(sorted(IMAGE_EXTENSIONS))}.",
        )
    classes = frozenset(labels or ())
    files = (ImageFile(file, name, _class_of(name, classes)) for name, file in walk.images.items())
    return Scan(
        root=path,
        files=tuple(sorted(files, key=lambda file: file.name)),
        skipped=walk.others.total(),
    )


def class_folders(path: Path) -> list[str]:
    """Name the classes of a folder with one sub-folder a class.

    The order is that of torchvision's ``ImageFolder``: by code point, ``10`` before ``2`` and
    ``Z`` before ``a``, hidden folders included. It is what the logits of a network that was
    trained on such a folder follow.

    Raises:
        UsageError: The path is not a folder, cannot be read, or has no sub-folder.
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
    return [_escape(name) for name in names]


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


class _Walk:
    """A walk over a folder.

    Attributes:
        images: The path of each image file, and of each folder that cannot be listed, by name.
        others: How many other files there are, by ending.
    """

    def __init__(self, root: Path) -> None:
        self.images: dict[str, Path] = {}
        self.others: Counter[str] = Counter()
        self._root = root
        self._seen: set[str] = set()
        self._links: deque[Path] = deque()

    def run(self) -> None:
        """Walk the folder itself, then what its links lead to that was not met on the way."""
        self._descend(self._root)
        while self._links:
            self._descend(self._links.popleft())

    def _descend(self, top: Path) -> None:
        folders = [top]
        while folders:
            folder = folders.pop()
            place = os.path.realpath(folder)
            if place in self._seen:
                continue
            self._seen.add(place)
            for entry in self._list(folder):
                if _is_folder(entry):
                    (self._links if entry.is_symlink() else folders).append(Path(entry.path))
                else:
                    self._add(entry)

    def _list(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as exc:
            if folder == self._root:
                raise ImagesError(
                    f"The folder {folder} cannot be read: {exc.strerror}.",
                    hint="Check its permissions.",
                ) from exc
            self.images[self._name(folder) + "/"] = folder
            return []

    def _add(self, entry: os.DirEntry[str]) -> None:
        path = Path(entry.path)
        if entry.name.lower().endswith(tuple(IMAGE_EXTENSIONS)) and _is_file_or_broken(entry):
            self.images[self._name(path)] = path
        else:
            self.others[path.suffix.lower()] += 1

    def _name(self, path: Path) -> str:
        return "/".join(_escape(part) for part in path.relative_to(self._root).parts)


def _is_directory(path: Path) -> bool:
    """Tell a folder from a file; refuse the rest: whoever opens a pipe waits for ever."""
    hint = "Give a folder of images, or one image file."
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


def _class_of(name: str, classes: frozenset[str]) -> str | None:
    folder, slash, _ = name.partition("/")
    return folder if slash and folder in classes else None


def _rank(file: ImageFile, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{file.name}".encode()).digest()


def _escape(part: str) -> str:
    """Write one part of a path in UTF-8, reversibly; see ``ImageFile.name``."""
    escaped = part.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode()
    return escaped if _ESCAPE.search(escaped) else part


def _describe_others(others: Counter[str]) -> str:
    if not others:
        return "it is empty"
    endings = ", ".join(ending or "without ending" for ending, _ in others.most_common(5))
    return f"other files: {others.total()}, {endings}"
