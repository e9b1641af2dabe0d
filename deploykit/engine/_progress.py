"""A build that tells how far it is and stops when it is asked to."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

_Result = TypeVar("_Result")
OnStep: TypeAlias = Callable[[str, int, int], None]
"""Called with the phase that a build is in, how many of the build's own steps are done, and how
many it has."""

#: Python delivers Ctrl-C between two waits: on Windows a wait cannot be interrupted.
_POLL_SECONDS = 0.1


class BuildMonitor:
    """Runs a build in a thread and hands its steps to the caller's.

    TensorRT calls its monitor from the building thread, where an exception would have to pass
    through C++. So the monitor only notes the step, and ``on_step`` is called, and may raise, in
    the thread that waits for the build: the main one, which is also where Ctrl-C arrives.

    Attributes:
        progress: The ``IProgressMonitor`` to give to TensorRT.
    """

    def __init__(self, trt: ModuleType) -> None:
        self._steps: queue.SimpleQueue[tuple[str, int, int] | None] = queue.SimpleQueue()
        self._cancelled = Event()
        self.progress: Any = _make_progress(trt, self._steps.put, self._cancelled)

    def run(
        self, build: Callable[[], _Result], on_step: OnStep, on_cancel: Callable[[], None]
    ) -> _Result:
        """Run a build and return what it returns.

        Whatever interrupts the wait, Ctrl-C or an exception of ``on_step``, stops the build at its
        next step and goes on when its thread has ended. ``on_cancel`` is called when that wait
        begins, and again at each further Ctrl-C, which does not end it: Python itself would wait
        for the thread when it exits, and in silence.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tensorrt-build") as threads:
            result = threads.submit(build)
            try:
                result.add_done_callback(lambda _: self._steps.put(None))
                while (step := self._next_step()) is not None:
                    on_step(*step)
            except BaseException:
                self._cancelled.set()
                _await_end(result, on_cancel)
                raise
            return result.result()

    def _next_step(self) -> tuple[str, int, int] | None:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._steps.get(timeout=_POLL_SECONDS)


def _await_end(result: Future[Any], on_cancel: Callable[[], None]) -> None:
    # Not by joining the thread: where Ctrl-C interrupts that, Python 3.11 takes it for ended.
    while not result.done():
        with contextlib.suppress(KeyboardInterrupt):
            on_cancel()
            while not result.done():
                wait([result], timeout=_POLL_SECONDS)


def _make_progress(trt: Any, put: Callable[[tuple[str, int, int]], None], cancelled: Event) -> Any:
    """Make the monitor, whose class cannot exist before TensorRT is imported."""

    class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._build = ""  # the phase that all others are parts of
            self._done, self._total = 0, 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._build, self._done, self._total = phase_name, 0, num_steps
            put((phase_name, self._done, self._total))

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._build:
                self._done = step + 1
            put((phase_name, self._done, self._total))
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            """Nothing to tell: its last step has said it."""

    return ProgressMonitor()
