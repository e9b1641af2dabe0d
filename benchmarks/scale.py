"""Scale: a run over very many photos on very many workers, on a made clock.

    python benchmarks/scale.py [--seed 0]

No photo is read and nothing computes. What decides is the real thing: the dispatcher of
``predict --on ray``, and the size that a plan gives its shards. Made are the clock, the workers,
how long each takes, and how they die. Prints a table within a minute; docs/scale.md says what
follows.

- hours: until each file has its row; "at best": by as many workers that are there from the start,
  never wait and never die.
- lost: the share of the workers' time that went into rows nobody needed: what a worker was at when
  it died, and what somebody else had first. "Again" is how many files were given to a worker more
  than once for that.
- idle: the share in which a worker was ready and had nothing to do.
- opening: the share in which a worker opened its session.
- driver: how busy the one process is that keeps the books.
- us: CPU time that a shard's events and decisions take here, simulation included.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

from deploykit.commands.predict.plan import Shard, shard_size_of
from deploykit.commands.predict.schedulers.dispatch import Dispatcher

HOUR = 3600.0


@dataclass(frozen=True)
class Cluster:
    """Machines, and what befalls them. Rates are of a Poisson process; ``inf`` is never.

    Attributes:
        hosts: How many machines.
        workers_per_host: Each with a session of its own.
        images_per_second: Of a worker.
        spread: Of the hosts' speeds, and of the shards': the sigma of a log-normal factor.
        slow_share: Of the hosts, which take ``slow_factor`` times as long.
        slow_factor: See there.
        stuck_share: Of the shards, which take 20 times as long where they are first tried: a file
            server that hangs, a neighbour that takes the cores.
        join_seconds: The machines come one after the other within this time.
        open_seconds: What a worker takes from its start to its first shard.
        worker_hours: Mean time until a worker dies by itself.
        host_hours: Mean time until a machine dies, with all its workers.
        driver_hours: Mean time until the driver dies, with all workers.
        notice_seconds: Until the driver knows of a dead machine.
        replace_seconds: Until there is another machine, or driver, in its place.
        poisoned: The ordinals of files that kill whoever reads them.
        driver_shard_ms: What the driver takes for a shard.
        driver_row_us: And for each of its rows.
    """

    hosts: int
    workers_per_host: int = 16
    images_per_second: float = 40.0
    spread: float = 0.1
    slow_share: float = 0.01
    slow_factor: float = 3.0
    stuck_share: float = 1e-4
    join_seconds: float = 120.0
    open_seconds: float = 10.0
    worker_hours: float = 1000.0
    host_hours: float = 6000.0
    driver_hours: float = math.inf
    notice_seconds: float = 30.0
    replace_seconds: float = 300.0
    poisoned: tuple[int, ...] = ()
    driver_shard_ms: float = 0.8
    driver_row_us: float = 4.0

    @property
    def workers(self) -> int:
        """On all machines."""
        return self.hosts * self.workers_per_host


@dataclass
class Outcome:
    """What a run took. Times of workers are in seconds, and their sum is ``paid``.

    Attributes:
        files: How many there are.
        shard_size: Files a shard.
        seconds: Until each file has its row.
        done: What has rows, in the order in which it got them.
        given_up: Files that kill.
        useful: Worked for rows that count.
        lost_to_deaths: Worked on what died before it was done.
        lost_to_doubles: Worked on what somebody else had first.
        opening: Started and opened sessions.
        paid: From a worker's start to its death, or the end.
        deaths: Of workers, by themselves or with a machine or a driver.
        host_deaths: Of machines.
        driver_deaths: Of the driver.
        files_given: Of all shards that were given to workers, again and again.
        files_lost: Predicted by who died before the shard was done.
        files_doubled: Predicted by two.
        doubled: Shards that two had begun.
        driver_busy: Seconds.
        decision_us: CPU time that a shard's events and decisions took here.
    """

    files: int
    shard_size: int
    seconds: float = 0.0
    done: list[Shard] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)
    useful: float = 0.0
    lost_to_deaths: float = 0.0
    lost_to_doubles: float = 0.0
    opening: float = 0.0
    paid: float = 0.0
    deaths: int = 0
    host_deaths: int = 0
    driver_deaths: int = 0
    files_given: int = 0
    files_lost: int = 0
    files_doubled: int = 0
    doubled: int = 0
    driver_busy: float = 0.0
    decision_us: float = 0.0

    @property
    def lost(self) -> float:
        """Worked for nothing."""
        return self.lost_to_deaths + self.lost_to_doubles

    @property
    def idle(self) -> float:
        """Ready, and nothing to do."""
        return self.paid - self.opening - self.useful - self.lost

    def check(self) -> None:
        """Check that each file has one row.

        Raises:
            RuntimeError: It has none, or two.
        """
        at = 0
        for part in sorted(self.done):
            if part.start != at:
                raise RuntimeError(f"file {min(at, part.start)} has not one row")
            at = part.stop
        if at != self.files:
            raise RuntimeError(f"file {at} has no row")

    def missing(self) -> Iterator[Shard]:
        """What has no rows yet, cut as a ledger cuts it."""
        at = 0
        for part in [*sorted(self.done), Shard(self.files, self.files)]:
            while at < part.start:
                stop = min(part.start, (at // self.shard_size + 1) * self.shard_size)
                yield Shard(at, stop)
                at = stop
            at = part.stop


@dataclass
class _Worker:
    """A worker that has been started.

    Attributes:
        host: Its machine's number.
        started: When.
        ready: When its session was open; None before.
        at: Its shard.
        since: When it was given that.
        seconds: What that takes.
        is_gone: It is dead, and the driver does not know yet.
    """

    host: int
    started: float
    ready: float | None = None
    at: Shard | None = None
    since: float = 0.0
    seconds: float = 0.0
    is_gone: bool = False


class Simulation:
    """One run.

    Args:
        files: How many.
        cluster: On what.
        seed: Of all that is left to chance.
        shard_size: Files a shard; None for what a plan would take.
    """

    def __init__(
        self, files: int, cluster: Cluster, seed: int = 0, shard_size: int | None = None
    ) -> None:
        size = shard_size or shard_size_of(files, cluster.workers)
        self._cluster, self._random = cluster, Random(seed)
        self._outcome = Outcome(files, size)
        self._events: list[tuple[float, int, str, int]] = []
        self._numbers = itertools.count()
        self._workers: dict[int, _Worker] = {}
        self._on_host: dict[int, set[int]] = {}
        self._speed: dict[int, float] = {}
        self._stuck: set[int] = set()
        self._free_at = 0.0
        self._dispatcher = Dispatcher(self._outcome.missing())

    def run(self) -> Outcome:
        """Go from event to event until each file has its row.

        Raises:
            RuntimeError: A file has no row, or two.
        """
        cluster, outcome = self._cluster, self._outcome
        for _ in range(cluster.hosts):
            self._at(self._random.uniform(0.0, cluster.join_seconds), "host", 0)
        self._at(self._chance(cluster.driver_hours), "driver dies", 0)
        started, now = time.process_time(), 0.0
        while not self._dispatcher.is_done:
            later = self._dispatcher.next_time()
            at = self._events[0][0]
            if later is not None and later < at:
                now = max(now, later)
            else:
                now, _, what, number = heapq.heappop(self._events)
                self._happen(what, number, now)
            for name, shard in self._dispatcher.assign(self._driver_time(now)):
                self._begin(int(name), shard, self._driver_time(now))
        outcome.decision_us = (time.process_time() - started) / len(outcome.done) * 1e6
        outcome.seconds = max(now, self._free_at)
        for number in [*self._workers]:
            self._end(number, outcome.seconds, by_death=False)
        outcome.doubled += self._dispatcher.doubled
        outcome.check()
        return outcome

    # Events ---------------------------------------------------------------------------------------

    def _happen(self, what: str, number: int, now: float) -> None:
        cluster = self._cluster
        worker = self._workers.get(number)
        if what == "host":
            self._start_host(next(self._numbers), now)
        elif what == "host dies" and number in self._on_host:
            self._outcome.host_deaths += 1
            for each in self._on_host.pop(number):
                self._workers[each].is_gone = True
                self._end_work(self._workers[each], now, by_death=True)
                self._at(now + cluster.notice_seconds, "noticed", each)
            self._at(now + cluster.replace_seconds, "host", 0)
        elif what == "driver dies":
            self._driver_dies(now)
        elif worker is None:
            return  # it died before
        elif what == "ready" and not worker.is_gone:
            worker.ready = now
            self._dispatcher.join(str(number), str(worker.host))
        elif what == "done" and not worker.is_gone:
            self._done(number, worker, now)
        elif what == "dies" and not worker.is_gone:
            host = worker.host
            self._lose(number, now)
            self._start_worker(host, now)
        elif what == "noticed":
            self._lose(number, now)

    def _start_host(self, host: int, now: float) -> None:
        cluster = self._cluster
        slow = cluster.slow_factor if self._random.random() < cluster.slow_share else 1.0
        self._speed[host] = slow * self._random.lognormvariate(0.0, cluster.spread)
        self._on_host[host] = set()
        for _ in range(cluster.workers_per_host):
            self._start_worker(host, now)
        self._at(now + self._chance(cluster.host_hours), "host dies", host)

    def _start_worker(self, host: int, now: float) -> None:
        number = next(self._numbers)
        self._workers[number] = _Worker(host, now)
        self._on_host[host].add(number)
        self._at(now + self._cluster.open_seconds, "ready", number)
        self._at(now + self._chance(self._cluster.worker_hours), "dies", number)

    def _begin(self, number: int, shard: Shard, now: float) -> None:
        cluster, worker = self._cluster, self._workers[number]
        self._outcome.files_given += shard.size
        seconds = shard.size / cluster.images_per_second * self._speed[worker.host]
        seconds *= self._random.lognormvariate(0.0, cluster.spread)
        if self._random.random() < cluster.stuck_share and shard.start not in self._stuck:
            self._stuck.add(shard.start)
            seconds *= 20.0
        worker.at, worker.since, worker.seconds = shard, now, seconds
        found = bisect.bisect_left(cluster.poisoned, shard.start)
        if found < len(cluster.poisoned) and cluster.poisoned[found] < shard.stop:
            share = (cluster.poisoned[found] - shard.start + 1) / shard.size
            self._at(now + seconds * share, "dies", number)
        elif not worker.is_gone:
            self._at(now + seconds, "done", number)

    def _done(self, number: int, worker: _Worker, now: float) -> None:
        if worker.at is None:
            raise RuntimeError(f"worker {number} has done nothing")
        self._keep_books(worker.at, now)
        result = self._dispatcher.finished(str(number), self._driver_time(now))
        if result is None:
            raise RuntimeError(f"worker {number} is forgotten")
        if result.is_first:
            self._outcome.done.append(result.shard)
            self._outcome.useful += worker.seconds
        else:
            self._outcome.lost_to_doubles += worker.seconds
            self._outcome.files_doubled += result.shard.size
        worker.at = None

    def _lose(self, number: int, now: float) -> None:
        self._end(number, now, by_death=True)
        given_up = self._dispatcher.lost(str(number), self._driver_time(now))
        if given_up is not None:
            self._outcome.done.append(given_up)
            self._outcome.given_up.append(given_up.start)

    def _driver_dies(self, now: float) -> None:
        """The workers go with it; the parts that are there stay, and another driver takes over."""
        cluster, outcome = self._cluster, self._outcome
        outcome.driver_deaths += 1
        outcome.doubled += self._dispatcher.doubled
        for number in [*self._workers]:
            self._end(number, now, by_death=True)
        self._dispatcher = Dispatcher([*outcome.missing()])
        again = now + cluster.replace_seconds
        self._events = [event for event in self._events if event[2] == "host"]
        heapq.heapify(self._events)
        for _ in range(len(self._on_host)):
            self._at(again, "host", 0)
        self._on_host.clear()
        self._at(again + self._chance(cluster.driver_hours), "driver dies", 0)

    # Books ----------------------------------------------------------------------------------------

    def _end(self, number: int, now: float, *, by_death: bool) -> None:
        """A worker is no more."""
        worker = self._workers.pop(number)
        self._on_host.get(worker.host, set()).discard(number)
        if not worker.is_gone:
            self._end_work(worker, now, by_death=by_death)

    def _end_work(self, worker: _Worker, now: float, *, by_death: bool) -> None:
        outcome = self._outcome
        outcome.paid += now - worker.started
        outcome.opening += (now if worker.ready is None else worker.ready) - worker.started
        outcome.deaths += by_death
        if worker.at is None:
            return
        spent = max(0.0, now - worker.since)
        files = min(worker.at.size, int(spent / worker.seconds * worker.at.size))
        if by_death:
            outcome.lost_to_deaths += spent
            outcome.files_lost += files
        else:
            outcome.lost_to_doubles += spent
            outcome.files_doubled += files
        worker.at = None

    def _keep_books(self, shard: Shard, now: float) -> None:
        cluster = self._cluster
        seconds = cluster.driver_shard_ms / 1e3 + shard.size * cluster.driver_row_us / 1e6
        self._free_at = max(self._free_at, now) + seconds
        self._outcome.driver_busy += seconds

    def _driver_time(self, now: float) -> float:
        """When the driver gets to something: it does one thing after the other."""
        return max(self._free_at, now)

    def _chance(self, mean_hours: float) -> float:
        return (
            self._random.expovariate(1 / mean_hours) * HOUR if mean_hours < math.inf else math.inf
        )

    def _at(self, when: float, what: str, number: int) -> None:
        if when < math.inf:
            heapq.heappush(self._events, (when, next(self._numbers), what, number))


@dataclass(frozen=True)
class Case:
    """A line of the table.

    Attributes:
        title: What is special about it.
        files: How many.
        cluster: On what.
        shard_size: Files a shard; None for what a plan takes.
    """

    title: str
    files: int
    cluster: Cluster
    shard_size: int | None = None


MILLION, BILLION = 10**6, 10**9
#: A machine of 8 GPUs has been seen to fail every 6,300 hours (docs/scale.md); workers: assumed.
USUAL = Cluster(hosts=64)
CALM = replace(USUAL, worker_hours=math.inf, host_hours=math.inf, stuck_share=0.0, slow_share=0.0)
SPOT = replace(USUAL, worker_hours=100.0, host_hours=24.0)
WORST = replace(SPOT, worker_hours=10.0, host_hours=2.0, driver_hours=0.5)
KILLERS = tuple(range(500_000, 100 * MILLION, MILLION))
CASES = (
    Case("1 machine", MILLION, replace(USUAL, hosts=1)),
    Case("4 machines", MILLION, replace(USUAL, hosts=4)),
    Case("64 machines", MILLION, USUAL),
    Case("8 machines", 10 * MILLION, replace(USUAL, hosts=8)),
    Case("64 machines, the plan's shards", 100 * MILLION, USUAL),
    Case("256 machines, the plan's shards", BILLION, replace(USUAL, hosts=256)),
    Case("256 machines, 16,384 files a shard", BILLION, replace(USUAL, hosts=256), 16_384),
    Case("256 machines, 65,536 files a shard", BILLION, replace(USUAL, hosts=256), 65_536),
    Case("nothing fails", 100 * MILLION, CALM, 2048),
    Case("a machine fails every 6,000 h", 100 * MILLION, USUAL, 2048),
    Case("... every 24 h, a worker every 100 h", 100 * MILLION, SPOT, 2048),
    Case("... 2 h, 10 h, the driver 30 min", 100 * MILLION, WORST, 2048),
    Case("one file of a million kills", 100 * MILLION, replace(USUAL, poisoned=KILLERS), 2048),
)


def print_case(case: Case, seed: int) -> None:
    """A line."""
    found = Simulation(case.files, case.cluster, seed, case.shard_size).run()
    best = case.files / case.cluster.images_per_second / case.cluster.workers
    print(
        f"{case.title:37} {case.files / MILLION:6,.0f} {case.cluster.workers:7,} "
        f"{found.shard_size:7,} {found.seconds / HOUR:6.2f} {best / HOUR:7.2f} "
        f"{found.deaths:6,} {found.lost / found.paid:7.2%} "
        f"{found.files_given - found.files:9,} {found.idle / found.paid:6.1%} "
        f"{found.opening / found.paid:7.1%} {found.driver_busy / found.seconds:6.1%} "
        f"{found.decision_us:3.0f}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(
        f"A machine has {USUAL.workers_per_host} workers of {USUAL.images_per_second:.0f} photos a "
        f"second. Of the machines 1 % take {USUAL.slow_factor:.0f} times as long, of the shards "
        "0.01 % 20 times. A machine that fails is missed after 30 s, and replaced after 5 min."
    )
    print(
        f"{'':37} {'M':>6} {'workers':>7} {'a shard':>7} {'hours':>6} {'at best':>7} "
        f"{'deaths':>6} {'lost':>7} {'again':>9} {'idle':>6} {'opening':>7} {'driver':>6} {'us':>3}"
    )
    for case in CASES:
        print_case(case, options.seed)


if __name__ == "__main__":
    main()
