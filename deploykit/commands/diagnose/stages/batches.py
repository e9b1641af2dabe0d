"""Batches of several sizes against images one by one: a side step of the table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.commands.diagnose.stages.table import StageTable, largest, reasons_against
from deploykit.errors import GraphError
from deploykit.parity.compare import FIRST_BATCH_SIZES, MAX_BATCH_SIZE, OPT_BATCH_SIZE
from deploykit.parity.diagnosis import Finding
from deploykit.parity.measurement import Measurement
from deploykit.parity.measures import measure
from deploykit.parity.tolerance import tolerance_for
from deploykit.specs.session import Logits, Session
from deploykit.system.progress import Step

_NAMES_TOLD = 3


@dataclass(frozen=True, eq=False)
class BatchTrial:
    """What a graph answers in batches.

    Attributes:
        graph: The graph.
        alone: (N, K), its answers one by one.
        batches: The places of each batch's photos.
        logits: (n, K) for each batch; NaN where the graph failed.
        failures: What it said then.
        added: Each batch compared with the same images one by one.
    """

    graph: str
    alone: Logits
    batches: tuple[tuple[int, ...], ...]
    logits: tuple[Logits, ...]
    failures: tuple[str, ...]
    added: tuple[Measurement, ...]

    @property
    def wrong(self) -> tuple[Measurement, ...]:
        """The batches whose answers are not those of their images one by one."""
        tolerance = tolerance_for("fp32")
        return tuple(each for each in self.added if reasons_against(each, tolerance))


def planned_batches(photos: int) -> tuple[tuple[int, ...], ...]:
    """One batch of each size that a comparison runs, but for 1: the places of its photos.

    Every size is tried, for a graph that has one wired in is right at that one only. Of few photos
    some come twice; for the largest size there must be as many photos.
    """
    sizes = [*FIRST_BATCH_SIZES[1:], OPT_BATCH_SIZE]
    if photos >= MAX_BATCH_SIZE:
        sizes.append(MAX_BATCH_SIZE)
    places = itertools.cycle(range(photos))
    return tuple(tuple(itertools.islice(places, size)) for size in sizes)


def try_batches(table: StageTable, session: Session, alone: Logits) -> BatchTrial:
    """Let a graph answer in batches, and compare: nothing is written down yet.

    Args:
        table: Gives the photos.
        session: A graph's, which takes any batch size.
        alone: (N, K), its answers one by one.
    """
    graph = session.spec.graph
    batches = planned_batches(len(alone))
    answers, failures, added = [], [], []
    for places in batches:
        table.progress(Step("diagnosing the stages", detail=f"{graph} in a batch of {len(places)}"))
        try:
            logits = session.run(table.photos.pixels[list(places)])
        except GraphError as exc:
            failures.append(exc.message)
            logits = np.full((len(places), alone.shape[1]), np.nan, np.float32)
        answers.append(logits)
        fine = np.isfinite(alone[list(places)]).all(axis=1)
        added.append(
            measure(
                alone[list(places)][fine],
                logits[fine],
                precision="fp32",
                paths=[table.photos.names[place] for place in np.array(places)[fine]],
                labels=table.labels,
                batch_sizes=[len(places)],
                least_scale=largest(alone),
            )
        )
    return BatchTrial(graph, alone, batches, tuple(answers), tuple(failures), tuple(added))


def record_batches(table: StageTable, trial: BatchTrial) -> None:
    """Write a trial down: a step, and a finding where the answers depend on the batch size."""
    sizes = [len(places) for places in trial.batches]
    table.add(
        "batch size",
        f"{trial.graph} in batches of {_listed(sizes)} instead of one by one",
        np.concatenate(trial.logits),
        since=trial.alone,
        places=[*itertools.chain.from_iterable(trial.batches)],
        batch_sizes=sizes,
    )
    if trial.wrong:
        table.findings.append(_batch_finding(trial))


def _batch_finding(trial: BatchTrial) -> Finding:
    wrong = trial.wrong
    flipped = list(dict.fromkeys(flip.path for each in wrong for flip in each.flipped))
    worst = max(each.max_relative_error for each in wrong)
    told = (
        trial.failures[0] if trial.failures else f"logits differ by up to {worst:.1e} of the scale"
    )
    if flipped:
        more = ", ..." if len(flipped) > _NAMES_TOLD else ""
        told += f", and the class of {', '.join(flipped[:_NAMES_TOLD])}{more} changes"
    return Finding(
        stage="batch size",
        message=f"{trial.graph} depends on the batch size: right one by one, wrong in batches of "
        f"{_listed([size for each in wrong for size in each.batch_sizes])}; {told}",
        hint="Correct the network's forward, which mixes the images of a batch or has a batch size "
        "built in (x.view(2, ...), a mean over dimension 0, BatchNorm in training mode), and "
        "export again.",
    )


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
