"""A photo to RGB pixels, the same as in training, or to a reason why not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import io
import logging
import os
import re
import stat
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias

from PIL import ExifTags, Image, UnidentifiedImageError, _imaging

from deploykit.errors import InputError
from deploykit.images.memory import decoding_budget, decoding_bytes
from deploykit.images.scan import restore_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FailureStatus: TypeAlias = Literal[
    "corrupt", "too-large", "truncated", "unreadable", "unsupported", "vanished"
]

# Of the formats that photos come in, and of what is taken for photos, by their first bytes.
_IMAGES = {
    "JPEG": re.compile(rb"\xff\xd8"),
    "PNG": re.compile(rb"\x89PNG"),
    "GIF": re.compile(rb"GIF8"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "AVIF": re.compile(rb"....ftypavi[fs]", re.DOTALL),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
}
_OTHERS = {
    "It is HEIC, which must be converted to JPEG first": re.compile(
        rb"....ftyp(?:hei[cx]|hev[cx]|mif1|msf1)", re.DOTALL
    ),
    "It is a video": re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", re.DOTALL),
    "It is a web page": re.compile(rb"\s*<(?:!doctype html|html)", re.IGNORECASE),
    "It is SVG or other XML, which has no pixels": re.compile(rb"\s*<(?:svg|\?xml)"),
    "It is a PDF document": re.compile(rb"%PDF"),
    "It is PostScript, which is a program": re.compile(rb"%!PS"),
    "It is what macOS keeps beside a photo, not the photo": re.compile(rb"\x00\x05\x16\x07"),
    "It holds zeros, as a download that broke off leaves them": re.compile(rb"\0+$"),
    "It is a ZIP archive": re.compile(rb"PK\x03\x04"),
    "It stands for a photo that git lfs pull would fetch": re.compile(rb"version https://"),
}
_HEAD_BYTES = 16

# For EPS Pillow runs Ghostscript: what a photo's file holds must not be run. Of MPEG it knows the
# size alone.
_NOT_READ = frozenset({"EPS", "MPEG"})

# With these the process gets no file at all.
_NO_MORE_FILES = frozenset({errno.EMFILE, errno.ENFILE})

_PILLOW_MODULES = r"PIL\."
# As ``warnings.filters`` holds it.
_IGNORE_PILLOW: object = ("ignore", None, Warning, re.compile(_PILLOW_MODULES), 0)


@dataclass(frozen=True, slots=True)
class Failure:
    """What is wrong with a file.

    Attributes:
        status: ``corrupt``: the pixels cannot be decoded; ``truncated``: the file ends too early;
            ``too-large``: more pixels than Pillow takes for harmless, or than memory holds;
            ``unreadable``: the system refuses to read it; ``unsupported``: no format that Pillow
            decodes; ``vanished``: it is not there, or no longer.
        reason: The same in a sentence, with the values.
    """

    status: FailureStatus
    reason: str


class DecodeError(InputError):
    """A file that gives no pixels.

    Attributes:
        failure: Why not.
    """

    def __init__(self, path: Path | str, failure: Failure) -> None:
        given = restore_url(path)
        super().__init__(f"{given}: {failure.reason}", hint="Replace the file, or leave it out.")
        self.failure = failure


def decode_rgb(path: Path, *, draft: int | None = None) -> Image.Image:
    """Decode a file as :func:`decoded_rgb` does, for as long as the caller keeps the image."""
    with decoded_rgb(path, draft=draft) as image:
        return image


@contextlib.contextmanager
def decoded_rgb(
    path: Path, *, draft: int | None = None, data: bytes | None = None
) -> Iterator[Image.Image]:
    """Decode a file as ``Image.open(path).convert("RGB")`` does in training scripts.

    So the first frame of several; EXIF rotation left alone; transparency dropped; palettes, CMYK,
    grey and 16 bits as Pillow converts them. Up to Pillow's limit of 179 million pixels: where it
    only warns, at half of that, training used the photo. What Pillow and its libraries would print
    is not shown. Only a file is opened: whoever opens a pipe waits for ever.

    Images that are too large for :func:`deploykit.images.memory.decoding_budget` together wait for
    each other, from before the pixels are decoded until the block ends. A block decodes no other
    image: it would wait for itself.

    Args:
        path: The file.
        draft: None for those pixels. A length in pixels, where an image is made to be looked at
            and its sides need be no longer: of a JPEG, whose decoder can leave out detail, it may
            be a smaller one.
        data: The file's bytes, where they are held in memory: then nothing is opened.

    Yields:
        An image in mode RGB, fully loaded; the file is closed.

    Raises:
        DecodeError: The file gives no pixels, for whatever reason.
        InputError: The system opens no more files for this process.
    """
    with contextlib.ExitStack() as held:
        # Pillow gets the open file, not its path: a path may be memory-mapped, and a file that
        # shrinks while it is mapped kills the process.
        with _open(path) if data is None else _opened(data) as file:
            head, size = b"", 0
            try:
                head = file.read(_HEAD_BYTES)
                size = os.fstat(file.fileno()).st_size if data is None else len(data)
                formats = [each for each in Image.ID if each not in _NOT_READ]
                opened = Image.open(file, formats=formats)
                if draft is not None:
                    opened.draft("RGB", (draft, draft))
                held.enter_context(decoding_budget().taking(decoding_bytes(opened)))
                image = _to_rgb(opened)
            except Exception as exc:
                raise DecodeError(path, _failure_of_decoding(exc, head, size)) from exc
        del opened  # and with it pixels in another mode
        try:
            yield image
        finally:
            del image  # before the next may take its memory


def rgb_of(image: Image.Image, name: str) -> Image.Image:
    """Convert an image that is open already to RGB, as :func:`decode_rgb` does with a file.

    Args:
        image: In any mode; it need not be loaded yet.
        name: What an error calls it.

    Returns:
        An image of its own; in mode RGB it shares the other's pixels.

    Raises:
        DecodeError: It gives no pixels.
    """
    try:
        with decoding_budget().taking(decoding_bytes(image)):
            return _to_rgb(image)
    except Exception as exc:
        raise DecodeError(name, _failure_of_decoding(exc, b"", 0)) from exc


def _to_rgb(image: Image.Image) -> Image.Image:
    """``image.convert("RGB")``, less the copy that it makes of pixels that are RGB already."""
    image.load()
    # As ``Image.copy`` does it, but for the pixels. Not the image itself: what Pillow has read a
    # WebP with goes with it.
    return image._new(image.im) if image.mode == "RGB" else image.convert("RGB")  # noqa: SLF001


def exif_orientation(path: Path) -> int:
    """Read how a photo is to be turned, from its header alone.

    Returns:
        EXIF's orientation: 1 for upright, also where the file does not tell.

    Raises:
        DecodeError: The header cannot be read.
    """
    with _open(path) as file:
        try:
            orientation = Image.open(file).getexif().get(ExifTags.Base.Orientation, 1)
        except Exception as exc:
            raise DecodeError(path, _failure_of_decoding(exc, b"", 0)) from exc
    return orientation if isinstance(orientation, int) else 1


@functools.cache
def _silence_libraries() -> None:
    """Keep off stderr what Pillow logs and what libtiff prints: a row says what is wrong.

    For the rest of the process; whoever has set up logging still gets Pillow's records. Where
    libtiff is part of Pillow's own library, as on Windows, it cannot be reached and goes on.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with contextlib.suppress(AttributeError, OSError):
        libtiff = ctypes.CDLL(_imaging.__file__)  # which is linked to it
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)


def _opened(data: bytes) -> BinaryIO:
    """A file's bytes as a file, once Pillow is ready for it."""
    _prepare()
    return io.BytesIO(data)


def _prepare() -> None:
    """Make Pillow ready."""
    # Keep Pillow's warnings from the user: what they tell of is mapped here, or moves no pixel. For
    # the rest of the process: ``catch_warnings`` swaps a list that all threads share, so that
    # decoding threads would undo the filters of the others.
    if _IGNORE_PILLOW not in warnings.filters[:1]:
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES)
    _silence_libraries()
    # Left to itself ``Image.open`` imports the rarer plugins when it meets a file that the common
    # ones do not know. A second thread that does so at the same moment may call a good file
    # unidentified. This is its order; free after the first time.
    Image.preinit()
    Image.init()


def _open(path: Path) -> BinaryIO:
    """Open a file, once Pillow is ready for it."""
    _prepare()
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.open("rb")
    except (OSError, ValueError) as exc:
        if isinstance(exc, OSError) and exc.errno in _NO_MORE_FILES:
            raise InputError(
                f"{path} cannot be opened: {exc.strerror}.",
                hint="Raise the limit of open files (ulimit -n), or close what else is open.",
            ) from exc
        raise DecodeError(path, _failure_of_opening(path, exc)) from exc
    reason = "It is neither a file nor a folder."
    if stat.S_ISDIR(mode):
        reason = "This folder was not listed; its images have no rows."
    raise DecodeError(path, Failure("unreadable", reason))


def _failure_of_opening(path: Path, exc: OSError | ValueError) -> Failure:
    if isinstance(exc, ValueError):
        return Failure("unreadable", f"No file can have this name: {exc}.")
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        link = path.is_symlink()
        reason = "It is a link to a file that is not there." if link else "It is not there."
        if restore_url(path) != str(path):
            reason = "It is a URL, and only files are read; download it first."
        return Failure("vanished", reason)
    return Failure("unreadable", f"The system refuses to open it: {exc.strerror}.")


def _failure_of_decoding(exc: Exception, head: bytes, size: int) -> Failure:
    message = " ".join(str(exc).split()).rstrip(".")
    if isinstance(exc, Image.DecompressionBombError):
        return Failure("too-large", f"{message}.")
    if isinstance(exc, MemoryError):
        return Failure("too-large", "There is not enough memory for its pixels.")
    if isinstance(exc, UnidentifiedImageError) or message.startswith("cannot find loader"):
        return _failure_of_identifying(head)
    if isinstance(exc, OSError) and exc.errno is not None:
        return Failure("unreadable", f"The system fails to read it: {exc.strerror}.")
    if isinstance(exc, EOFError) or "truncated" in message.lower():
        return Failure("truncated", f"The file ends too early: {message or 'no more data'}.")
    # A RIFF header has the length of the whole file, in bytes, without its first eight.
    promised = int.from_bytes(head[4:8], "little") + 8
    if _IMAGES["WebP"].match(head) and size < promised:
        return Failure("truncated", f"The file ends too early: it has {size} of {promised} bytes.")
    if message.startswith("conversion from"):
        return Failure("unsupported", f"Its pixels cannot become RGB: {message}.")
    return Failure("corrupt", f"It cannot be decoded: {message or type(exc).__name__}.")


def _failure_of_identifying(head: bytes) -> Failure:
    if not head:
        return Failure("truncated", "The file is empty.")
    for kind, signature in _IMAGES.items():
        if signature.match(head):
            return Failure("corrupt", f"It begins as {kind}, but its header is damaged or cut off.")
    others = (kind for kind, signature in _OTHERS.items() if signature.match(head))
    kind = next(others, "No image format that Pillow reads")
    text = " ".join(head.decode("ascii", "replace").split())
    shown = f'"{text}"' if text.isascii() and text.isprintable() and text else head[:8].hex(" ")
    return Failure("unsupported", f"{kind}; it begins with {shown}.")
