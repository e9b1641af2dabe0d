"""Clients that are too many, too slow or gone: they wait for nobody else's place."""

import contextlib
import socket
import threading
import time

import pytest
from serving import served, until

from deploykit.commands.serve import admission, connection
from deploykit.commands.serve.admission import Limits
from deploykit.runtime._onnxruntime import OnnxRuntimeSession


@pytest.fixture
def gate(monkeypatch, exported_bundle):
    """Lets the session answer only while it is set."""
    compute, is_open = OnnxRuntimeSession._run, threading.Event()
    is_open.set()

    def gated(self, images):
        assert is_open.wait(20)
        return compute(self, images)

    monkeypatch.setattr(OnnxRuntimeSession, "_run", gated)
    yield is_open
    is_open.set()


def everything(client):
    """What comes until the server closes the connection; "" where it only closes it."""
    with contextlib.suppress(ConnectionError):
        return b"".join(iter(lambda: client.recv(65536), b"")).decode()
    return ""


def test_full_queue_is_503_before_the_body_is_read(exported_bundle, photo, gate):
    with served(exported_bundle, limits=Limits(queue=2)) as server:
        gate.clear()
        answers = []
        clients = [
            threading.Thread(target=lambda: answers.append(server.post("/predict", photo)))
            for _ in range(2)
        ]
        for client in clients:
            client.start()
        until(lambda: server.metric("deploykit_images_in_flight") == 2)
        # No byte of the body is sent, and the answer is there.
        with server.connected() as refused:
            refused.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            head = refused.recv(65536).decode()
        assert head.startswith("HTTP/1.1 503 ")
        assert "retry-after: 1" in head.lower()
        assert server.ask("GET", "/v2/health/ready").status == 200  # it is busy, not ill
        gate.set()
        for client in clients:
            client.join(20)
        assert [answer.status for answer in answers] == [200, 200]
        assert server.post("/predict", photo).status == 200
        assert server.metric("deploykit_images_in_flight") == 0


def test_bodies_under_way_are_limited_together(exported_bundle, photo, monkeypatch):
    monkeypatch.setattr(admission, "_BYTES_IN_FLIGHT", 0)  # two of the largest
    with served(exported_bundle, limits=Limits(body_bytes=10_000)) as server:
        with contextlib.ExitStack() as slow:
            for _ in range(2):
                client = slow.enter_context(server.connected())
                client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n")
            until(lambda: server.post("/predict", photo).status == 503)
        until(lambda: server.post("/predict", photo).status == 200)  # they hung up


def test_slow_body_is_408(exported_bundle, monkeypatch):
    monkeypatch.setattr(admission, "_BODY_SECONDS", 0.2)
    with served(exported_bundle) as server, server.connected() as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nabc")
        assert client.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_request_without_an_answer_in_time_is_504(exported_bundle, photo, gate):
    with served(exported_bundle, limits=Limits(seconds=0.5)) as server:
        gate.clear()
        answer = server.post("/predict", photo)
        assert (answer.status, answer.value) == (
            504,
            {"error": "There was no answer within 0.5 seconds."},
        )
        gate.set()
        assert server.post("/predict", photo).status == 200
    assert (server.summary.answered, server.summary.unanswered) == (1, 1)


@pytest.mark.parametrize("sent", [b"", b"POST /pre", b"POST /predict HTTP/1.1\r\nHost: x\r\nX-"])
def test_client_whose_headers_do_not_end_is_sent_away(exported_bundle, monkeypatch, sent):
    monkeypatch.setattr(connection, "_IDLE_SECONDS", 0.1)
    monkeypatch.setattr(connection, "_CHECK_SECONDS", 0.05)
    with served(exported_bundle) as server, server.connected() as client:
        client.sendall(sent)
        assert everything(client) == ""


def test_client_that_sends_on_after_its_answer_is_sent_away(exported_bundle, monkeypatch):
    monkeypatch.setattr(connection, "_IDLE_SECONDS", 0.1)
    monkeypatch.setattr(connection, "_CHECK_SECONDS", 0.05)
    limits = Limits(body_bytes=10)
    with served(exported_bundle, limits=limits) as server, server.connected() as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n")
        assert everything(client).startswith("HTTP/1.1 413 ")


def test_endless_headers_are_refused(exported_bundle):
    with served(exported_bundle) as server, server.connected() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                client.sendall(b"a" * 10_000)
                time.sleep(0.01)
        assert "200" not in everything(client)[:20]


def test_too_many_connections_are_503(exported_bundle, monkeypatch, photo):
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 3)
    with served(exported_bundle) as server:
        with contextlib.ExitStack() as held:
            for _ in range(3):
                held.enter_context(server.connected())
            until(lambda: server.post("/predict", photo).status == 503)
        until(lambda: server.post("/predict", photo).status == 200)


def test_cut_connection_gives_its_place_back(exported_bundle, photo):
    with served(exported_bundle, limits=Limits(queue=1)) as server:
        for _ in range(3):
            with server.connected() as client:
                client.sendall(
                    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nabc"
                )
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        until(lambda: server.post("/predict", photo).status == 200)


def test_no_http_at_all_is_400(server):
    with server.connected() as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01 hello\r\n\r\n")
        assert everything(client).startswith("HTTP/1.1 400 ")


def test_failing_session_is_500_and_the_next_is_answered(exported_bundle, photo, answers):
    is_broken = []

    def change(logits):
        if is_broken:
            raise RuntimeError("out of memory")
        return logits

    answers("deploy/fp32.onnx", change)
    with served(exported_bundle) as server:
        is_broken.append(True)
        assert server.post("/predict", photo).status == 500
        is_broken.clear()
        assert server.post("/predict", photo).status == 200
    assert any("out of memory" in note for note in server.notes)
