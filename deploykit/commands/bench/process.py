"""The processes that measure for ``bench``, as who asks them sees them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from typing import IO, TypeVar, cast

import msgspec

from deploykit.commands.bench.messages import Refused, Reply, Request
from deploykit.errors import DeploykitError
from deploykit.system.closing import Closing

_Reply = TypeVar("_Reply", bound=Reply)
_PATIENCE_SECONDS = 10.0
#: By the system, on Linux and macOS.
_KILLED = -9
_CHARACTERS = 80
#: It imports what its parent does from where its parent does: from the current folder, which may
#: have modules of any name, only if that is on the parent's path. What libraries print goes to
#: stderr.
_WORKER = """
import os, sys
replies = os.dup(1)
os.dup2(2, 1)
sys.path[:] = sys.argv[1:]
from deploykit.commands.bench.worker import main
main(replies)
"""


class OptionError(Exception):
    """An option failed: the others go on without it.

    Args:
        reason: What failed.
        exit_code: What a command that needs the option ends with.
        damaged: Whether a file of the bundle is missing or has changed.
    """

    def __init__(
        self, reason: str, exit_code: int = DeploykitError.exit_code, *, damaged: bool = False
    ) -> None:
        super().__init__(reason)
        self.exit_code = exit_code
        self.damaged = damaged


class ProcessEndedError(OptionError):
    """An option's process ended, which another one can do without."""


class Process(Closing):
    """A process that measures one option; a context manager that ends it."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(  # noqa: S603  # ours
            [sys.executable, "-c", _WORKER, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._requests = cast("IO[bytes]", self._process.stdin)
        self._replies = cast("IO[bytes]", self._process.stdout)

    @property
    def pid(self) -> int:
        """The system's number for it."""
        return self._process.pid

    def restart(self) -> None:
        """Be a new process, which nothing has been asked yet."""
        self.close()
        self._start()

    def ask(self, request: Request, kind: type[_Reply]) -> _Reply:
        """Let it do something, and wait for the answer.

        Args:
            request: What to do.
            kind: What the answer is.

        Raises:
            OptionError: The option failed.
            ProcessEndedError: The process ended.
        """
        with contextlib.suppress(OSError):  # it has ended: then there is no answer
            self._requests.write(msgspec.json.encode(request) + b"\n")
            self._requests.flush()
        line = self._replies.readline()
        if not line:
            raise ProcessEndedError(self._last_words())
        try:
            reply: Reply = msgspec.json.decode(line, type=Reply)
        except msgspec.MsgspecError as exc:
            said = line.decode("utf-8", "replace").strip()[:_CHARACTERS]
            raise OptionError(f"its process said {said!r} where its answer should be") from exc
        if isinstance(reply, Refused):
            message = reply.message if reply.hint is None else f"{reply.message} {reply.hint}"
            raise OptionError(message, reply.exit_code, damaged=reply.damaged)
        if not isinstance(reply, kind):
            raise TypeError(f"{request} was answered with {reply}")
        return reply

    def _last_words(self) -> str:
        """How the process ended, and the last line that it wrote."""
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        why = f"{last} (that is what happens when memory runs out)" if code == _KILLED else last
        return f"its process ended with exit code {code}: {why}"

    def close(self) -> None:
        """End the process, by asking first."""
        for stream in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                stream.close()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
