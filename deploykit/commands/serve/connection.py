"""The HTTP server: uvicorn, with what it lacks against clients that dawdle or are too many."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Generator
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

#: How many clients may be connected. A process may usually have 1,024 files open.
MOST_CONNECTIONS = 900
#: A client that is connected and asks nothing, or whose headers do not end, is sent away.
_IDLE_SECONDS = 10.0
_CHECK_SECONDS = 2.0
_MOST_HEADER_BYTES = 64 * 2**10
#: More than the minute after which the usual load balancers close a connection that is idle: who
#: closes first must be who would ask next.
_KEEP_ALIVE_SECONDS = 65
#: How long a connection that is idle stays open when the server ends.
_LAST_SECONDS = 0.2
_BUSY_BODY = b'{"error": "The server has too many connections. Try again in a second."}'
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: application/json\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(_BUSY_BODY), _BUSY_BODY)
)


class _Connection(HttpToolsProtocol):
    """A client: sent away when nothing of its making happens."""

    _since = 0.0
    _header_bytes: int | None = 0
    _is_receiving = True  # or will be: its first request
    _is_one_too_many = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_one_too_many = len(self.connections) > MOST_CONNECTIONS
        self._since = self.loop.time()
        self._check()

    def _check(self) -> None:
        if self.transport.is_closing():
            return
        seconds = _IDLE_SECONDS if self._is_receiving else _KEEP_ALIVE_SECONDS
        if self._is_idle() and self.loop.time() - self._since > seconds:
            self.transport.abort()
            return
        self.loop.call_later(_CHECK_SECONDS, self._check)

    def _is_idle(self) -> bool:
        """Whether no request of the client's is being answered."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    def data_received(self, data: bytes) -> None:
        if self._is_one_too_many:
            self.transport.write(_BUSY)
            self.transport.close()
            return
        if self._header_bytes is not None:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._header_bytes is not None and self._header_bytes > _MOST_HEADER_BYTES:
            self.send_400_response("The request's headers are too large.")

    def shutdown(self) -> None:
        # A request may be on its way to a connection that is idle: its answer closes it.
        if self._is_idle():
            self.loop.call_later(_LAST_SECONDS, super().shutdown)
        else:
            super().shutdown()

    def on_message_begin(self) -> None:
        self._since = self.loop.time()
        self._header_bytes = 0
        self._is_receiving = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._header_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_receiving = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()


class Server(uvicorn.Server):
    """uvicorn's server; signals are the caller's.

    Args:
        app: What answers.
        drain_seconds: How long requests under way have when it ends.
    """

    def __init__(self, app: ASGIApp, drain_seconds: float) -> None:
        # What goes wrong with a connection is the client's affair; what fails here, the app tells.
        logging.getLogger("uvicorn.error").addHandler(logging.NullHandler())
        config = uvicorn.Config(
            cast(Any, app),  # the same, in other words than Starlette's
            loop="asyncio",
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(drain_seconds) + 1,
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone."""
        yield
