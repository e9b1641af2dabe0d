"""How many threads this process keeps busy, work on them in order, and where their time goes."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar, get_args

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
# Both hold the microseconds of CPU time in a period, and the period's, see the kernel's
# admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst.
_QUOTA_FILES = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))


def usable_cpus() -> int:
    """How many computing threads this process can keep busy.

    The CPUs that it may run on; fewer where a container's quota of CPU time is less, because the
    system stops all threads of a container that has used up its quota. Of a part of a CPU, one
    more thread makes use.
    """
    quota = _cpu_quota()
    return _allowed_cpus() if quota is None else max(1, min(_allowed_cpus(), math.ceil(quota)))


def _allowed_cpus() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    elif sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    else:
        return os.cpu_count() or 1


def _cpu_quota() -> float | None:
    """How many CPUs' time Linux gives this process's cgroup; None for all there is."""
    quotas = []
    for cgroup in _own_cgroups():
        for names in _QUOTA_FILES:
            with contextlib.suppress(OSError):
                quota, period = " ".join((cgroup / name).read_text() for name in names).split()
                if quota not in ("max", "-1"):  # no quota
                    quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _own_cgroups() -> Iterator[Path]:
    """The folders of this process's cgroups and of those around them, whose quotas bind as well.

    A container may see its cgroup under the host's name for it. No such folder is there then, and
    its own is at the top.
    """
    try:
        lines = os.fsdecode(_OWN_CGROUPS.read_bytes()).splitlines()
    except OSError:  # no Linux, or one without cgroups
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            top = _CGROUPS / "cpu" if controllers else _CGROUPS
            own = top / place.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def in_order(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    threads: int,
    ahead: int,
    name: str,
) -> Generator[_Result, None, None]:
    """Do work on threads, a few items ahead of whoever consumes the results.

    The threads start with the first item and end with the last, or when the generator is closed,
    which an abandoned one is as soon as nothing refers to it.

    Args:
        work: Called in one of the threads for each item. What it raises is raised where its result
            would be.
        items: Taken one by one, in the consumer's thread, as they are needed.
        threads: At least 1.
        ahead: How many items beyond the consumer's next are handed to the threads.
        name: What the threads' names begin with.

    Yields:
        The result of each item, in the order of the items.
    """
    executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
    pending: deque[Future[_Result]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


Stage: TypeAlias = Literal["decode", "resize", "session", "write"]
STAGES: tuple[Stage, ...] = get_args(Stage)


def _worker_stages(*, concurrent: bool) -> tuple[Stage, ...]:
    return ("decode", "resize", "session") if concurrent else ("decode", "resize")


class StageClock:
    """Adds up how long each stage kept a CPU, or waited for a device; threads may share it.

    Args:
        workers: How many threads share decoding and resizing; each other stage has one thread.
        concurrent: Whether the workers run the session themselves, see
            :class:`deploykit.specs.session.SessionSpec`.
    """

    def __init__(self, workers: int = 1, *, concurrent: bool = False) -> None:
        shared = _worker_stages(concurrent=concurrent)
        self._threads = {stage: workers if stage in shared else 1 for stage in STAGES}
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
    workers = _worker_stages(concurrent=concurrent)
    beside = tuple(stage for stage in STAGES if stage not in workers)
    busier = max((workers, beside), key=lambda stages: sum(seconds[stage] for stage in stages))
    return max(busier, key=seconds.__getitem__)
