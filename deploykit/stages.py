"""Where the time goes: seconds by stage, added up over threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

Stage: TypeAlias = Literal["decode", "resize", "session", "write"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class StageClock:
    """Adds up how long each stage kept a CPU, or waited for a device; threads may share it."""

    def __init__(self) -> None:
        self._seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @property
    def seconds(self) -> dict[Stage, float]:
        """The seconds of each stage so far."""
        with self._lock:
            return dict(self._seconds)

    @contextlib.contextmanager
    def computing(self, stage: Stage) -> Iterator[None]:
        """Count what the block takes of this thread's CPU time: not what it waits for a core."""
        start = time.thread_time()
        try:
            yield
        finally:
            self._add(stage, time.thread_time() - start)

    @contextlib.contextmanager
    def waiting(self, stage: Stage) -> Iterator[None]:
        """Count how long the block takes by the clock on the wall: a device computes meanwhile."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(stage, time.perf_counter() - start)

    def _add(self, stage: Stage, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] += seconds
