"""Which image files there are: a folder's, a list's, a class's, a sample of them."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import stat
import sys
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING

from deploykit.errors import ImagesError, InputError, UsageError
from deploykit.specs.model import check_class_names
from deploykit.system.cloud import CloudPath
from deploykit.system.files import read_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

IMAGE_EXTENSIONS = frozenset(
    # What torchvision's ImageFolder lists,
    {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
    # what else people keep photos in and Pillow reads,
    | {".avif", ".gif", ".jfif", ".jp2", ".jpe", ".mpo", ".pbm", ".pnm"}
    # and what phones write and Pillow does not read: a row that says so beats a file skipped.
    | {".heic", ".heif"}
)
"""The endings by which a folder's image files are told, in lower case; any case counts."""

_ENDINGS = tuple(sorted(IMAGE_EXTENSIONS))
_ESCAPE = re.compile(r"\\u[0-9a-f]{4}")
_ESCAPED_CHARACTER = re.compile(r"\\(?:\\|u([0-9a-f]{4}))")
LIST_EXTENSION = ".txt"
#: Of a text file: a list of a million images takes some 100 MB.
_MAX_TEXT_BYTES = 2**30
# No drive's letter. Of two slashes a path keeps one.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
#: The parts that a data set is often split into, in any case; the first is the one to name classes
#: by.
_SPLITS = re.compile(
    "(?:(train(?:ing)?)|(val(?:id(?:ation)?)?)|test(?:ing)?|eval(?:uation)?|dev)"
    "(?:[ _-]?(?:set|data|images))?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image file: one row of the result, whatever is wrong with it.

    There is one for each of a folder's files, so it holds little: what many share, and its name.

    Attributes:
        root: The folder that the name is relative to.
        name: ``/`` on every system; what is not Unicode is written as
            :func:`deploykit.images.scan.escape_name` does, hence no two files share a name.
        expected: The class that the file's folder or a table names; None where none is known.
        expected_labels: The classes that a table names, where an image may be of several.
    """

    root: Path
    name: str
    expected: str | None = None
    expected_labels: tuple[str, ...] | None = None

    @property
    def path(self) -> Path:
        """What to open."""
        return self.root / unescape_name(self.name)


@dataclass(frozen=True)
class Scan:
    """The images of a folder or a list, or one image, which are not read yet.

    Attributes:
        path: The folder, the list, or the one image.
        root: The folder that the names are relative to.
        files: The image files, sorted by name; those of a list in its order.
        skipped: How many other files there are.
    """

    path: Path
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
            :func:`deploykit.images.scan.read_file_list`; or an image file with any other
            ending.
        labels: The model's classes. A file is expected to be of the class that the first folder
            below ``path`` is named after, or the second below ``train``, ``val`` or ``test``; a
            file that is listed or given, of the class that its own folder is.

    Raises:
        ImagesError: The path does not exist, cannot be read, or holds no image file.
    """
    # Each label stands for itself, so that all files of a class share one string.
    classes = {label: label for label in labels or ()}
    root = root_of(path)
    if root == path:
        others = Counter[str]()
        names = sorted(walk(path, others))
        if not names:
            raise no_image_error(path, others)
        named = ((name, class_folder(name, classes)) for name in names)
        files = tuple(ImageFile(path, name, classes.get(folder)) for name, folder in named)
        return Scan(path, path, files, skipped=others.total())
    if path.suffix.lower() != LIST_EXTENSION:
        expected = classes.get(path.absolute().parent.name)
        return Scan(path, root, (ImageFile(root, escape_name(path.name), expected),))
    # Of a file that is listed it is the file's own folder: puppies of dog/puppies/b.jpg.
    named = ((name, own_folder(name)) for name in read_file_list(path))
    files = tuple(ImageFile(root, name, classes.get(folder)) for name, folder in named)
    return Scan(path, root, files)


def root_of(path: Path) -> Path:
    """The folder that the names of a source's files are relative to: itself, or the one it is in.

    Raises:
        ImagesError: The source does not exist or cannot be read, or is no folder and no file.
    """
    return path if _is_directory(path) else path.parent


def no_image_error(path: Path, others: Counter[str]) -> ImagesError:
    """What to say of a folder without images.

    Args:
        path: The folder.
        others: How many other files there are, by ending.
    """
    endings = ", ".join(end or "without ending" for end, _ in others.most_common(5))
    there = f"other files: {others.total()}, {endings}" if endings else "it is empty"
    return ImagesError(
        f"No image file in {path} ({there}).",
        hint=f"Images are told by their ending: {' '.join(_ENDINGS)}.",
    )


def own_folder(name: str) -> str:
    """``puppies`` of ``dog/puppies/b.jpg``."""
    return name.rpartition("/")[0].rpartition("/")[2]


def class_folder(name: str, classes: Collection[str]) -> str:
    """``dog`` of ``dog/puppies/b.jpg``, and of ``train/dog/b.jpg`` unless ``train`` is a class."""
    folder, _, below = name.rpartition("/")[0].partition("/")
    if folder not in classes and _SPLITS.fullmatch(folder):
        return below.partition("/")[0]
    return folder


def class_folders(path: Path) -> list[str]:
    """Name the classes of a folder with one sub-folder a class.

    The order is that of torchvision's ``ImageFolder``: by code point, ``10`` before ``2`` and
    ``Z`` before ``a``, hidden folders included. It is what the logits of a network that was
    trained on such a folder follow.

    Raises:
        UsageError: The path is not a folder, cannot be read, or has no sub-folder.
        ImagesError: Its sub-folders are ``train``, ``val`` and ``test``, which are no classes; or
            a name of theirs has a control character.
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
    splits = [match for name in shown if (match := _SPLITS.fullmatch(name))]
    if shown and len(splits) == len(shown):
        first = min(splits, key=lambda split: (split[1] is None, split[2] is None))[0]
        raise ImagesError(
            f"The sub-folders of {path} are parts of a data set, not classes: {', '.join(shown)}.",
            hint=f"Give the part that names the classes: {path / first}",
        )
    classes = [escape_name(name) for name in names]
    try:
        check_class_names(classes)
    except UsageError as exc:
        raise ImagesError(
            f"{path} names classes by its sub-folders: {exc.message}",
            hint="Rename that sub-folder.",
        ) from exc
    return classes


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
    drawn = sorted(
        range(len(files)),
        key=lambda index: hashlib.sha256(f"{seed}/{files[index].name}".encode()).digest(),
    )
    taken: Counter[str] = Counter()
    rounds: dict[int, int] = {}  # every class gives one file a round
    for index in drawn:
        file = files[index]
        group = file.expected or str(PurePosixPath(file.name).parent)
        rounds[index] = taken[group]
        taken[group] += 1
    chosen = sorted(drawn, key=rounds.__getitem__)[:count]
    return [files[index] for index in sorted(chosen)]


def sample_with(files: Sequence[ImageFile], first: Sequence[str], count: int) -> list[ImageFile]:
    """A fixed sample that is even over the classes.

    Args:
        files: What to draw from.
        first: The names of files that come before any other; unknown names are ignored.
        count: How many files at most.
    """
    others = {file.name: file for file in files}
    wanted = [others.pop(name) for name in dict.fromkeys(first) if name in others][:count]
    if len(wanted) < count and others:
        wanted += sample_images(list(others.values()), count - len(wanted))
    return wanted


def walk(root: Path, others: Counter[str], wanted: tuple[str, ...] = _ENDINGS) -> Iterator[str]:
    """Walk a folder, then what its links lead to that was not met on the way.

    Args:
        root: The folder.
        others: Told how many other files there are, by ending.
        wanted: The endings that files are told by.

    Yields:
        The name of each file, and of each folder that cannot be listed, in no order.

    Raises:
        ImagesError: The folder itself cannot be listed.
    """
    seen: set[str] = set()
    # Each is where it is, and how the names of what it holds begin: nothing, or "sub/".
    folders, links = [(os.fspath(root), "")], deque[tuple[str, str]]()
    while folders or links:
        folder, prefix = folders.pop() if folders else links.popleft()
        place = os.path.realpath(folder)
        if place in seen:
            continue
        seen.add(place)
        inner = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        inner.append(entry)
                    elif entry.name.lower().endswith(wanted) and _is_file_or_broken(entry):
                        yield prefix + escape_name(entry.name)
                    else:
                        others[PurePath(entry.name).suffix.lower()] += 1
        except OSError as exc:
            if not prefix:
                raise ImagesError(
                    f"The folder {root} cannot be read: {exc.strerror}.",
                    hint="Check its permissions.",
                ) from exc
            yield prefix
        # In an order of our own: it decides which of two links gives a folder its name.
        for entry in sorted(inner, key=lambda entry: entry.name):
            below = entry.path, f"{prefix}{escape_name(entry.name)}/"
            (links if entry.is_symlink() else folders).append(below)


def _is_directory(path: Path) -> bool:
    """Tell a folder from a file. Anything else is an error: opening a pipe waits for ever."""
    hint = "Give a folder of images, a .txt file that lists them, or one image file."
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as exc:
        raise ImagesError(f"{restore_url(path)} does not exist.", hint=hint) from exc
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


def read_file_list(path: Path) -> list[str]:
    """Read the names of the images that a text file lists.

    One path a line, relative to the list's folder or absolute. Blanks around a path, the double
    quotes that Windows copies with one, empty lines, and repeated paths are skipped. The text is
    UTF-8, or the UTF-16 that Windows PowerShell writes.

    Returns:
        The names in the order of the list, with ``/`` and escaped as :func:`escape_name` does.
        Whether a file is there, opening it says.

    Raises:
        ImagesError: The list cannot be read, is no such text, or names no file.
    """
    # As the system's own names are decoded: where they are bytes, those that are not UTF-8 are
    # kept; where they are text, there can be none.
    text = read_text(path, "file list", "path", sys.getfilesystemencodeerrors())
    names = list(dict.fromkeys(listed_names(text.split("\n"))))
    if not names:
        raise ImagesError(
            f"The file list {path} names no file.", hint="Write one path a line into it."
        )
    return names


def listed_names(lines: Iterable[str]) -> Iterator[str]:
    """The names that a list's lines have; see :func:`read_file_list`."""
    quoted = re.compile('"(.+)"')
    # Not str.splitlines: it ends lines at characters that names may have, such as U+2028.
    for line in filter(None, (line.strip(" \t\r\n") for line in lines)):
        path = match[1] if (match := quoted.fullmatch(line)) else line
        # Not of a URL, whose two slashes a path has as one: its row is to show it as it was given.
        is_url = _URL.fullmatch(path.partition("//")[0])
        parts = (path if is_url else PurePath(path).as_posix()).split("/")
        yield "/".join(map(escape_name, parts))


def read_text(path: Path, what: str, line: str, errors: str = "strict") -> str:
    """Read a text in UTF-8, or in the UTF-16 that Windows PowerShell writes.

    Args:
        path: The file.
        what: What it is called: ``file list``.
        line: What each of its lines holds: ``path``.
        errors: As :meth:`bytes.decode` takes them.

    Raises:
        InputError: It cannot be read, or is no such text.
    """
    try:
        data = read_file(path, limit=_MAX_TEXT_BYTES)
    except OSError as exc:
        raise InputError(
            f"The {what} {path} cannot be read: {exc.strerror}.",
            hint="Give a text file that you may read.",
        ) from exc
    encoding = "UTF-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "UTF-8"
    try:
        text = data.decode(encoding, errors).removeprefix("\ufeff")
        reason = "it holds zero bytes"  # no name has one; UTF-16 without its mark has many
    except UnicodeDecodeError as exc:
        text, reason = "\0", f"{exc.reason} at byte {exc.start}"
    if "\0" in text:
        raise InputError(
            f"The {what} {path} is not text in {encoding}: {reason}.",
            hint=f"Save it as UTF-8, with one {line} a line.",
        )
    return text


def escape_name(part: str) -> str:
    r"""Write one part of a path as Unicode, so that no two parts are written alike.

    A part that is not Unicode has its stray bytes written ``\udcXX`` and its backslashes doubled;
    so has one that looks as if it had been through that. Any other stays as it is.
    """
    if part.isascii() and "\\" not in part:
        return part
    escaped = part.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode()
    return escaped if _ESCAPE.search(escaped) else part


def unescape_name(name: str) -> str:
    """Turn a whole shown name, parts and ``/``, back into what the system calls the file."""
    if "\\" not in name:
        return name
    return "/".join(
        _ESCAPED_CHARACTER.sub(lambda match: chr(int(match[1], 16)) if match[1] else "\\", part)
        if _ESCAPE.search(part)
        else part
        for part in name.split("/")
    )


def restore_url(path: Path | str) -> str:
    """A path as a text; a URL, also one behind a list's folder, with the slash that it lost."""
    # A folder may have such a name, if anything has.
    if isinstance(path, str) or os.path.lexists(path):
        return str(path)
    place = next((i for i, part in enumerate(path.parts) if _URL.fullmatch(part)), None)
    if place is None:
        return str(path)
    scheme, *rest = path.parts[place:]
    return f"{scheme}//{'/'.join(rest)}"


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
            hint="Bring it back, then add --resume: the rows so far are kept.",
        )


def _device_of(folder: Path) -> int | str:
    """The number of the device that a folder is on, or why the folder cannot be listed."""
    if isinstance(folder, CloudPath):  # of which an error tells that is true of all
        return ""
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
        return folder.stat().st_dev
    except OSError as exc:
        return exc.strerror or str(exc)
