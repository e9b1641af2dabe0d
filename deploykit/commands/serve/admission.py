"""Which requests are let in, and their bodies: nothing is read that there is no room for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from deploykit.commands.serve.refused import GoneError, RefusedError

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: What bodies may take together while they are read and computed; two of the largest at least.
_BYTES_IN_FLIGHT = 256 * 2**20
#: A body that is not here by then is a slow client's, who keeps others out.
_BODY_SECONDS = 10.0


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        queue: Images that are let in and not answered yet.
        body_bytes: The largest body of a request.
        seconds: From a request's headers to the end of its answer.
    """

    queue: int = 256
    body_bytes: int = 32 * 2**20
    seconds: float = 30.0

    @property
    def bytes_in_flight(self) -> int:
        """What the bodies of all requests that are let in may take together."""
        return max(_BYTES_IN_FLIGHT, 2 * self.body_bytes)

    @property
    def body_seconds(self) -> float:
        """How long a body may take to arrive."""
        return min(_BODY_SECONDS, self.seconds)


class Place:
    """A request's place among those that are let in.

    Attributes:
        images: How many images it holds room for.
    """

    def __init__(self, admission: Admission, size: int) -> None:
        self._admission = admission
        self._bytes = size
        self.images = 0

    def grow(self, images: int) -> None:
        """Hold room for so many images altogether, once the body tells their number.

        Raises:
            RefusedError: There is no such room now (503), or ever (413).
        """
        admission = self._admission
        most = admission.limits.queue
        if images > most:
            raise RefusedError(413, f"A request may have {most} images at most; this has {images}.")
        more = images - self.images
        if admission.images + more > most:
            raise _overloaded(f"{admission.images} images are waiting")
        admission.images += more
        self.images = images

    def leave(self) -> None:
        """Give the room back."""
        self._admission.images -= self.images
        self._admission.bytes -= self._bytes
        self.images = self._bytes = 0


class Admission:
    """Counts what was let in; used by the event loop's thread only.

    Args:
        limits: What there is room for.

    Attributes:
        images: Images that are let in and not answered.
        bytes: What the bodies of their requests take.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.images = 0
        self.bytes = 0

    @contextlib.contextmanager
    def place(self, headers: Mapping[str, str]) -> Iterator[Place]:
        """Hold room for a request during the block: one image, and the body that it announces.

        Raises:
            RefusedError: The body is too large (413), or there is no room (503).
        """
        limits = self.limits
        # One that does not tell its length may have any.
        size = int(headers.get("content-length", limits.body_bytes))
        if size > limits.body_bytes:
            raise too_large(limits)
        if self.bytes + size > limits.bytes_in_flight:
            raise _overloaded(f"bodies of {self.bytes:,} bytes are being answered")
        place = Place(self, size)
        place.grow(1)
        self.bytes += size
        try:
            yield place
        finally:
            place.leave()


def _overloaded(what: str) -> RefusedError:
    message = f"The server is busy: {what}. Try again in a second."
    return RefusedError(503, message, {"Retry-After": "1"})


def too_large(limits: Limits) -> RefusedError:
    """What a client is told whose body is too large."""
    return RefusedError(413, f"A body may have {limits.body_bytes:,} bytes at most.")


async def read_body(receive: Receive, headers: Mapping[str, str], limits: Limits) -> bytes:
    """Read a request's body.

    Args:
        receive: ASGI's.
        headers: The request's, in lower case.
        limits: How large it may be, and how long it may take.

    Raises:
        RefusedError: It is empty (400), too slow (408), too large (413) or compressed (415).
        GoneError: The client closed the connection.
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise RefusedError(415, "A compressed body is not taken: send it without Content-Encoding.")
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise GoneError
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limits.body_bytes:
                    raise too_large(limits)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise RefusedError(
            408, f"The body did not arrive within {limits.body_seconds:g} seconds."
        ) from None
    if not size:
        raise RefusedError(400, "The body is empty.")
    return b"".join(chunks)
