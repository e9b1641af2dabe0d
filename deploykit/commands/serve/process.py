"""One process that answers requests until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

from deploykit.commands.serve.admission import Limits
from deploykit.commands.serve.keys import ApiKeys
from deploykit.commands.serve.served import Chosen, ServedModel
from deploykit.commands.serve.service import Service, served_text
from deploykit.errors import UsageError
from deploykit.system.progress import Note, Progress

#: Between "not ready" and the end: clients that keep a connection learn from their next answer that
#: it closes, and whoever balances the load asks nothing more.
_NOTICE_SECONDS = 0.5
#: Between two looks whether the bundle is another one, and whether this process is told to end.
_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class ServeRequest:
    """What to serve, where, and to whom.

    Attributes:
        chosen: Which bundle, and how it is opened.
        limits: What is let in.
        host: The address to bind to.
        port: 0 for a free one.
        workers: Processes.
        watch: Whether to reload when the bundle's manifest changes.
        api_key_file: See :func:`deploykit.commands.serve.keys.read_keys`.
        no_api_key: Whether everybody who reaches the address may ask.
    """

    chosen: Chosen = field(default_factory=Chosen)
    limits: Limits = field(default_factory=Limits)
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    watch: bool = False
    api_key_file: Path | None = None
    no_api_key: bool = False

    def __post_init__(self) -> None:
        numbers = (
            ("--workers", self.workers),
            ("--max-queue", self.limits.queue),
            ("--threads", self.chosen.threads),
            ("--max-batch", self.chosen.max_batch),
        )
        for option, number in numbers:
            if number is not None and number < 1:
                raise UsageError(f"{option} must be at least 1; got {number}.")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port must be 0 to 65535; got {self.port}.")
        if not self.limits.seconds > 0:
            raise UsageError(f"--timeout must be above 0 seconds; got {self.limits.seconds:g}.")
        if not self.chosen.max_delay_ms >= 0:
            raise UsageError(
                f"--max-delay-ms must be at least 0; got {self.chosen.max_delay_ms:g}."
            )


@dataclass(frozen=True)
class ServeSummary:
    """What a server did until it ended.

    Attributes:
        answered: Requests with images that were let in and answered.
        unanswered: Those that were let in and had no answer in time, or failed.
    """

    answered: int
    unanswered: int


def serve_here(
    request: ServeRequest,
    keys: ApiKeys | None,
    sock: socket.socket,
    progress: Progress,
    started: Callable[[], None],
    is_told: Callable[[], bool] | None = None,
) -> ServeSummary:
    """Answer requests in this process.

    Args:
        request: What to serve.
        keys: Who may ask.
        sock: Where; it is closed at the end.
        progress: Told of what is opened, of reloads and of failures; from other threads, too.
        started: Called once requests are answered.
        is_told: Asked now and then whether to end, where a signal cannot tell it.
    """
    from deploykit.commands.serve.metrics import Metrics

    metrics = Metrics()
    open_model = partial(ServedModel, request.chosen, metrics.batch, progress)
    with _early_hangup() as hung_up:
        service = Service(open_model, metrics, request.limits, keys, progress)
        try:
            progress(Note(f"serving {served_text(service.model)}"))
            asyncio.run(_answer(service, request, sock, started, is_told, hung_up))
        finally:
            service.close()
    return ServeSummary(service.answered, service.unanswered)


async def _answer(
    service: Service,
    request: ServeRequest,
    sock: socket.socket,
    started: Callable[[], None],
    is_told: Callable[[], bool] | None,
    hung_up: threading.Event,
) -> None:
    from deploykit.commands.serve.app import App
    from deploykit.commands.serve.connection import Server

    server = Server(App(service), request.limits.seconds)
    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    reloads: set[asyncio.Task[None]] = set()

    def end() -> None:
        if ending.is_set():  # told twice: whoever waits for an answer waits in vain
            server.should_exit = server.force_exit = True
        ending.set()

    def reload() -> None:
        task = loop.create_task(service.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    with _signals(loop, end, reload):
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        while not (server.started or serving.done()):
            await asyncio.sleep(0.01)
        if server.started:  # else it has failed, which is raised below
            started()
        if hung_up.is_set():
            reload()
        watching = asyncio.create_task(_watch(service, end, is_told, watch=request.watch))
        waiting = asyncio.create_task(ending.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        service.is_draining = True
        watching.cancel()
        await asyncio.sleep(_NOTICE_SECONDS)
        server.should_exit = True
        await serving
        waiting.cancel()
        await asyncio.gather(*reloads)  # or what it opens would stay open


async def _watch(
    service: Service,
    end: Callable[[], None],
    is_told: Callable[[], bool] | None,
    *,
    watch: bool,
) -> None:
    """Look now and then for another bundle, and whether to end."""
    while is_told is None or not is_told():
        await asyncio.sleep(_WATCH_SECONDS)
        if watch:
            await service.reload_if_changed()
    end()


@contextlib.contextmanager
def _early_hangup() -> Iterator[threading.Event]:
    """Remember a SIGHUP that comes before there is a model to replace: it would end the process.

    After the last answer it means nothing any more.
    """
    came = threading.Event()
    if os.name == "nt" or threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGHUP, lambda *_: came.set())
    try:
        yield came
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def _signals(
    loop: asyncio.AbstractEventLoop, end: Callable[[], None], reload: Callable[[], None]
) -> Iterator[None]:
    """Let SIGTERM and SIGINT end, and SIGHUP reload; only the main thread gets signals.

    What is ignored and would end stays ignored: Ctrl+C by a job in the background, and by a worker,
    whose supervisor tells it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {
        number: end
        for number in (signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    if os.name != "nt":
        handlers[signal.SIGHUP] = reload

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        loop.call_soon_threadsafe(handlers[signal.Signals(number)])

    before = {number: signal.signal(number, handle) for number in handlers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
