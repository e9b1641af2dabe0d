"""Every n-th shard, in this process: for a batch system that starts one command n times.

No process knows of another. What they share is the folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.commands.predict.schedulers import Here, predict_shards
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.commands.predict.ledger import Ledger
    from deploykit.commands.predict.plan import Plan, Shard
    from deploykit.commands.predict.run import PredictionRun
    from deploykit.commands.predict.schedulers import Show


@dataclass(frozen=True)
class OneOfMany(Here):
    """Predicts what is missing of its shards: 3/40 those with the numbers 2, 42, 82, ...

    Args:
        number: Which one this is, from 1.
        workers: How many there are.
    """

    number: int
    workers: int
    shared = True

    def __str__(self) -> str:
        return f"{self.number}/{self.workers}"

    def is_mine(self, plan: Plan, shard: Shard) -> bool:
        """Whether a shard, or a part of one, is this one's to predict."""
        return plan.shard_number(shard) % self.workers == self.number - 1

    def predict(self, run: PredictionRun, ledger: Ledger, show: Show) -> int:
        """See :class:`~deploykit.commands.predict.schedulers.Scheduler`."""
        plan = ledger.made
        ledger.drop_damaged(part for part in ledger.parts() if self.is_mine(plan, part))
        mine = [shard for shard in ledger.missing() if self.is_mine(plan, shard)]
        predict_shards(run, ledger, mine, show)
        return sum(shard.size for shard in mine)


def parsed_shard(text: str) -> OneOfMany:
    """What ``--shard 3/40`` means.

    Raises:
        UsageError: It means nothing.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(
            f"--shard {text!r} is none.",
            hint="The third of forty is --shard 3/40; they are counted from 1.",
        )
    return OneOfMany(int(match[1]), int(match[2]))
