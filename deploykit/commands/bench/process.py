"""A process for each candidate, so that a crash or a leak of one spoils no other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Concatenate, ParamSpec, TypeVar, cast

from deploykit.commands.bench.measure import OpenCandidate
from deploykit.commands.bench.results import Skipped
from deploykit.errors import BundleError, DeploykitError
from deploykit.images.scan import ImageFile
from deploykit.inference.candidates import Candidate
from deploykit.specs.engine import is_flavour
from deploykit.specs.session import Closing

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")

#: For opening a candidate: importing torch on a slow disk, compiling a large graph.
OPENING_SECONDS = 300.0
#: For all else: so many times what it should take, and at least so long.
_PATIENCE = 10
_LEAST_PATIENCE_SECONDS = 60.0
_SECONDS_TO_END = 10.0
#: By the system, on Linux and macOS.
_KILLED = -9


class CandidateProcess(Closing):
    """A process that opens a candidate and measures it; a context manager that ends it.

    Args:
        folder: The bundle.
        candidate: What to open.
        files: The sample.
        known: See :class:`OpenCandidate`.
        log: Where what is printed in the process goes.

    Attributes:
        candidate: The same.
        patience_seconds: How long the next answer is waited for; see :meth:`expect`.
    """

    def __init__(
        self,
        folder: Path,
        candidate: Candidate,
        files: list[ImageFile],
        known: Mapping[str, tuple[str, ...]],
        log: Path,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.candidate = candidate
        self.patience_seconds = OPENING_SECONDS
        self._log = log
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_answer_requests,
            args=(theirs, log, folder, candidate, files, known, time.time()),
            daemon=True,
        )
        with _as_a_fresh_program():
            self._process.start()
        theirs.close()  # so that the end of the process ends the pipe

    def expect(self, seconds: float) -> None:
        """Say how long an answer should take: a multiple of it is waited for from now on."""
        self.patience_seconds = max(_LEAST_PATIENCE_SECONDS, _PATIENCE * seconds)

    def ask(
        self,
        method: Callable[Concatenate[OpenCandidate, _Given], _Found],
        *args: _Given.args,
        **options: _Given.kwargs,
    ) -> _Found | Skipped:
        """Call a method of the open candidate in its process.

        Returns:
            What the method returns; or why the candidate is skipped: it does not open, the method
            fails, or the process has ended or hangs.
        """
        with contextlib.suppress(OSError):  # the process has ended, and the reply says why
            self._connection.send((method, args, options))
        if not self._connection.poll(self.patience_seconds):
            reason = (
                f"its process did not answer within {self.patience_seconds:.0f} seconds, and was "
                "ended"
            )
            self._process.kill()
            return Skipped(candidate=self.candidate, reason=reason)
        try:
            return cast("_Found | Skipped", self._connection.recv())
        except (EOFError, OSError):
            return Skipped(candidate=self.candidate, reason=self._how_it_ended())

    def _how_it_ended(self) -> str:
        """The exit code, and the last line that the process wrote."""
        self._process.join(_SECONDS_TO_END)
        code = self._process.exitcode
        said = self._log.read_text("utf-8", "replace").strip() if self._log.exists() else ""
        why = (said or "it said nothing").splitlines()[-1].strip()
        if code == _KILLED:
            why += " (this happens when memory runs out: smaller --batch-sizes may help)"
        return f"its process ended with exit code {code}: {why}"

    def close(self) -> None:
        """End the process, whatever it is doing: it has nothing to save."""
        self._connection.close()
        self._process.kill()
        self._process.join(_SECONDS_TO_END)  # one that waits for a disk or a driver ends later


@contextlib.contextmanager
def _as_a_fresh_program() -> Iterator[None]:
    """Start processes that do not depend on the program that starts them.

    A spawned process runs the file of ``__main__`` again, which a script without
    ``if __name__ == "__main__"`` does not survive: so it is shown none. It looks for Python's own
    modules in the current folder, which may have a ``random.py``: so it must not. And Ctrl+C would
    make it print a traceback: so the parent alone hears of that, and ends it.
    """
    if sys.platform != "win32":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # when it starts, it lets SIGINT through again
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    main, safe_path = sys.modules["__main__"], os.environ.get("PYTHONSAFEPATH")
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if safe_path is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = safe_path
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)


def _answer_requests(
    connection: Connection,
    log: Path,
    folder: Path,
    candidate: Candidate,
    files: list[ImageFile],
    known: Mapping[str, tuple[str, ...]],
    started: float,
) -> None:
    """Open a candidate and call its methods, in the process that was started for it."""
    with log.open("wb") as stream:
        # What libraries print must not get into the result on the parent's stdout.
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        opened = OpenCandidate(folder, candidate, files, known, started)
        while True:
            method, args, options = connection.recv()  # raises EOFError when the parent has ended
            connection.send(method(opened, *args, **options))
    except DeploykitError as exc:
        connection.send(
            Skipped(
                candidate=candidate,
                reason=exc.message if exc.hint is None else f"{exc.message} {exc.hint}",
                # A damaged engine can be built again, and may be older than its graph anyway.
                damaged=isinstance(exc, BundleError) and not is_flavour(candidate.runtime),
            )
        )
