"""The line of somebody's code that an error comes from."""

from __future__ import annotations

import linecache
import sys
import traceback
from types import FrameType

#: Whose lines say nothing to who wrote the network, and Python's own.
_LIBRARIES = frozenset({"deploykit", "numpy", "onnx_ir", "onnxscript", "torch"})


def failing_line(error: BaseException) -> str:
    """The innermost line of an error's traceback that is not a library's.

    Returns:
        ``net.py:18, in forward: if x.sum() > 0:``; empty where there is no such line.
    """
    frames = [*traceback.walk_tb(error.__traceback__)]
    return next((_described(*each) for each in reversed(frames) if not _is_library(each[0])), "")


def failure_text(error: BaseException) -> str:
    """What somebody's code raised and where, in a line or what the error itself says in more.

    Returns:
        ``ValueError: expected 32x32 (net.py:18, in forward: raise ValueError(...))``.
    """
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)
        reason = f"it ends the program, by sys.exit({code})"
    line = failing_line(error)
    return f"{reason} ({line})" if line else reason


def running_line() -> str:
    """The innermost line, of those that run now, that is not a library's; see failing_line."""
    frames = traceback.walk_stack(sys._getframe())  # noqa: SLF001  # walk_stack(None) skips some
    return next((_described(*each) for each in frames if not _is_library(each[0])), "")


def described_line(path: str, line: int | str, function: str, text: str) -> str:
    """Say where a line is and what stands there."""
    name = path.replace("\\", "/").rpartition("/")[2]
    return f"{name}:{line}, in {function}" + (f": {text}" if text else "")


def _is_library(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in _LIBRARIES or package in sys.stdlib_module_names


def _described(frame: FrameType, line: int) -> str:
    code = frame.f_code
    text = linecache.getline(code.co_filename, line).strip()
    return described_line(code.co_filename, line, code.co_name, text)
