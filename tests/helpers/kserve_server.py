"""A small server that speaks KServe's protocol, version 2, over HTTP, and can be told to lie."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

TYPES = {"UINT8": np.uint8, "FP32": np.float32}
BINARY = "binary_tensor_data"


@dataclass
class Model:
    """What a server has, and how it answers.

    Attributes:
        answer: From an input's name and values to each output's values.
        inputs: Name, datatype and shape of each.
        outputs: The same of the outputs.
        extensions: Of the protocol.
        labels: For the extension ``classification``.
        max_batch_size: 0 for no such thing.
        ready: Whether the model is.
        key: What a request has to have; "" for nothing.
        delay_s: Seconds before each answer to an inference.
        requests: The bodies' heads of the inferences so far.
    """

    answer: Callable[[str, np.ndarray], dict[str, np.ndarray]]
    inputs: list[tuple[str, str, list[int]]]
    outputs: list[tuple[str, str, list[int]]]
    name: str = "colours"
    extensions: tuple[str, ...] = (BINARY,)
    labels: tuple[str, ...] = ()
    max_batch_size: int = 0
    ready: bool = True
    key: str = ""
    delay_s: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    model: Model

    def do_GET(self) -> None:
        model, path = self.model, f"/v2/models/{self.model.name}"
        if not self._may():
            return
        tensors = {
            side: [{"name": n, "datatype": d, "shape": s} for n, d, s in getattr(model, side)]
            for side in ("inputs", "outputs")
        }
        pages = {
            "/v2": {"name": "made", "version": "1.0", "extensions": [*model.extensions]},
            path: {"name": model.name, "platform": "", "versions": ["1"], **tensors},
            f"{path}/config": {"name": model.name, "max_batch_size": model.max_batch_size},
        }
        if self.path == f"{path}/ready":
            self._send(200 if model.ready else 400, b"")
        elif self.path in pages:
            self._send(200, json.dumps(pages[self.path]).encode())
        else:
            self._send(404, json.dumps({"error": f"no model at {self.path}"}).encode())

    def do_POST(self) -> None:
        model = self.model
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._may():
            return
        size = int(self.headers.get("Inference-Header-Content-Length", len(body)))
        head = json.loads(body[:size])
        model.requests.append(head)
        time.sleep(model.delay_s)
        (given,) = head["inputs"]
        if size < len(body) and BINARY not in model.extensions:
            self._send(422, json.dumps({"error": "binary tensors are not taken"}).encode())
            return
        try:
            values = _values(given, body[size:])
            found = model.answer(given["name"], values)
        except ValueError as exc:
            self._send(400, json.dumps({"error": str(exc)}).encode())
            return
        outputs, tail = [], b""
        for wanted in head["outputs"]:
            options, array = wanted.get("parameters", {}), found[wanted["name"]]
            if count := options.get("classification"):
                array = _ranked(array, count, model.labels)
            told, raw = _told(wanted["name"], array, binary=options.get("binary_data", False))
            outputs.append(told)
            tail += raw
        text = json.dumps({"model_name": model.name, "outputs": outputs}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))} if tail else {}
        self._send(200, text + tail, headers)

    def _may(self) -> bool:
        key = self.model.key
        if not key or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self._send(401, json.dumps({"error": "no such key"}).encode())
        return False

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def _values(given: dict[str, Any], raw: bytes) -> np.ndarray:
    if given["datatype"] == "BYTES":
        files = []
        while raw:
            (size,) = struct.unpack_from("<I", raw)
            files.append(raw[4 : 4 + size])
            raw = raw[4 + size :]
        values = np.empty(len(files), np.object_)
        values[:] = files
    elif "data" in given:
        values = np.array(given["data"], TYPES[given["datatype"]])
    else:
        values = np.frombuffer(raw, TYPES[given["datatype"]])
    return values.reshape(given["shape"])


def _ranked(array: np.ndarray, count: int, labels: tuple[str, ...]) -> np.ndarray:
    """What the extension ``classification`` gives: ``score:place:label``, the best first."""
    rows = [
        [f"{row[i]}:{i}:{labels[i]}".encode() for i in np.argsort(-row)[:count]] for row in array
    ]
    return np.array(rows, np.object_)


def _told(name: str, array: np.ndarray, *, binary: bool) -> tuple[dict[str, Any], bytes]:
    kind = "BYTES" if array.dtype == np.object_ else "FP32"
    told = {"name": name, "datatype": kind, "shape": [*array.shape]}
    if not binary:
        data = array.reshape(-1).tolist()
        told["data"] = [e.decode() if isinstance(e, bytes) else e for e in data]
        return told, b""
    if kind == "BYTES":
        raw = b"".join(struct.pack("<I", len(e)) + e for e in array.reshape(-1).tolist())
    else:
        raw = array.astype(np.float32).tobytes()
    return {**told, "parameters": {"binary_data_size": len(raw)}}, raw


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


@contextmanager
def serving(model: Model) -> Iterator[str]:
    """A server on this machine alone, on a free port; its address."""
    handler = type("Handler", (_Handler,), {"model": model})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
