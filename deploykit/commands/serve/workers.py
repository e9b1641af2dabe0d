"""Several processes behind one address: started, watched, and ended together."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

import deploykit.errors
from deploykit.commands.serve.keys import read_keys
from deploykit.commands.serve.metrics import SHARED_FOLDER
from deploykit.commands.serve.process import ServeRequest, ServeSummary, serve_here
from deploykit.errors import DeploykitError, InputError
from deploykit.system.progress import Note, Progress, Step
from deploykit.system.threads import usable_cpus

_POLL_SECONDS = 0.25
#: Until a worker that died is started again, and one that could not open the bundle.
_PAUSE_SECONDS, _PAUSE_AFTER_ERROR_SECONDS = 1.0, 10.0


class _Worker:
    """A process and what it tells."""

    def __init__(self, number: int, request: ServeRequest, sock: socket.socket) -> None:
        # Fresh processes: runtimes have threads, which a copy of this process would not have.
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(request, sock, theirs))
        self.process.start()
        theirs.close()
        self.is_ready = self.reload_first = False
        self.summary: ServeSummary | None = None
        self.error: DeploykitError | None = None

    def reload(self) -> None:
        """Let it open the bundle again; not before it is ready, or the signal would end it."""
        pid = self.process.pid
        self.reload_first = not self.is_ready
        if pid is not None and self.is_ready and self.process.is_alive():
            os.kill(pid, signal.SIGHUP)

    def end(self, *, at_once: bool) -> None:
        """Let it answer what it has let in, and end.

        Its pipe tells it, not a signal: on Windows SIGTERM would kill it.
        """
        if at_once or not self.is_ready:
            self.process.terminate()
        else:
            with contextlib.suppress(OSError):  # it has just ended
                self.pipe.send("end")


def supervise(
    request: ServeRequest, sock: socket.socket, progress: Progress, started: Callable[[], None]
) -> ServeSummary:
    """Answer requests in several processes; one that dies is replaced.

    Args:
        request: What to serve; its threads are shared among the workers, unless they are named.
        sock: Listens; every worker accepts from it.
        progress: Told what the workers tell.
        started: Called once all of them answer.

    Raises:
        DeploykitError: A worker cannot open the bundle.
    """
    if request.chosen.threads is None:
        threads = max(1, usable_cpus() // request.workers)
        request = replace(request, chosen=replace(request.chosen, threads=threads))
    before = os.environ.get(SHARED_FOLDER)
    with tempfile.TemporaryDirectory(prefix="deploykit-metrics-") as folder:
        os.environ[SHARED_FOLDER] = folder
        try:
            return _Supervisor(request, sock, progress, started).run()
        finally:
            if before is None:
                del os.environ[SHARED_FOLDER]
            else:
                os.environ[SHARED_FOLDER] = before


class _Supervisor:
    def __init__(
        self,
        request: ServeRequest,
        sock: socket.socket,
        progress: Progress,
        started: Callable[[], None],
    ) -> None:
        self._request, self._sock = request, sock
        self._progress, self._started = progress, started
        self._received: list[int] = []
        self._has_started = self._is_ending = False
        #: When workers that ended are started again, by their numbers.
        self._due: dict[int, float] = {}
        self._workers: list[_Worker] = []
        self._answered = self._unanswered = 0

    def run(self) -> ServeSummary:
        """Start the workers, and return when they have ended."""

        def receive(number: int, frame: FrameType | None) -> None:
            del frame
            self._received.append(number)

        numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if os.name != "nt" else [])]
        before = {number: signal.signal(number, receive) for number in numbers}
        try:
            for number in range(self._request.workers):
                self._workers.append(_Worker(number, self._request, self._sock))
            return self._watched()
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()
            for signal_number, handler in before.items():
                signal.signal(signal_number, handler)

    def _watched(self) -> ServeSummary:
        while self._workers or self._due:
            by_pipe = {worker.pipe: worker for worker in self._workers}
            if not by_pipe:  # Windows would not wait for none
                time.sleep(_POLL_SECONDS)
            for pipe in wait([*by_pipe], timeout=_POLL_SECONDS):
                self._listen(by_pipe[pipe])  # type: ignore[index]  # nothing else is waited for
            if not self._has_started and all(worker.is_ready for worker in self._workers):
                self._has_started = True
                self._started()
            while self._received:
                self._pass_on(self._received.pop(0))
            for number in [n for n, due in self._due.items() if time.monotonic() > due]:
                del self._due[number]
                self._workers.append(_Worker(number, self._request, self._sock))
        return ServeSummary(self._answered, self._unanswered)

    def _pass_on(self, number: int) -> None:
        if number == getattr(signal, "SIGHUP", None):
            for worker in self._workers:
                worker.reload()
            return
        self._due.clear()
        for worker in self._workers:
            worker.end(at_once=self._is_ending)
        self._is_ending = True

    def _listen(self, worker: _Worker) -> None:
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):  # OSError: of what it was told, it has not read all
            self._ended(worker)
            return
        if kind == "note":
            self._progress(Note(f"worker {worker.number}: {value}"))
        elif kind == "ready":
            worker.is_ready = True
            if worker.reload_first:
                worker.reload()
        elif kind == "summary":
            worker.summary = value
        else:
            worker.error = _error_of(*value)

    def _ended(self, worker: _Worker) -> None:
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        if worker.summary is not None:
            self._answered += worker.summary.answered
            self._unanswered += worker.summary.unanswered
        if self._is_ending:
            return
        code = worker.process.exitcode
        error = worker.error
        if error is None and not worker.is_ready:
            error = InputError(f"Worker {worker.number} ended with {code} before it was ready.")
        # Those that answer go on, whatever is wrong with the bundle by now.
        goes_on = self._has_started and any(each.is_ready for each in self._workers)
        if error is not None and not goes_on:
            raise error
        reason = f"ended with {code}" if error is None else f"cannot answer: {error.message}"
        self._progress(Note(f"worker {worker.number} {reason}: starting another"))
        _forget_gauges(worker.process.pid)
        pause = _PAUSE_SECONDS if error is None else _PAUSE_AFTER_ERROR_SECONDS
        self._due[worker.number] = time.monotonic() + pause


def _forget_gauges(pid: int | None) -> None:
    """What a process that died had under way is under way no more."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _error_of(name: str, message: str, hint: str | None) -> DeploykitError:
    kind: type[DeploykitError] = getattr(deploykit.errors, name)
    return kind(message, hint=hint)


def _work(request: ServeRequest, sock: socket.socket, pipe: Any) -> None:
    """A worker's whole life."""
    lock = threading.Lock()

    def tell(kind: str, value: object = None) -> None:
        with lock:
            pipe.send((kind, value))

    def progress(event: Step | Note) -> None:
        if isinstance(event, Note):
            tell("note", event.message)

    def is_told() -> bool:
        try:
            return bool(pipe.poll())  # also that nobody is left to tell it
        except OSError:
            return True

    # A terminal sends Ctrl+C to all processes at once; told twice, a worker would answer nobody.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        keys = None if request.api_key_file is None else read_keys(request.api_key_file)
        summary = serve_here(request, keys, sock, progress, lambda: tell("ready"), is_told)
    except DeploykitError as exc:
        tell("error", (type(exc).__name__, exc.message, exc.hint))
    else:
        tell("summary", summary)
