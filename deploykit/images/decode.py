"""A photo to RGB pixels, the same as in training, or to a reason why not."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from PIL import Image, UnidentifiedImageError

from deploykit.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

FailureStatus: TypeAlias = Literal[
    "corrupt", "too-large", "truncated", "unreadable", "unsupported", "vanished"
]

# Of the formats that photos come in, by their first bytes.
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_HEAD_BYTES = 16

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
            knows; ``vanished``: it is not there, or no longer.
        reason: The same in a sentence, with the values.
    """

    status: FailureStatus
    reason: str


class DecodeError(InputError):
    """A file that gives no pixels.

    Attributes:
        failure: Why not.
    """

    def __init__(self, path: Path, failure: Failure) -> None:
        super().__init__(f"{path}: {failure.reason}", hint="Replace the file, or leave it out.")
        self.failure = failure


def decode_rgb(path: Path) -> Image.Image:
    """Decode a file as ``Image.open(path).convert("RGB")`` does in training scripts.

    So the first frame of several; EXIF rotation left alone; transparency dropped; palettes, CMYK,
    grey and 16 bits as Pillow converts them. Up to Pillow's limit of 179 million pixels: where it
    only warns, at half of that, training used the photo. Pillow's warnings are not shown.

    Returns:
        An image in mode RGB, fully loaded; the file is closed.

    Raises:
        DecodeError: The file gives no pixels, for whatever reason.
    """
    _ignore_pillow_warnings()
    _load_every_decoder()
    try:
        file = path.open("rb")
    except OSError as exc:
        raise DecodeError(path, _failure_of_opening(path, exc)) from exc
    # Pillow gets the open file, not its path: a path may be memory-mapped, and a file that shrinks
    # while it is mapped kills the process.
    with file:
        head = b""
        try:
            head = file.read(_HEAD_BYTES)
            image = Image.open(file)
            return image.convert("RGB")
        except Exception as exc:
            raise DecodeError(path, _failure_of_decoding(exc, head)) from exc


def _ignore_pillow_warnings() -> None:
    """Keep Pillow's warnings from the user: what they tell of is mapped here, or moves no pixel.

    For the rest of the process: ``catch_warnings`` swaps a list that all threads share, so that
    decoding threads would undo the filters of the others.
    """
    if _IGNORE_PILLOW not in warnings.filters[:1]:
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES)


def _load_every_decoder() -> None:
    """Import Pillow's plugins before ``Image.open`` does so itself; free after the first time.

    Left to itself it imports the rarer ones when it meets a file that the common ones refuse; a
    second thread that does so at the same moment may call a good file unidentified. The order is
    ``Image.open``'s.
    """
    Image.preinit()
    Image.init()


def _failure_of_opening(path: Path, exc: OSError) -> Failure:
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        link = path.is_symlink()
        reason = "It is a link to a file that is not there." if link else "It is no longer there."
        return Failure("vanished", reason)
    if _is_folder(path):
        return Failure("unreadable", "This folder cannot be listed; its images have no rows.")
    return Failure("unreadable", f"The system refuses to open it: {exc.strerror}.")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # in a folder that may be listed but not entered
        return False


def _failure_of_decoding(exc: Exception, head: bytes) -> Failure:
    message = " ".join(str(exc).split()).rstrip(".")
    if isinstance(exc, Image.DecompressionBombError):
        return Failure("too-large", f"{message}.")
    if isinstance(exc, MemoryError):
        return Failure("too-large", "There is not enough memory for its pixels.")
    if isinstance(exc, UnidentifiedImageError):
        return _failure_of_identifying(head)
    if isinstance(exc, OSError) and exc.errno is not None:
        return Failure("unreadable", f"The system fails to read it: {exc.strerror}.")
    if isinstance(exc, EOFError) or "truncated" in message.lower():
        return Failure("truncated", f"The file ends too early: {message or 'no more data'}.")
    if message.startswith("conversion from"):
        return Failure("unsupported", f"Its pixels cannot become RGB: {message}.")
    return Failure("corrupt", f"It cannot be decoded: {message or type(exc).__name__}.")


def _failure_of_identifying(head: bytes) -> Failure:
    if not head:
        return Failure("truncated", "The file is empty.")
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return Failure("corrupt", f"It begins as {kind}, but its header is damaged or cut off.")
    return Failure("unsupported", f"No image format that Pillow reads; it begins with {head!r}.")
