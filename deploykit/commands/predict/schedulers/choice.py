"""Which scheduler a command asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.commands.predict.schedulers import Scheduler


def chosen_scheduler(
    shard: str | None, on: str | None, workers: int | None, gpus_per_worker: float
) -> Scheduler | None:
    """What predicts the shards; None for this process.

    Args:
        shard: ``3/40``, for one of many processes.
        on: ``ray`` or ``ray://ADDRESS``, for the workers of a cluster.
        workers: How many of these.
        gpus_per_worker: GPUs of each.

    Raises:
        UsageError: Both are asked for, or one that there is not.
    """
    if on is None:
        if workers is not None or gpus_per_worker:
            raise UsageError(
                "--workers and --gpus-per-worker are for a cluster's.", hint="Add --on ray."
            )
        if shard is None:
            return None
        from deploykit.commands.predict.schedulers.one_of_many import parsed_shard

        return parsed_shard(shard)
    if shard is not None:
        raise UsageError(
            "--shard is for processes that a batch system starts, and --on ray starts its own.",
            hint="Leave out one of them.",
        )
    from deploykit.commands.predict.schedulers.on_ray import OnRay

    return OnRay(on, workers, gpus_per_worker)
