"""The images in the body of a ``POST /predict``: one, several parts of a form, or a JSON list.

All of it stays in memory: a library's form reader keeps what is large in a file.
"""

from __future__ import annotations

import base64
import binascii
import logging
from typing import NamedTuple

import msgspec

from deploykit.commands.serve.refused import RefusedError

FORM = "multipart/form-data"
JSON = "application/json"
#: How many parts of a form are looked at: a part that is no image is cheap to send.
_PARTS_PER_IMAGE = 2
_QUIET = logging.NullHandler()


class Uploads(NamedTuple):
    """The images of a request.

    Attributes:
        images: What their files hold.
        names: What their rows are called.
        is_list: Whether the answer is a list of rows; else it is one row.
    """

    images: list[bytes]
    names: list[str]
    is_list: bool


def read_uploads(body: bytes, content_type: str, most: int) -> Uploads:
    """Find the images in a body.

    Args:
        body: The body.
        content_type: As the client says; what is neither a form nor JSON is one image, whatever it
            is called.
        most: How many images a request may have: a form of many more parts is not read.

    Raises:
        RefusedError: It is no form, no list of base64, or has no images.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == FORM:
        uploads = _read_form(body, content_type, most)
    elif kind == JSON:
        uploads = _read_json(body)
    else:
        return Uploads([body], ["image"], is_list=False)
    if not uploads.images:
        raise RefusedError(400, "There is no image in the body.")
    return uploads


def _read_json(body: bytes) -> Uploads:
    try:
        texts = msgspec.json.decode(body, type=list[str])
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise RefusedError(400, f"The body is no JSON list of images in base64: {exc}.") from exc
    images = [decoded_base64(text, f"image {place}") for place, text in enumerate(texts)]
    return Uploads(images, [f"image {place}" for place in range(len(images))], is_list=True)


def decoded_base64(text: str, what: str) -> bytes:
    """The bytes that a text stands for, RFC 4648.

    Raises:
        RefusedError: It is no base64, or stands for nothing.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise RefusedError(400, f"{what} is no base64: {exc}.") from exc
    if not data:
        raise RefusedError(400, f"{what} is empty.")
    return data


class _Part:
    """A part of a form, as the parser tells of it."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.field, self.value = bytearray(), bytearray()
        self.data = bytearray()


class _Form:
    """Collects the parts that are files; a parser calls it."""

    def __init__(self, most_parts: int) -> None:
        self.parts: list[_Part] = []
        self.is_whole = False
        self._most = most_parts

    def on_part_begin(self) -> None:
        if len(self.parts) == self._most:
            raise RefusedError(413, f"The form has more than {self._most} parts.")
        self.parts.append(_Part())

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].value += data[start:end]

    def on_header_end(self) -> None:
        part = self.parts[-1]
        part.headers[bytes(part.field).lower()] = bytes(part.value)
        part.field, part.value = bytearray(), bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += memoryview(data)[start:end]

    def on_end(self) -> None:
        self.is_whole = True


_EVENTS = (
    *("on_part_begin", "on_header_field", "on_header_value", "on_header_end"),
    *("on_part_data", "on_end"),
)


def _read_form(body: bytes, content_type: str, most: int) -> Uploads:
    """The files of a form, in their order; its other fields mean nothing."""
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(content_type)
    if not (boundary := options.get(b"boundary")):
        raise RefusedError(400, "The form has no boundary in its Content-Type.")
    # What clients send wrong is theirs to know; else each would write to stderr.
    logging.getLogger("python_multipart").addHandler(_QUIET)
    form = _Form(_PARTS_PER_IMAGE * most)
    try:
        parser = MultipartParser(boundary, {event: getattr(form, event) for event in _EVENTS})  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as exc:
        raise RefusedError(400, f"The form is damaged: {exc}.") from exc
    if not form.is_whole:
        raise RefusedError(400, "The form ends too early.")
    images: list[bytes] = []
    names: list[str] = []
    for part in form.parts:
        _, found = parse_options_header(part.headers.get(b"content-disposition", b""))
        if b"filename" in found:
            images.append(bytes(part.data))
            # As a folder's files are called: half a character is kept as bytes are in a path.
            name = found[b"filename"].decode("utf-8", "surrogateescape")
            names.append(name or f"image {len(names)}")
    return Uploads(images, names, is_list=True)
