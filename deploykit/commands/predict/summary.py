"""What a prediction comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.commands.predict.tally import Tally
from deploykit.proof.policy import Status
from deploykit.specs.session import SessionSpec
from deploykit.specs.value import Shown
from deploykit.system.threads import Stage

if TYPE_CHECKING:
    from deploykit.bundle.embeddings import EmbeddingsRecord
    from deploykit.bundle.folder import Bundle


@dataclass(repr=False, kw_only=True)
class PredictionSummary(Shown):
    """A run that has ended. It prints as the command's summary.

    Attributes:
        bundle: What predicted.
        spec: What really ran.
        top_k: How many classes a row ranks.
        source: What was predicted.
        root: The folder that the rows' paths are relative to.
        tally: What the rows add up to.
        stage_seconds: What the stages took.
        status: Whether what ran is proven to decide as the trained network does.
        outputs: The files that were written.
        embeddings: What the embeddings are that were written, too; None without any.
        hosts: How many machines predicted; 0 where that is not known.
    """

    bundle: Bundle
    spec: SessionSpec
    top_k: int
    source: Path
    root: Path
    tally: Tally
    stage_seconds: dict[Stage, float]
    status: Status
    outputs: list[Path] = field(default_factory=list)
    embeddings: EmbeddingsRecord | None = None
    hosts: int = 0


@dataclass(frozen=True, repr=False)
class ShardSummary(Shown):
    """What one of several processes has done for a run.

    Attributes:
        shard: Which one it was: ``3/40``.
        predicted: How many files it predicted.
        rows: How many of the run's files have their rows.
        files: How many the run has.
        folder: The run's.
    """

    shard: str
    predicted: int
    rows: int
    files: int
    folder: Path
