"""What waits together is computed together, and each gets its own answer."""

import threading
import time
from contextlib import closing

import numpy as np
import pytest
from fake_session import FakeSession

from deploykit.commands.serve.batching import Batcher
from deploykit.runtime._base import PipelinedBase
from deploykit.specs.session import SessionSpec


def means(images):
    return images.mean(axis=(1, 2))


def images_of(*values):
    return np.stack([np.full((8, 8, 3), value, np.uint8) for value in values])


class Gate:
    """A session's function that waits until it is let go."""

    def __init__(self):
        self.open = threading.Event()
        self.entered = threading.Event()

    def __call__(self, images):
        self.entered.set()
        assert self.open.wait(10)
        return means(images)


class FakePipelined(PipelinedBase):
    """Notes in which order batches begin and end."""

    def __init__(self, gate=None):
        super().__init__(SessionSpec("fake", "fake", "fp32", "none", (8, 8), 3))
        self.events, self._gate = [], gate

    def _start(self, images):
        self.events.append(f"start {len(images)}")
        return images

    def _finish(self, batch):
        if self._gate is not None:
            assert self._gate.wait(10)
        self.events.append(f"finish {len(batch)}")
        if batch[0, 0, 0, 0] == 99:
            raise RuntimeError("the device failed")
        return np.asarray(means(batch), np.float32)


def batcher(session, *, slots=1, max_batch=4, max_delay_ms=0.0, seen=None):
    def observe(images, seconds):
        if seen is not None:
            seen.append(images)

    return Batcher(
        session, slots=slots, max_batch=max_batch, max_delay_ms=max_delay_ms, observe=observe
    )


def test_batcher_fills_batches_across_requests():
    gate, seen = Gate(), []
    session = FakeSession(gate, classes=3)
    with closing(batcher(session, seen=seen)) as made:
        first = made.submit(images_of(0))
        assert gate.entered.wait(10)
        sizes = (1, 2, 6, 1)  # 10 images, which wait for the first
        starts = np.cumsum((1, *sizes))
        jobs = [
            made.submit(images_of(*range(start, start + size)))
            for start, size in zip(starts, sizes, strict=False)
        ]
        assert made.waiting == 10
        gate.open.set()
        for job, start, size in zip(jobs, starts, sizes, strict=False):
            expected = np.repeat(np.arange(start, start + size)[:, None], 3, axis=1)
            assert np.array_equal(job.result(10), expected)
        assert np.array_equal(first.result(10), np.zeros((1, 3)))
    assert session.batch_sizes == seen == [1, 4, 4, 2]


def test_batcher_waits_for_others_only_so_long():
    session = FakeSession(means, classes=3)
    with closing(batcher(session, max_delay_ms=300)) as made:
        start = time.monotonic()
        alone = made.submit(images_of(1))
        alone.result(10)
        assert 0.25 < time.monotonic() - start < 5
        start = time.monotonic()
        jobs = [made.submit(images_of(value)) for value in range(4)]
        for job in jobs:
            job.result(10)
        assert time.monotonic() - start < 0.25  # a full batch waits for nobody
    assert session.batch_sizes == [1, 4]


def test_batcher_runs_as_many_batches_at_once_as_slots():
    together = threading.Barrier(3, timeout=10)

    def answer(images):
        together.wait()
        return means(images)

    with closing(batcher(FakeSession(answer, classes=3), slots=2, max_batch=1)) as made:
        jobs = [made.submit(images_of(value)) for value in range(2)]
        together.wait()
        assert [job.result(10)[0, 0] for job in jobs] == [0, 1]


def test_batcher_drops_what_was_cancelled_in_time():
    gate = Gate()
    session = FakeSession(gate, classes=3)
    with closing(batcher(session)) as made:
        made.submit(images_of(0))
        assert gate.entered.wait(10)
        dropped, kept = made.submit(images_of(1, 1)), made.submit(images_of(2))
        assert dropped.cancel()
        gate.open.set()
        assert kept.result(10)[0, 0] == 2
        assert made.waiting == 0
    assert session.batch_sizes == [1, 1]


@pytest.mark.parametrize("is_pipelined", [False, True])
def test_batcher_failure_is_told_and_the_next_is_answered(is_pipelined):
    def answer(images):
        if images[0, 0, 0, 0] == 99:
            raise RuntimeError("the device failed")
        return means(images)

    session = FakePipelined() if is_pipelined else FakeSession(answer, classes=3)
    with closing(batcher(session, max_batch=2)) as made:
        failed = made.submit(images_of(99, 99, 99))
        with pytest.raises(RuntimeError, match="the device failed"):
            failed.result(10)
        assert made.submit(images_of(7)).result(10)[0, 0] == 7


def test_batcher_has_two_batches_in_flight_on_a_device():
    gate = threading.Event()
    session = FakePipelined(gate)
    with closing(batcher(session, slots=3, max_batch=2)) as made:
        job = made.submit(images_of(*range(6)))
        while len(session.events) < 2:
            time.sleep(0.01)
        assert session.events == ["start 2", "start 2"]
        gate.set()
        assert job.result(10)[:, 0].tolist() == [*range(6)]
    assert session.events[2:4] == ["finish 2", "start 2"]


def test_batcher_computes_what_waits_before_it_closes():
    gate = Gate()
    made = batcher(FakeSession(gate, classes=3), max_batch=1)
    jobs = [made.submit(images_of(value)) for value in range(3)]
    closing_thread = threading.Thread(target=made.close)
    closing_thread.start()
    gate.open.set()
    closing_thread.join(10)
    assert [job.result(0)[0, 0] for job in jobs] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="closed"):
        made.submit(images_of(1))
