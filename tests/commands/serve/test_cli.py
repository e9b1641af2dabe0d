"""The command in a process of its own: start, signals, end, several workers."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from deploykit.commands.app import run

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends signals as POSIX has them")


class Command:
    """A server that was started from the command line."""

    def __init__(self, bundle, *options, hang_up=False):
        command = [sys.executable, "-m", "deploykit", "serve", "--bundle", str(bundle.folder)]
        command += ["--port", "0", "--runtime", "onnxruntime-cpu", "--json", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.said, self._hang_up = [], hang_up
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._listening.wait(60), self.said
        self.port = int(re.search(r"listening on http://127.0.0.1:(\d+)", "".join(self.said))[1])

    def _read(self):
        for line in self.process.stderr:
            self.said.append(line)
            if self._hang_up and line.startswith("serving"):
                self.process.send_signal(signal.SIGHUP)
            if "listening on" in line:
                self._listening.set()

    def ask(self, method, path, body=None):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, 20)) as client:
            client.request(method, path, body)
            answer = client.getresponse()
            return answer.status, answer.read()

    def end(self):
        """Wait for its end; gives exit code and result."""
        out = self.process.stdout.read()
        self.process.wait(60)
        self._reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return self.process.returncode, json.loads(out)["result"]


@pytest.fixture
def command():
    started = []

    def start(*arguments, **options):
        started.append(Command(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.end_of_stdout = each.process.communicate()


def until_said(server, text):
    end = time.monotonic() + 30
    while not any(text in line for line in server.said):
        assert time.monotonic() < end, server.said
        time.sleep(0.02)


def test_sigterm_under_load_loses_no_request_that_was_let_in(command, exported_bundle, photo):
    server = command(exported_bundle)
    answered = []

    def ask_again():
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        with contextlib.closing(client):
            while True:
                try:
                    client.request("POST", "/predict", photo)
                    answer = client.getresponse()
                    row = json.loads(answer.read())
                except (ConnectionRefusedError, ConnectionResetError):
                    return  # it ended, and no request was let in
                answered.append((answer.status, row.get("label")))

    clients = [threading.Thread(target=ask_again) for _ in range(8)]
    for client in clients:
        client.start()
    while len(answered) < 100:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    status, body = 0, b""
    with contextlib.suppress(OSError):
        while server.process.poll() is None and status != 503:
            status, body = server.ask("GET", "/v2/health/ready")
    assert (status, json.loads(body)) == (503, {"ready": False})
    for client in clients:
        client.join()
    code, result = server.end()
    # As many as were let in: an answer that was cut off would be missing here.
    assert (code, result) == (0, {"answered": len(answered), "unanswered": 0})
    assert {*answered} == {(200, "red")}


def test_sighup_reloads_and_sigint_ends(command, exported_bundle):
    server = command(exported_bundle)
    server.process.send_signal(signal.SIGHUP)
    until_said(server, "reloaded: colours")
    server.process.send_signal(signal.SIGINT)
    assert server.end() == (0, {"answered": 0, "unanswered": 0})


def test_sighup_before_anybody_is_answered_reloads(command, exported_bundle):
    server = command(exported_bundle, hang_up=True)
    until_said(server, "reloaded: colours")
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == (0, {"answered": 0, "unanswered": 0})


def test_workers_go_on_when_another_cannot_be_started(command, bundle, photo):
    server = command(bundle, "--workers", "2")
    import psutil

    children = psutil.Process(server.process.pid).children()
    workers = [each for each in children if "spawn_main" in " ".join(each.cmdline())]
    (bundle.folder / "bundle.json").write_text("{")
    workers[0].kill()
    until_said(server, "starting another")
    server.process.send_signal(signal.SIGHUP)  # the one that is about to start must survive it
    until_said(server, "answers as before")
    until_said(server, "cannot answer")
    assert server.ask("POST", "/predict", photo)[0] == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == (0, {"answered": 1, "unanswered": 0})


def test_workers_share_an_address_and_one_that_dies_is_replaced(command, exported_bundle, photo):
    server = command(exported_bundle, "--workers", "2")
    count = 0

    def ask_all():
        nonlocal count
        for _ in range(10):
            assert server.ask("POST", "/predict", photo)[0] == 200
            count += 1

    ask_all()
    text = server.ask("GET", "/metrics")[1].decode()
    # Those of both processes, whichever is asked.
    assert 'deploykit_requests_total{route="predict",status="200"} 10.0' in text
    import psutil

    children = psutil.Process(server.process.pid).children()
    workers = [each for each in children if "spawn_main" in " ".join(each.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    until_said(server, "starting another")
    ask_all()
    # As a terminal sends Ctrl+C, to all of them; they have answers to give all the same.
    for each in psutil.Process(server.process.pid).children():
        each.send_signal(signal.SIGINT)
    server.process.send_signal(signal.SIGINT)
    code, result = server.end()
    assert (code, result["unanswered"]) == (0, 0)
    assert result["answered"] <= count  # what the one that died had answered, nobody knows
    assert not any(each.is_running() for each in workers)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--host", "0.0.0.0"], 2, "--api-key-file FILE"),
        (["--max-queue", "0"], 2, "whole number"),
        (["--timeout", "0"], 2, "--timeout must be above 0"),
        (["--timeout", "nan"], 2, "--timeout must be above 0"),
        (["--max-body", "much"], 2, "512MiB"),
        (["--max-delay-ms", "-1"], 2, "--max-delay-ms must be at least 0"),
        (["--port", "70000"], 2, "--port must be"),
        (["--top-k", "4"], 2, "--top-k must be 1 to 3"),
        (["--bundle", "/nowhere"], 4, "/nowhere is not a bundle"),
        (["--api-key-file", "/nowhere"], 4, "cannot be read"),
        (["--host", "no.such.host.invalid", "--no-api-key"], 4, "is no address"),
    ],
)
def test_mistakes_are_told_before_anybody_is_answered(exported_bundle, capsys, options, code, said):
    bundle = ["--bundle", str(exported_bundle.folder)]
    assert run(["serve", *bundle, "--port", "0", "--runtime", "onnxruntime-cpu", *options]) == code
    assert said in capsys.readouterr().err


def test_taken_port_is_told(exported_bundle, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run(["serve", "--bundle", str(exported_bundle.folder), "--port", port]) == 4
    assert f"127.0.0.1:{port} cannot be listened on" in capsys.readouterr().err


def test_missing_package_is_told(exported_bundle, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert run(["serve", "--bundle", str(exported_bundle.folder)]) == 5
    assert 'pip install "deploykit[serve]"' in capsys.readouterr().err
