"""What a running command does to the process: signals, and who may write to stdout."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TextIO

_STDOUT, _STDERR = 1, 2


def open_standard_streams() -> None:
    """Let standard streams that whoever started us has closed lead nowhere.

    Else the next file that is opened, a table perhaps, would be stdout to all that prints.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    while nowhere <= _STDERR:
        nowhere = os.open(os.devnull, os.O_RDWR)
    os.close(nowhere)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123  # as long as the process


@contextlib.contextmanager
def interruptions() -> Iterator[list[int]]:
    """Let SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt: whatever is open is cleaned up.

    A signal that is ignored, SIGHUP under ``nohup``, stays ignored.

    Yields:
        The signals so far. A library that is interrupted may swallow the exception and fail in a
        way of its own; then this still tells what happened.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if os.name != "nt" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def reserved_stdout(*, whole_process: bool) -> Iterator[TextIO]:
    """Keep stdout for the result: what else is printed meanwhile goes to stderr.

    Args:
        whole_process: Also what is written past Python, by C code or child processes.

    Yields:
        The stream for the result.
    """
    real = sys.stdout
    if not (whole_process and _is_process_stdout(real)):
        with contextlib.redirect_stdout(sys.stderr):
            yield real
        return
    real.flush()
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        with (
            contextlib.redirect_stdout(sys.stderr),
            os.fdopen(os.dup(kept), "w", encoding=real.encoding, errors=real.errors) as stream,
        ):
            yield stream
    finally:
        os.dup2(kept, _STDOUT)
        os.close(kept)


def write_while_read(stream: TextIO, text: str) -> bool:
    """Write a text, unless whoever reads the stream has had enough: ``| head`` is no failure.

    Returns:
        Whether anyone still reads.

    Raises:
        OSError: The system fails to write it, for any other reason.

    Once it failed for whatever reason, the stream leads nowhere: what it still holds would fail
    again when it is closed.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as exc:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        # Windows has no error of its own for a pipe that nobody reads.
        if not (
            isinstance(exc, BrokenPipeError) or (os.name == "nt" and exc.errno == errno.EINVAL)
        ):
            raise
        return False
    return True


def _is_process_stdout(stream: TextIO) -> bool:
    """Whether a stream is the process's own stdout, not a test's or a caller's stand-in."""
    try:
        return stream.fileno() == _STDOUT
    except (OSError, ValueError, AttributeError):
        return False
