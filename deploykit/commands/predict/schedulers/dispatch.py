"""Which worker predicts which shard, when workers and hosts come, go and are slow.

It keeps the books and nothing else: no Ray, no clock, no threads. Who drives it tells it what
happened and when; an event costs O(log n) for n workers and shards.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from deploykit.commands.predict.plan import Shard

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What of one shard's deaths may be chance.
_STRIKES = 3
#: How many times as long as others a shard may take before somebody else begins it, too.
_LATE = 2.0
#: Within this many seconds nothing is late.
_LEAST_SECONDS = 5.0


class Assignment(NamedTuple):
    """What a worker is to predict now."""

    worker: str
    shard: Shard


class Result(NamedTuple):
    """What a worker has predicted.

    Attributes:
        shard: The files.
        is_first: Whether nobody else was faster; another's rows are as good, and there already.
    """

    shard: Shard
    is_first: bool


@dataclass(eq=False)
class _Task:
    """A shard, or what it was halved to.

    Attributes:
        shard: The files.
        is_suspect: Whether it is a part of a shard that was struck out.
        strikes: How many workers it has lost.
        runners: Since when each of these workers has been at it.
        waits_since: When it was put back.
        is_done: Whether its rows are there.
    """

    shard: Shard
    is_suspect: bool = False
    strikes: int = 0
    runners: dict[str, float] = field(default_factory=dict)
    waits_since: float = 0.0
    is_done: bool = False

    @property
    def is_struck_out(self) -> bool:
        """Whether it is to be halved, or, of one file, given up.

        Halves need no second proof; a file is given up for what it did alone.
        """
        needed = 1 if self.is_suspect and self.shard.size > 1 else _STRIKES
        return self.strikes >= needed


class Dispatcher:
    """Gives shards to workers until each file has its row.

    A worker has one shard at a time. A shard whose worker is lost goes to another, on another host
    if one is free in time: a host that loses all its workers should not convict a file. A shard
    that has lost three workers is halved, and so is at once each half that loses another; a file
    that has lost three workers by itself is given up. When all shards are given out, one that takes
    twice as long as usual is given to a second worker: the first result counts.

    Args:
        shards: What is to be predicted, taken as it is needed.

    Attributes:
        predicted: How many files have a result.
        given_up: The files that are given up, by their ordinals.
        doubled: How many shards were given to a second worker.
        lost_workers: How many workers were lost.
    """

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._fresh = iter(shards)
        self._next: Shard | None = next(self._fresh, None)
        # What is to be done again, by the host that it was lost on; no queue is empty.
        self._again: dict[str, deque[_Task]] = {}
        # Of each host that has any; a dict keeps their order.
        self._workers: dict[str, dict[str, None]] = {}
        self._free: dict[str, dict[str, None]] = {}
        self._host_of: dict[str, str] = {}
        self._tasks: dict[str, _Task] = {}
        self._left = 0
        self._due: list[tuple[float, int, _Task]] = []
        self._numbers = itertools.count()
        self._refused: set[str] = set()
        self._seconds, self._files = 0.0, 0
        self.predicted = 0
        self.given_up: list[int] = []
        self.doubled = 0
        self.lost_workers = 0

    @property
    def is_done(self) -> bool:
        """Whether each file has its row, or is given up."""
        return self._next is None and not self._again and not self._left

    @property
    def workers(self) -> int:
        """How many there are, busy or free."""
        return len(self._host_of)

    def workers_on(self, host: str) -> int:
        """How many there are on a host."""
        return len(self._workers.get(host, ()))

    # What happens to workers ----------------------------------------------------------------------

    def join(self, worker: str, host: str) -> bool:
        """A worker is ready; tell whether it will be given anything."""
        if host in self._refused:
            return False
        self._host_of[worker] = host
        self._workers.setdefault(host, {})[worker] = None
        self._set_free(worker)
        return True

    def lost(self, worker: str, now: float) -> Shard | None:
        """A worker is no more.

        Returns:
            The one file that is given up for it; None if there is none.
        """
        host = self._host_of.get(worker)
        if host is None:
            return None
        self.lost_workers += 1
        task = self._remove(worker)
        if task is None or task.is_done:
            return None
        task.strikes += 1
        if task.runners:
            self._watch(task)
            return None
        self._left -= 1
        if not task.is_struck_out:
            self._put_back(task, host, now)
            return None
        start, stop = task.shard
        if task.shard.size == 1:
            task.is_done = True
            self.given_up.append(start)
            return task.shard
        middle = (start + stop) // 2
        for half in (Shard(start, middle), Shard(middle, stop)):
            self._put_back(_Task(half, is_suspect=True), host, now)
        return None

    def refuse(self, host: str, now: float) -> list[str]:
        """A host is to have no shard, now or later: what it would answer is not to be trusted.

        Returns:
            Its workers, which are forgotten. What they were at is no reason to suspect the files.
        """
        self._refused.add(host)
        workers = [*self._workers.get(host, ())]
        for worker in workers:
            task = self._remove(worker)
            if task is None or task.is_done:
                continue
            if task.runners:
                self._watch(task)
            else:
                self._left -= 1
                self._put_back(task, host, now)
        return workers

    # What happens to shards -----------------------------------------------------------------------

    def assign(self, now: float) -> list[Assignment]:
        """Give free workers what there is for them.

        Args:
            now: In seconds, of any clock that only goes forward.
        """
        assignments = []
        while self._free:
            chosen = self._lost_before(now) or self._fresh_for_anyone() or self._late(now)
            if chosen is None:
                break
            task, host = chosen
            worker, _ = self._free[host].popitem()
            if not self._free[host]:
                del self._free[host]
            self._left += not task.runners
            task.runners[worker] = now
            self._tasks[worker] = task
            if len(task.runners) == 1:
                self._watch(task)
            assignments.append(Assignment(worker, task.shard))
        return assignments

    def finished(self, worker: str, now: float) -> Result | None:
        """A worker has the rows of its shard, and is free; None of one that is forgotten."""
        task = self._tasks.pop(worker, None)
        if task is None:
            return None
        self._seconds += now - task.runners.pop(worker)
        self._files += task.shard.size
        self._set_free(worker)
        if task.is_done:
            return Result(task.shard, is_first=False)
        task.is_done = True
        self._left -= 1
        self.predicted += task.shard.size
        return Result(task.shard, is_first=True)

    def next_time(self) -> float | None:
        """When :meth:`assign` may do something though nothing happens until then; None for never.

        It may turn out to be later: what is usual changes.
        """
        if not self._free:
            return None
        times = [queue[0].waits_since + self._patience(queue[0]) for queue in self._queues()]
        if self._due and self._files:
            times.append(self._due[0][0])
        return min(times, default=None)

    # ----------------------------------------------------------------------------------------------

    def _queues(self) -> list[deque[_Task]]:
        """Of what was lost before: two are enough, as one of them fits each host."""
        return [*itertools.islice(self._again.values(), 2)]

    def _lost_before(self, now: float) -> tuple[_Task, str] | None:
        """What was lost on another host than a free one; or has waited for one for long."""
        for lost_on, queue in itertools.islice(self._again.items(), 2):
            others = (host for host in itertools.islice(self._free, 2) if host != lost_on)
            host = next(others, None)
            if host is None and (
                self._workers.keys() == {lost_on}
                or now >= queue[0].waits_since + self._patience(queue[0])
            ):
                host = lost_on
            if host is not None:
                task = queue.popleft()
                if not queue:
                    del self._again[lost_on]
                return task, host
        return None

    def _fresh_for_anyone(self) -> tuple[_Task, str] | None:
        if self._next is None:
            return None
        task = _Task(self._next)
        self._next = next(self._fresh, None)
        return task, next(iter(self._free))

    def _late(self, now: float) -> tuple[_Task, str] | None:
        """What takes too long and nobody else is at, and a free host: if possible, another."""
        while self._files and self._due and self._due[0][0] <= now:
            _, _, task = heapq.heappop(self._due)
            if task.is_done or len(task.runners) != 1:
                continue
            due = self._due_of(task)
            if due > now:
                heapq.heappush(self._due, (due, next(self._numbers), task))
                continue
            (runner,) = task.runners
            here = self._host_of[runner]
            free = [*itertools.islice(self._free, 2)]
            self.doubled += 1
            return task, next((host for host in free if host != here), free[0])
        return None

    def _due_of(self, task: _Task) -> float:
        """When a task that one worker is at is late."""
        (start,) = task.runners.values()
        return start + self._patience(task)

    def _patience(self, task: _Task) -> float:
        """How many seconds a task may take, by what the others took."""
        usual = task.shard.size * self._seconds / self._files if self._files else 0.0
        return max(_LATE * usual, _LEAST_SECONDS)

    def _watch(self, task: _Task) -> None:
        """Look at a task again; when it is due is found then, as it moves with what is usual."""
        if len(task.runners) == 1:
            (start,) = task.runners.values()
            heapq.heappush(self._due, (start + _LEAST_SECONDS, next(self._numbers), task))

    def _put_back(self, task: _Task, host: str, now: float) -> None:
        task.waits_since = now
        self._again.setdefault(host, deque()).append(task)

    def _set_free(self, worker: str) -> None:
        self._free.setdefault(self._host_of[worker], {})[worker] = None

    def _remove(self, worker: str) -> _Task | None:
        """Forget a worker that there is; what it was at."""
        host = self._host_of.pop(worker)
        for workers in (self._workers, self._free):
            there = workers.get(host, {})
            there.pop(worker, None)
            if not there:
                workers.pop(host, None)
        task = self._tasks.pop(worker, None)
        if task is not None:
            del task.runners[worker]
        return task
