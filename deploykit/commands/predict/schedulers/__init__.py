"""Who predicts the shards of a run: one file each, behind one interface.

What a process does with the shards that it was given is the same for all.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Protocol, TypeAlias

from deploykit.commands.predict.ledger import Ledger, Work
from deploykit.specs.prediction import Prediction

if TYPE_CHECKING:
    from deploykit.commands.predict.plan import Shard
    from deploykit.commands.predict.run import PredictionRun
    from deploykit.specs.session import Embeddings

Show: TypeAlias = Callable[[int, Prediction], None]
"""Is given each new row with its ordinal."""


class Scheduler(Protocol):
    """Sees to it that shards that are missing are predicted."""

    @property
    def shared(self) -> bool:
        """Whether others work on the same run; then ``collect`` makes the tables."""
        ...

    @property
    def workers(self) -> int:
        """How many work on the run: each should have a shard at least."""
        ...

    def predict(self, run: PredictionRun, ledger: Ledger, show: Show) -> int:
        """Predict shards that the ledger misses.

        Args:
            run: An open session, and the settings.
            ledger: With a plan.
            show: Is given each row that this process predicts, as it comes.

        Returns:
            How many files it predicted.

        Raises:
            DeploykitError: What keeps it from that; the parts that are there stay.
        """
        ...


def predict_shards(run: PredictionRun, ledger: Ledger, shards: Sequence[Shard], show: Show) -> None:
    """Predict shards, one after the other, without a pause between two.

    Whatever ends it, the rows that are there are kept: those of a shard that is not whole are a
    part of their own.

    Args:
        run: What predicts.
        ledger: Where the files are listed, and the parts go.
        shards: In the order of the plan.
        show: Is given each row.

    Raises:
        InputError: The system fails to write a part; or see
            :meth:`~deploykit.commands.predict.run.PredictionRun.answers`.
    """
    count = sum(shard.size for shard in shards)
    if not count:
        return
    rows: list[tuple[Prediction, Embeddings | None]] = []
    clock = _PartClock(run)
    files, done = ledger.files(shards, run.root), ledger.made.files - count
    with closing(run.answers(files, count, done=done)) as answers:
        for shard in shards:
            try:
                for ordinal in range(*shard):
                    answer = next(answers)
                    show(ordinal, answer[0])
                    rows.append(answer)
            finally:
                if rows:
                    with run.clock.waiting("write"):
                        ledger.write(shard.start, rows, clock.work())
            rows = []


class _PartClock:
    """What each part takes, from the end of the one before."""

    def __init__(self, run: PredictionRun) -> None:
        self._run = run
        self._host = socket.gethostname()
        self._at = time.perf_counter()
        self._stages = dict(run.clock.seconds)

    def work(self) -> Work:
        now, stages = time.perf_counter(), dict(self._run.clock.seconds)
        spent = {stage: seconds - self._stages[stage] for stage, seconds in stages.items()}
        work = Work(host=self._host, seconds=now - self._at, stages=spent)
        self._at, self._stages = now, stages
        return work
