"""All shards, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.commands.predict.schedulers import Here, predict_shards

if TYPE_CHECKING:
    from deploykit.commands.predict.ledger import Ledger
    from deploykit.commands.predict.run import PredictionRun
    from deploykit.commands.predict.schedulers import Show


class ThisProcess(Here):
    """Predicts whatever is missing."""

    shared = False
    workers = 1

    def predict(self, run: PredictionRun, ledger: Ledger, show: Show) -> int:
        """See :class:`~deploykit.commands.predict.schedulers.Scheduler`."""
        missing = [*ledger.missing()]
        predict_shards(run, ledger, missing, show)
        return sum(shard.size for shard in missing)
