"""What a running command does to the process: signals, and who may write to stdout."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO

from deploykit.system.text import visible

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

    A signal that is ignored, SIGHUP under ``nohup`` or SIGINT of a shell's job in the background,
    stays ignored; one that is not Python's to handle stays as it is.

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
    if os.name != "nt":
        numbers.append(signal.SIGHUP)
    before = {
        number: signal.signal(number, interrupt)
        for number in numbers
        if signal.getsignal(number) not in (signal.SIG_IGN, None)
    }
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

    Once it failed for whatever reason, the stream leads nowhere, see :func:`lead_nowhere`.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as exc:
        lead_nowhere(stream)
        if not nobody_reads(exc):
            raise
        return False
    return True


def nobody_reads(error: OSError) -> bool:
    """Whether writing failed because whoever read has had enough."""
    # Windows has no error of its own for a pipe that nobody reads.
    return isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)


def lead_nowhere(stream: TextIO) -> None:
    """Let a stream that failed lead nowhere: what it still holds would fail again at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def tell(text: str) -> None:
    """Write lines to stderr; where that fails there is nobody left to tell."""
    with contextlib.suppress(OSError):
        write_while_read(sys.stderr, f"{visible(text, lines=True)}\n")


@contextlib.contextmanager
def visible_warnings() -> Iterator[None]:
    """Let what libraries warn of control no terminal: it may quote a name from a file."""
    before = warnings.formatwarning

    def visibly(*args: Any, **options: Any) -> str:
        return visible(before(*args, **options), lines=True)

    warnings.formatwarning = visibly
    try:
        yield
    finally:
        warnings.formatwarning = before


def _is_process_stdout(stream: TextIO) -> bool:
    """Whether a stream is the process's own stdout, not a test's or a caller's stand-in."""
    try:
        return stream.fileno() == _STDOUT
    except (OSError, ValueError, AttributeError):
        return False
