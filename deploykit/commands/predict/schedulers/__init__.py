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
    from pathlib import Path

    from deploykit.bundle.folder import Bundle
    from deploykit.commands.predict.plan import Shard
    from deploykit.commands.predict.run import PredictionRun, PredictRequest
    from deploykit.commands.predict.tally import ClusterReport
    from deploykit.specs.session import Embeddings, Session
    from deploykit.system.progress import Progress

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

    @property
    def shard_files(self) -> int | None:
        """How many files a shard should have; see ``shard_size_of``."""
        ...

    @property
    def report(self) -> ClusterReport | None:
        """Who predicted; None for this process."""
        ...

    def open_session(
        self,
        bundle: Bundle,
        request: PredictRequest,
        root: Path,
        progress: Progress,
    ) -> Session | None:
        """What stands for the sessions of others; None where this process opens its own.

        Args:
            bundle: What predicts.
            request: What to predict, and how.
            root: The folder that the files' names are relative to.
            progress: Told what becomes of them.

        Raises:
            DeploykitError: Nobody can predict.
        """
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


class Here:
    """What is common to schedulers that predict in this process."""

    shard_files = None
    report = None

    def open_session(
        self,
        bundle: Bundle,
        request: PredictRequest,
        root: Path,
        progress: Progress,
    ) -> None:
        """This process opens its own."""


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
    clock = PartClock(run, socket.gethostname())
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


class PartClock:
    """What each part takes, from the end of the one before.

    Args:
        run: What predicts.
        host: The name of this machine.
    """

    def __init__(self, run: PredictionRun, host: str) -> None:
        self._run = run
        self._host = host
        self._at = time.perf_counter()
        self._stages = dict(run.clock.seconds)

    def work(self) -> Work:
        """What the part took that is done now."""
        now, stages = time.perf_counter(), dict(self._run.clock.seconds)
        spent = {stage: seconds - self._stages[stage] for stage, seconds in stages.items()}
        work = Work(host=self._host, seconds=now - self._at, stages=spent)
        self._at, self._stages = now, stages
        return work
