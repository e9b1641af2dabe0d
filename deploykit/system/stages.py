"""Where the time goes: seconds by stage, of threads that work side by side."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias, get_args

Stage: TypeAlias = Literal["decode", "resize", "session", "write"]
STAGES: tuple[Stage, ...] = get_args(Stage)


def worker_stages(*, concurrent: bool) -> tuple[Stage, ...]:
    """The stages that workers share; what else there is one thread does.

    Args:
        concurrent: Whether the workers run the session themselves, see
            :class:`deploykit.specs.session.SessionSpec`.
    """
    return ("decode", "resize", "session") if concurrent else ("decode", "resize")


class StageClock:
    """Adds up how long each stage kept a CPU, or waited for a device; threads may share it.

    Args:
        workers: How many threads share each stage of ``shared``.
        shared: Those stages; each of the others has one thread.
    """

    def __init__(self, workers: int = 1, shared: tuple[Stage, ...] = ()) -> None:
        self._threads: dict[Stage, int] = dict.fromkeys(STAGES, 1) | dict.fromkeys(shared, workers)
        self._seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @property
    def seconds(self) -> dict[Stage, float]:
        """How much of the run's time each stage took so far.

        Threads that share a stage work side by side: what they took together counts once for all
        of them, hence none of the stages takes longer than the run does.
        """
        with self._lock:
            return {stage: self._seconds[stage] / self._threads[stage] for stage in STAGES}

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


def bottleneck(seconds: Mapping[Stage, float], *, concurrent: bool) -> Stage:
    """The stage that a run would gain most from if it were faster.

    Args:
        seconds: As :attr:`StageClock.seconds` tells them.
        concurrent: Whether the workers run the session themselves.

    Returns:
        Of the workers and the one thread beside them the others wait for the busier; it is that
        one's longest stage.
    """
    workers = worker_stages(concurrent=concurrent)
    beside = tuple(stage for stage in STAGES if stage not in workers)
    busier = max((workers, beside), key=lambda stages: sum(seconds[stage] for stage in stages))
    return max(busier, key=seconds.__getitem__)
