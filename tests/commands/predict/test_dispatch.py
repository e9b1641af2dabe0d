"""Which worker gets which shard, on a made clock."""

import itertools
from collections import Counter, deque
from random import Random
from time import perf_counter

import pytest

from deploykit.commands.predict.plan import Shard
from deploykit.commands.predict.schedulers.dispatch import Dispatcher


def shards_of(count, size=32):
    return [Shard(start, start + size) for start in range(0, count * size, size)]


def joined(dispatcher, *workers):
    """Workers named ``host/number``."""
    for worker in workers:
        assert dispatcher.join(worker, worker.split("/")[0])
    return dispatcher


def given(dispatcher, now=0.0):
    return dict(dispatcher.assign(now))


def test_dispatcher_gives_each_shard_once():
    dispatcher = joined(Dispatcher(shards_of(5)), "a/1", "b/1")
    seen, now = [], 0.0
    while not dispatcher.is_done:
        for worker, shard in dispatcher.assign(now):
            seen.append(shard)
            now += 1
            result = dispatcher.finished(worker, now)
            assert result == (shard, True)
    assert sorted(seen) == shards_of(5)
    assert (dispatcher.predicted, dispatcher.given_up, dispatcher.doubled) == (160, [], 0)
    assert dispatcher.assign(now) == []


def test_dispatcher_without_shards_is_done():
    assert Dispatcher([]).is_done


def test_dispatcher_takes_shards_as_they_are_needed():
    taken = []

    def shards():
        for shard in shards_of(100):
            taken.append(shard)
            yield shard

    joined(Dispatcher(shards()), "a/1", "a/2").assign(0.0)
    assert len(taken) == 3


def test_dispatcher_lost_shard_goes_to_another_host():
    dispatcher = joined(Dispatcher(shards_of(1)), "a/1", "a/2", "b/1")
    (lost,) = given(dispatcher)
    assert dispatcher.lost(lost, 1.0) is None
    (worker,) = given(dispatcher, 1.0)
    assert {lost[0], worker[0]} == {"a", "b"}


def test_dispatcher_lost_shard_stays_where_there_is_one_host():
    dispatcher = joined(Dispatcher(shards_of(1)), "a/1")
    given(dispatcher)
    dispatcher.lost("a/1", 1.0)
    assert given(dispatcher, 1.0) == {}
    joined(dispatcher, "a/2")
    assert given(dispatcher, 1.0) == {"a/2": Shard(0, 32)}


def test_dispatcher_lost_shard_does_not_wait_for_a_host_that_hangs():
    dispatcher = joined(Dispatcher(shards_of(2)), "a/1", "b/1")
    given(dispatcher)
    dispatcher.lost("a/1", 1.0)
    joined(dispatcher, "a/2")
    assert given(dispatcher, 1.0) == {}
    assert dispatcher.next_time() == 6.0
    assert given(dispatcher, 6.0) == {"a/2": Shard(0, 32)}


def deaths_of(poisoned, files=64, hosts=("a", "b")):
    """Run one worker a host; whoever touches a poisoned file dies and is replaced."""
    dispatcher = Dispatcher(shards_of(files // 32))
    numbers, now = itertools.count(), 0.0
    for host in hosts:
        joined(dispatcher, f"{host}/{next(numbers)}")
    predicted, deaths = [], Counter()
    while not dispatcher.is_done:
        now += 1
        for worker, shard in dispatcher.assign(now):
            now += 1
            if poisoned & {*range(*shard)}:
                deaths.update(poisoned & {*range(*shard)})
                dispatcher.lost(worker, now)
                joined(dispatcher, f"{worker.split('/')[0]}/{next(numbers)}")
            else:
                assert dispatcher.finished(worker, now).is_first
                predicted += range(*shard)
    assert sorted([*predicted, *dispatcher.given_up]) == [*range(files)]
    return dispatcher, deaths


@pytest.mark.parametrize("poisoned", [{0}, {17}, {31, 32}, {5, 6, 63}])
@pytest.mark.parametrize("hosts", ["a", "ab", "abcd"])
def test_dispatcher_gives_up_only_the_files_that_kill(poisoned, hosts):
    dispatcher, deaths = deaths_of(poisoned, hosts=hosts)
    assert {*dispatcher.given_up} == poisoned
    # Three of the shard, one each of 16, 8, 4 and 2 files, three of the file.
    assert max(deaths.values()) <= 10
    assert dispatcher.lost_workers <= 10 * len(poisoned)


def test_dispatcher_halves_at_the_third_strike():
    dispatcher = joined(Dispatcher(shards_of(1, size=3)), "a/0")
    for number in range(3):
        assert [*given(dispatcher).values()] == [Shard(0, 3)]
        assert dispatcher.lost(f"a/{number}", 0.0) is None
        joined(dispatcher, f"a/{number + 1}")
    assert given(dispatcher) == {"a/3": Shard(0, 1)}
    dispatcher.finished("a/3", 1.0)
    assert given(dispatcher, 1.0) == {"a/3": Shard(1, 3)}
    dispatcher.lost("a/3", 2.0)
    joined(dispatcher, "a/4", "a/5")
    assert {*given(dispatcher, 2.0).values()} == {Shard(1, 2), Shard(2, 3)}


def test_dispatcher_one_bad_host_convicts_no_file():
    """Whatever host a touches kills its worker; a new one comes at once."""
    dispatcher = joined(Dispatcher(shards_of(6)), "a/0", "b/0")
    numbers, now, busy = itertools.count(1), 0.0, {}
    while not dispatcher.is_done:
        now += 1
        busy |= given(dispatcher, now)
        for worker in [*busy]:
            if worker[0] == "a":
                del busy[worker]
                dispatcher.lost(worker, now)
                joined(dispatcher, f"a/{next(numbers)}")
            elif now % 3 == 0:
                del busy[worker]
                dispatcher.finished(worker, now)
    assert dispatcher.given_up == []
    assert dispatcher.predicted == 192


def slow_run(now=4.0):
    """Three shards; two are done after a second each, the third hangs."""
    dispatcher = joined(Dispatcher(shards_of(3)), "a/1", "b/1", "a/2")
    shards = given(dispatcher)
    for worker in ("a/1", "b/1"):
        dispatcher.finished(worker, 1.0)
    return dispatcher, shards["a/2"]


def test_dispatcher_doubles_what_is_late():
    dispatcher, slow = slow_run()
    assert dispatcher.next_time() == 5.0
    assert given(dispatcher, 4.9) == {}
    assert given(dispatcher, 5.0) == {"b/1": slow}
    assert given(dispatcher, 50.0) == {}
    assert dispatcher.finished("b/1", 51.0) == (slow, True)
    assert dispatcher.is_done
    assert dispatcher.finished("a/2", 52.0) == (slow, False)
    assert (dispatcher.predicted, dispatcher.doubled) == (96, 1)


def test_dispatcher_slow_worker_may_still_be_first():
    dispatcher, slow = slow_run()
    given(dispatcher, 5.0)
    assert dispatcher.finished("a/2", 6.0) == (slow, True)
    assert dispatcher.lost("b/1", 7.0) is None
    assert dispatcher.is_done


def test_dispatcher_double_that_dies_leaves_the_first():
    dispatcher, slow = slow_run()
    given(dispatcher, 5.0)
    dispatcher.lost("b/1", 6.0)
    assert not dispatcher.is_done
    assert given(dispatcher, 6.0) == {"a/1": slow}
    dispatcher.lost("a/2", 7.0)
    assert dispatcher.finished("a/1", 8.0) == (slow, True)
    assert dispatcher.is_done


def test_dispatcher_late_is_by_what_others_take():
    dispatcher = joined(Dispatcher(shards_of(3)), "a/1", "b/1", "a/2")
    given(dispatcher)
    dispatcher.finished("a/1", 10.0)
    dispatcher.finished("b/1", 30.0)
    assert given(dispatcher, 39.0) == {}
    assert dispatcher.next_time() == 40.0
    assert len(given(dispatcher, 40.0)) == 1


def test_dispatcher_nothing_is_late_while_shards_wait():
    dispatcher = joined(Dispatcher(shards_of(4)), "a/1", "b/1")
    shards = given(dispatcher)
    dispatcher.finished("a/1", 1.0)
    assert [*given(dispatcher, 100.0).values()] == [Shard(64, 96)]
    assert dispatcher.doubled == 0
    assert {*shards.values()} == {Shard(0, 32), Shard(32, 64)}


def test_dispatcher_refused_host_gets_nothing():
    dispatcher = joined(Dispatcher(shards_of(3)), "a/1", "a/2", "b/1")
    shards = given(dispatcher)
    assert sorted(dispatcher.refuse("a", 1.0)) == ["a/1", "a/2"]
    assert not dispatcher.join("a/3", "a")
    assert dispatcher.finished("a/1", 2.0) is None
    assert dispatcher.lost("a/2", 2.0) is None
    done = []
    while not dispatcher.is_done:
        result = dispatcher.finished("b/1", 3.0)
        done.append(result.shard)
        assert given(dispatcher, 3.0).keys() <= {"b/1"}
    assert sorted(done) == shards_of(3)
    assert shards["b/1"] == done[0]
    assert (dispatcher.workers, dispatcher.workers_on("a"), dispatcher.lost_workers) == (1, 0, 0)


def test_dispatcher_refused_host_is_no_strike():
    dispatcher = Dispatcher(shards_of(1))
    for host in "abcd":
        joined(dispatcher, f"{host}/1")
        assert given(dispatcher) == {f"{host}/1": Shard(0, 32)}
        dispatcher.refuse(host, 0.0)
    joined(dispatcher, "e/1")
    assert given(dispatcher) == {"e/1": Shard(0, 32)}


class Chaos:
    """Workers die, come late, are slow and are refused."""

    def __init__(self, seed):
        self.random, self.numbers = Random(seed), itertools.count()
        self.dispatcher = Dispatcher(shards_of(40))
        self.busy, self.rows, self.refused, self.now = {}, Counter(), set(), 0.0
        for _ in range(6):
            self.come()

    def come(self):
        host = self.random.choice("abc")
        is_wanted = self.dispatcher.join(f"{host}/{next(self.numbers)}", host)
        assert is_wanted == (host not in self.refused)

    def die(self, worker):
        del self.busy[worker]
        if (given_up := self.dispatcher.lost(worker, self.now)) is not None:
            self.rows.update(range(*given_up))

    def finish(self, worker):
        result = self.dispatcher.finished(worker, self.now)
        assert result.shard == self.busy.pop(worker)
        if result.is_first:
            self.rows.update(range(*result.shard))

    def refuse(self):
        self.refused.add(host := self.random.choice("abc"))
        for worker in self.dispatcher.refuse(host, self.now):
            self.busy.pop(worker, None)

    def step(self):
        self.now += self.random.expovariate(1.0)
        for worker, shard in self.dispatcher.assign(self.now):
            assert worker not in self.busy
            self.busy[worker] = shard
        chance = self.random.random()
        if chance < 0.1:
            self.come()
        elif chance < 0.105 and not self.refused:
            self.refuse()
        elif self.busy:
            worker = self.random.choice([*self.busy])
            (self.die if chance < 0.2 else self.finish)(worker)


@pytest.mark.parametrize("seed", range(20))
def test_dispatcher_every_file_ends_once_whatever_happens(seed):
    chaos = Chaos(seed)
    while not chaos.dispatcher.is_done:
        chaos.step()
    assert chaos.rows == Counter(range(40 * 32))
    assert chaos.dispatcher.predicted + len(chaos.dispatcher.given_up) == 40 * 32


def seconds_for(workers):
    dispatcher = Dispatcher(shards_of(5 * workers))
    start = perf_counter()
    for i in range(workers):
        dispatcher.join(str(i), f"host {i // 8}")
    busy, now = deque(dispatcher.assign(0.0)), 0.0
    while not dispatcher.is_done:
        worker, _ = busy.popleft()
        now += 0.01
        dispatcher.finished(worker, now)
        busy += dispatcher.assign(now)
    return (perf_counter() - start) / workers


def test_dispatcher_event_costs_no_more_with_many_workers():
    few, many = (min(seconds_for(count) for _ in range(3)) for count in (50, 1500))
    assert many < 8 * few
