"""The two flavours of TensorRT behind one seam: which are installed, and one of them, open."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from deploykit.errors import DependencyError, DeviceError
from deploykit.specs.engine import FLAVOURS, Flavour, Log, TensorRT
from deploykit.system.deps import EXTRAS, need

#: TensorRT repeats itself for every tactic it skips; what went wrong is said last.
_KEPT_LINES = 40
#: TensorRT for RTX adds this to each error on a machine without a driver, whatever the error is.
_ECHO_OF_NO_DRIVER = ("catchCudaError", "cudaError 35")


def installed_flavours() -> tuple[Flavour, ...]:
    """The flavours whose Python module is installed, without importing any."""
    specs = {flavour: importlib.util.find_spec(flavour) for flavour in FLAVOURS}
    # A spec without an origin is a mere folder of that name, such as the user's own.
    return tuple(flavour for flavour, spec in specs.items() if spec and spec.origin)


@functools.cache
def open_flavour(flavour: Flavour) -> TensorRT:
    """Import a flavour of TensorRT and give it this process's logger.

    Raises:
        DependencyError: It is not installed, or it does not import.
    """
    trt = need(flavour)
    version = getattr(trt, "__version__", None)
    if version is None:
        raise DependencyError(
            f"The {flavour} that Python finds is not NVIDIA's package: {trt!r} has no version.",
            hint=f'Install it: pip install "deploykit[{EXTRAS[flavour]}]"',
        )
    return TensorRT(flavour, version, trt, _make_log(trt))


def make(tensorrt: TensorRT, what: str, factory: Callable[[], Any]) -> Any:
    """Let TensorRT make one of its objects.

    Raises:
        DeviceError: It makes none, which it says by a null pointer.
    """
    made, cause = None, None
    with tensorrt.log.capture() as lines:
        try:
            made = factory()
        except TypeError as exc:  # how a constructor of the bindings says it; a method gives None
            cause = exc
    if made is None:
        raise DeviceError(
            quoting(f"{tensorrt.flavour} {tensorrt.version} makes no {what}", lines),
            hint="See what TensorRT needs and what is here: deploykit doctor",
        ) from cause
    return made


def quoting(message: str, lines: Iterable[str]) -> str:
    """A message, and what TensorRT said about it, if it said anything."""
    said = tuple(lines)
    return "\n".join([f"{message}:", *said]) if said else f"{message}."


def _make_log(trt: Any) -> Log:
    """Make the logger, whose class cannot exist before TensorRT is imported."""
    severity = trt.ILogger.Severity
    heard = (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING)

    class CapturingLogger(trt.ILogger):  # type: ignore[misc]  # the base is known at run time only
        """Hands TensorRT's lines to whoever captures; TensorRT calls it from any thread."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._listeners: tuple[deque[str], ...] = ()

        def log(self, severity: object, msg: str) -> None:
            if severity in heard and not all(part in msg for part in _ECHO_OF_NO_DRIVER):
                for lines in self._listeners:
                    lines.append(msg.strip())

        @contextlib.contextmanager
        def capture(self) -> Iterator[deque[str]]:
            lines: deque[str] = deque(maxlen=_KEPT_LINES)
            self._listeners = (*self._listeners, lines)
            try:
                yield lines
            finally:
                self._listeners = tuple(each for each in self._listeners if each is not lines)

    log: Log = CapturingLogger()
    return log
