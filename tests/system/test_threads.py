"""How many threads, work on them in order, and where the time goes."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from deploykit.system import threads
from deploykit.system.threads import StageClock, bottleneck, in_order, usable_cpus


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """A machine with 8 CPUs whose cgroups a test writes; gives their folder."""
    monkeypatch.setattr(threads, "_allowed_cpus", lambda: 8)
    monkeypatch.setattr(threads, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(threads, "_CGROUPS", tmp_path / "cgroup")
    return tmp_path / "cgroup"


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 3),
        ("10000 100000", 1),
        ("3200000 100000", 8),
    ],
)
def test_usable_cpus_cgroup_version_2(cgroups, quota, cpus):
    (cgroups.parent / "own").write_text("0::/docker/1a2b\n")
    write(cgroups / "docker" / "1a2b", cpu__max=quota)
    assert usable_cpus() == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("150000", 2)])
def test_usable_cpus_cgroup_version_1(cgroups, quota, cpus):
    (cgroups.parent / "own").write_text("4:memory:/m\n2:cpu,cpuacct:/job\n0::/\n")
    write(cgroups / "cpu" / "job", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert usable_cpus() == cpus


def test_usable_cpus_of_an_outer_cgroup(cgroups):
    (cgroups.parent / "own").write_text("0::/slice/job\n")
    write(cgroups / "slice" / "job", cpu__max="600000 100000")
    write(cgroups / "slice", cpu__max="200000 100000")
    assert usable_cpus() == 2


def test_usable_cpus_in_a_container(cgroups):
    (cgroups.parent / "own").write_text("2:cpu,cpuacct:/docker/1a2b\n")
    write(cgroups / "cpu", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    assert usable_cpus() == 3


def test_usable_cpus_without_cgroups(cgroups):
    assert usable_cpus() == 8


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process has all CPUs")
def test_usable_cpus_by_affinity():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


def results(work, items, *, workers=3, ahead=4):
    return in_order(work, items, threads=workers, ahead=ahead, name="test-threads")


def our_threads():
    return [each for each in threading.enumerate() if each.name.startswith("test-threads")]


def test_in_order_keeps_order_of_items():
    def slowest_first(item):
        time.sleep(0.03 if item == 0 else 0)
        return item, threading.current_thread().name

    found = list(results(slowest_first, range(20)))
    assert [item for item, _ in found] == list(range(20))
    assert len({name for _, name in found}) > 1
    assert not our_threads()


def test_in_order_takes_items_as_needed():
    taken = []
    found = results(str, (taken.append(item) or item for item in range(50)), ahead=4)
    assert not taken
    assert next(found) == "0"
    assert taken == [0, 1, 2, 3, 4]
    assert next(found) == "1"
    assert len(taken) == 6
    found.close()


def test_in_order_raises_errors_in_place():
    found = results(lambda item: 6 // item, [1, 2, 0, 3])
    assert next(found) == 6
    assert next(found) == 3
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert not our_threads()


def test_in_order_abandoned_ends_its_threads():
    done = []

    def work(item):
        time.sleep(0.01)
        done.append(item)

    for _ in results(work, range(1000), workers=1, ahead=100):
        break
    assert len(done) < 10
    assert not our_threads()


def test_stage_clock_of_parallel_workers():
    clock = StageClock(4)
    for stage in ("decode", "session", "write"):
        with clock.waiting(stage):
            time.sleep(0.02)
    seconds = clock.seconds
    assert 0.005 <= seconds["decode"] < seconds["session"] / 2
    assert seconds["session"] >= 0.02
    assert seconds["write"] >= 0.02
    assert seconds["resize"] == 0


def test_stage_clock_skips_waiting_for_a_core():
    clock = StageClock()
    with clock.computing("decode"):
        time.sleep(0.05)
    assert clock.seconds["decode"] < 0.04


@pytest.mark.parametrize(
    ("seconds", "concurrent", "expected"),
    [
        # On the CPU the workers do all three, and writing is beside them.
        ((1, 1, 8, 2), True, "session"),
        ((4, 3, 3, 9), True, "decode"),
        ((1, 1, 2, 5), True, "write"),
        # On a device the workers only read, and one thread feeds the device and writes.
        ((1, 1, 8, 2), False, "session"),
        ((4, 3, 6, 0), False, "decode"),
        ((3, 4, 6, 0), False, "resize"),
        ((1, 1, 2, 5), False, "write"),
    ],
)
def test_bottleneck_of_stages(seconds, concurrent, expected):
    stages = dict(zip(("decode", "resize", "session", "write"), seconds, strict=True))
    assert bottleneck(stages, concurrent=concurrent) == expected
