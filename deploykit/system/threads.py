"""How many threads this process can keep busy, and work on them that comes out in order."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
# Both hold the microseconds of CPU time in a period, and the period's, see the kernel's
# admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst.
_QUOTA_FILES = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
_NO_QUOTA = ("max", "-1")


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
                if quota not in _NO_QUOTA:
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
