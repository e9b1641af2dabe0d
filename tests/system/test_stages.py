"""Where the time goes, and what a run waits for."""

import time

import pytest

from deploykit.system.threads import StageClock, bottleneck, worker_stages


def test_what_workers_do_side_by_side_counts_once():
    clock = StageClock(4, worker_stages(concurrent=False))
    for stage in ("decode", "session", "write"):
        with clock.waiting(stage):
            time.sleep(0.02)
    seconds = clock.seconds
    assert 0.005 <= seconds["decode"] < seconds["session"] / 2
    assert seconds["session"] >= 0.02
    assert seconds["write"] >= 0.02
    assert seconds["resize"] == 0


def test_a_thread_that_waits_for_a_core_does_not_compute():
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
def test_the_bottleneck_is_what_the_others_wait_for(seconds, concurrent, expected):
    stages = dict(zip(("decode", "resize", "session", "write"), seconds, strict=True))
    assert bottleneck(stages, concurrent=concurrent) == expected
