"""Who predicts the shards of a run: one file each, behind one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from deploykit.commands.predict.ledger import Ledger
    from deploykit.commands.predict.run import PredictionRun
    from deploykit.commands.predict.worker import Show


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
