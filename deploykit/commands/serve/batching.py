"""Dynamic batching: what waits together is computed together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np

from deploykit.specs.session import (
    Closing,
    ImageBatch,
    Logits,
    PipelinedSession,
    Session,
    Ticket,
)

#: Told of each batch: how many images it had, and the seconds that it took.
Observe: TypeAlias = Callable[[int, float], None]
#: While the device computes one batch, the host hands it the next.
_IN_FLIGHT = 2


@dataclass(eq=False, slots=True)
class _Job:
    """A request's images, (N, H, W, 3), and what becomes of them."""

    images: ImageBatch
    future: Future[Logits] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    taken: int = 0
    parts: list[tuple[int, Logits]] = field(default_factory=list)
    answered: int = 0


class _Part(NamedTuple):
    """Consecutive images of a job, in a batch."""

    job: _Job
    start: int
    stop: int


class Batcher(Closing):
    """Lets a session compute what several requests ask for.

    A slot is a thread that runs batches. One slot at a time collects: it takes what is there, and
    waits for more only until the oldest has waited long enough. A session with a device of its own
    has one slot, with two batches in flight.

    Args:
        session: What answers; the caller closes it, after this.
        slots: How many batches are computed at once.
        max_batch: The most images a batch.
        max_delay_ms: How long an image waits at most for others to fill its batch.
        observe: Told of each batch.
    """

    def __init__(
        self, session: Session, *, slots: int, max_batch: int, max_delay_ms: float, observe: Observe
    ) -> None:
        self._session = session
        self._max_batch = max_batch
        self._delay = max_delay_ms / 1000
        self._observe = observe
        self._jobs: deque[_Job] = deque()
        self._images = 0
        self._closing = False
        self._collecting = threading.Lock()
        self._changed = threading.Condition()
        self._delivering = threading.Lock()
        work = self._work_ahead if isinstance(session, PipelinedSession) else self._work
        self._slots = [
            threading.Thread(target=work, name=f"deploykit-slot-{i}", daemon=True)
            for i in range(1 if isinstance(session, PipelinedSession) else slots)
        ]
        for slot in self._slots:
            slot.start()

    @property
    def waiting(self) -> int:
        """How many images wait for a slot."""
        return self._images

    def submit(self, images: ImageBatch) -> Future[Logits]:
        """Let images be computed.

        Args:
            images: (N, H, W, 3), N at least 1, as the session takes them; not changed until the
                answer is there.

        Returns:
            Gives (N, K) float32, or raises what the session raised. One that is cancelled before
            its first batch begins is not computed.
        """
        job = _Job(images)
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            self._jobs.append(job)
            self._images += len(images)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Compute what waits, and end the slots."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for slot in self._slots:
            slot.join()

    def _work(self) -> None:
        while parts := self._collected(wait=True):
            start = time.perf_counter()
            try:
                logits = self._session.run(_batch_of(parts))
            except Exception as exc:  # noqa: BLE001  # whoever waits is told, and the slot goes on
                self._fail(parts, exc)
            else:
                self._deliver(parts, logits, start)

    def _work_ahead(self) -> None:
        session = self._session
        assert isinstance(session, PipelinedSession)  # noqa: S101  # or this is not called
        started: deque[tuple[list[_Part], Ticket, float]] = deque()
        while (parts := self._collected(wait=not started)) or started:
            if parts:
                start = time.perf_counter()
                try:
                    started.append((parts, session.submit(_batch_of(parts)), start))
                except Exception as exc:  # noqa: BLE001  # as above
                    self._fail(parts, exc)
                if len(started) < _IN_FLIGHT:
                    continue
            parts, ticket, start = started.popleft()
            try:
                logits = session.collect(ticket)
            except Exception as exc:  # noqa: BLE001  # as above
                self._fail(parts, exc)
            else:
                self._deliver(parts, logits, start)

    def _collected(self, *, wait: bool) -> list[_Part]:
        """The next batch; nothing when there is none, and with ``wait`` will be none."""
        with self._collecting, self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closing or not wait)
                if not self._jobs:
                    return []
                due = self._jobs[0].since + self._delay
                while (
                    wait
                    and self._images < self._max_batch
                    and not self._closing
                    and (left := due - time.monotonic()) > 0
                ):
                    self._changed.wait(left)
                if parts := self._cut():
                    return parts

    def _cut(self) -> list[_Part]:
        """As many of the images that wait as a batch takes, the oldest first."""
        parts: list[_Part] = []
        room = self._max_batch
        while room and self._jobs:
            job = self._jobs[0]
            if job.taken == 0 and not job.future.set_running_or_notify_cancel():
                self._jobs.popleft()
                self._images -= len(job.images)
                continue
            part = _Part(job, job.taken, min(job.taken + room, len(job.images)))
            job.taken = part.stop
            room -= part.stop - part.start
            parts.append(part)
            if part.stop == len(job.images):
                self._jobs.popleft()
        self._images -= self._max_batch - room
        return parts

    def _deliver(self, parts: list[_Part], logits: Logits, start: float) -> None:
        self._observe(len(logits), time.perf_counter() - start)
        first = 0
        for job, begin, end in parts:
            answers = logits[first : first + end - begin]
            first += end - begin
            with self._delivering:
                job.parts.append((begin, answers))
                job.answered += len(answers)
                is_whole = job.answered == len(job.images)
            if is_whole:
                job.parts.sort(key=lambda part: part[0])
                job.future.set_result(np.concatenate([each for _, each in job.parts]))

    def _fail(self, parts: list[_Part], error: Exception) -> None:
        with self._delivering:
            for job in dict.fromkeys(part.job for part in parts):
                if not job.future.done():  # another of its parts may have failed
                    job.future.set_exception(error)


def _batch_of(parts: list[_Part]) -> ImageBatch:
    """(N, H, W, 3), contiguous."""
    if len(parts) == 1:
        job, start, stop = parts[0]
        return np.ascontiguousarray(job.images[start:stop])
    return np.concatenate([job.images[start:stop] for job, start, stop in parts])
