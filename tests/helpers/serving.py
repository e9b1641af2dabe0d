"""A server in a thread of this process, and clients of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deploykit.bundle.folder import Bundle
from deploykit.commands.serve import run
from deploykit.commands.serve.admission import Limits
from deploykit.commands.serve.keys import read_keys
from deploykit.commands.serve.process import ServeRequest, ServeSummary, serve_here
from deploykit.commands.serve.served import Chosen


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        """The JSON."""
        return json.loads(self.body)


@dataclass
class Served:
    """A server that runs, or has run."""

    port: int = 0
    notes: list[str] = field(default_factory=list)
    summary: ServeSummary | None = None

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        **headers: str,
    ) -> Answer:
        """Ask once, over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.headers), answer.read())

    def post(self, path: str, body: bytes | Iterator[bytes], **headers: str) -> Answer:
        """Send a body."""
        return self.ask("POST", path, body, **headers)

    def connected(self) -> socket.socket:
        """A client that speaks for itself."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def metric(self, name: str) -> float:
        """The value of a counter, with its labels as they are written."""
        for line in self.ask("GET", "/metrics").body.decode().splitlines():
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
        return 0.0


@contextlib.contextmanager
def served(
    bundle: Bundle, *, limits: Limits | None = None, keys: Any = None, **options: Any
) -> Iterator[Served]:
    """Serve a bundle during the block, on ONNX Runtime's CPU provider."""
    names = Chosen.__dataclass_fields__.keys() & options.keys()
    chosen = {name: options.pop(name) for name in names}
    chosen = {"bundle": str(bundle.folder), "runtime": "onnxruntime-cpu", "threads": 2} | chosen
    request = ServeRequest(Chosen(**chosen), limits or Limits(), port=0, **options)
    found, is_up, stop = Served(), threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def serve() -> None:
        try:
            with run.listening("127.0.0.1", 0) as sock:
                found.port = sock.getsockname()[1]
                found.summary = serve_here(
                    request,
                    None if keys is None else read_keys(keys),
                    sock,
                    lambda event: found.notes.append(str(getattr(event, "message", ""))),
                    is_up.set,
                    stop.is_set,
                )
        except BaseException as exc:  # noqa: BLE001  # raised again by whoever waits
            errors.append(exc)
        finally:
            is_up.set()

    thread = threading.Thread(target=serve)
    thread.start()
    is_up.wait(30)
    try:
        if not errors:
            yield found
    finally:
        stop.set()
        thread.join(60)
    if errors:
        raise errors[0]


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, and fail where it does not come."""
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
