"""Serve: answer HTTP requests until told to end."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

from deploykit.commands.serve.keys import check_exposure, read_keys
from deploykit.commands.serve.process import ServeRequest, ServeSummary, serve_here
from deploykit.errors import InputError
from deploykit.system.deps import need
from deploykit.system.progress import Progress

_PACKAGES = ("starlette", "uvicorn", "httptools", "prometheus_client", "python_multipart")

#: Called with the URL once requests are answered.
Started: TypeAlias = Callable[[str], None]


def serve(request: ServeRequest, progress: Progress, started: Started) -> ServeSummary:
    """Answer requests until SIGTERM or SIGINT.

    SIGHUP opens the bundle again. Of both, see ``docs/serve.md``.

    Args:
        request: What to serve.
        progress: Told of what is opened, of reloads and of failures; from other threads, too.
        started: Called once requests are answered.

    Raises:
        UsageError: Other machines could use it without a key.
        InputError: The address is taken, or the file of keys is none.
        DeploykitError: See :class:`deploykit.commands.serve.served.ServedModel`.
    """
    for package in _PACKAGES:
        need(package)
    keys = None if request.api_key_file is None else read_keys(request.api_key_file)
    check_exposure(request.host, has_keys=keys is not None, no_api_key=request.no_api_key)
    with listening(request.host, request.port) as sock:
        if request.workers > 1:
            from deploykit.commands.serve.workers import supervise

            return supervise(request, sock, progress, partial(started, url_of(sock)))
        return serve_here(request, keys, sock, progress, partial(started, url_of(sock)))


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on an address; clients wait until somebody answers.

    Raises:
        InputError: The address is taken, or is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise InputError(f"--host {host} is no address: {exc.strerror}.") from exc
    with sock:
        try:
            if os.name == "posix":  # elsewhere it lets two servers have the same port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(2048)
        except OSError as exc:
            raise InputError(
                f"{host}:{port} cannot be listened on: {exc.strerror}.",
                hint="Name another --port, 0 for any that is free; or another --host.",
            ) from exc
        yield sock


def url_of(sock: socket.socket) -> str:
    """``http://127.0.0.1:8000``."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
