"""The steps from the network to what is deployed: graphs, batches, precisions, runtimes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle, deploy_graph
from deploykit.commands.diagnose.stages.table import StageTable, first_names
from deploykit.errors import BundleError, GraphError, MissingError
from deploykit.inference.candidates import (
    Candidate,
    all_candidates,
    by_reason,
    named_candidates,
    open_candidate,
)
from deploykit.parity.compare import FIRST_BATCH_SIZES, MAX_BATCH_SIZE, OPT_BATCH_SIZE
from deploykit.parity.diagnosis import Finding
from deploykit.parity.measurement import Measurement
from deploykit.parity.tolerance import tolerance_for
from deploykit.runtime.opener import CPU, CUDA, REHEARSAL
from deploykit.specs.engine import is_flavour
from deploykit.specs.model import Precision
from deploykit.specs.session import Logits, Session
from deploykit.system.gpu import find_gpu
from deploykit.system.progress import Note, Progress, Step

_ON_CPU = (CPU, REHEARSAL)
#: Of the scale. Batches whose logits differ by less, and change no decision, may do so by rounding.
_MOST_ROUNDING = 5e-3


def add_fp32_steps(
    table: StageTable, bundle: Bundle, since: Logits, *, is_reference: bool
) -> Logits:
    """Step from the network over the canonical graph to the FP32 deploy graph.

    Both graphs are tried in batches: the deploy graph may have a fault from the canonical one.

    Args:
        table: So far.
        bundle: The bundle.
        since: (N, K), the network's answers to the recorded preprocessing.
        is_reference: Whether the network is the canonical graph already.

    Returns:
        (N, K), the FP32 deploy graph's answers one by one.
    """
    change = f"{CANONICAL_GRAPH} on {CPU} instead of the torch module"
    with open_candidate(bundle, Candidate(CANONICAL_GRAPH, CPU, "fp32")) as session:
        canonical = since if is_reference else table.ask(session, change)
        if not is_reference:
            table.add("canonical graph", change, canonical, since=since)
        batches_pass = _add_batches(table, session, canonical)
    graph = deploy_graph("fp32")
    change = f"{graph}, which the graph passes made of {CANONICAL_GRAPH}"
    with open_candidate(bundle, Candidate(graph, CPU, "fp32")) as session:
        deployed = table.ask(session, change)
        table.add("graph pass", change, deployed, since=canonical)
        if batches_pass:
            _add_batches(table, session, deployed)
    return deployed


def _add_batches(table: StageTable, session: Session, alone: Logits) -> bool:
    """Compare a graph's answers in batches with those one by one.

    Every batch size of a comparison is tried: a graph that has one built in is right at that one
    only. Of few images some come twice; for the largest batch there must be as many images.

    Args:
        table: So far.
        session: The graph's, which takes any batch size.
        alone: (N, K), its answers one by one.

    Returns:
        Whether all batches are right.
    """
    graph = session.spec.graph
    sizes = [*FIRST_BATCH_SIZES[1:], OPT_BATCH_SIZE]
    if len(alone) >= MAX_BATCH_SIZE:
        sizes.append(MAX_BATCH_SIZE)
    images = itertools.cycle(range(len(alone)))
    rows: list[int] = []
    answers: list[Logits] = []
    wrong: list[Measurement] = []
    failures: list[str] = []
    for size in sizes:
        table.progress(Step("diagnosing the stages", detail=f"{graph} in a batch of {size}"))
        batch = list(itertools.islice(images, size))
        try:
            logits = session.run(table.images.pixels[batch])
        except GraphError as exc:
            failures.append(exc.message)
            logits = np.full((size, alone.shape[1]), np.nan, np.float32)
        rows += batch
        answers.append(logits)
        found = table.compared(logits, alone, batch, batch_sizes=[size])
        if tolerance_for("fp32").exceeded(found):
            wrong.append(found)
    change = f"{graph} in batches of {', '.join(map(str, sizes))} instead of one by one"
    logits = np.concatenate(answers)
    table.add("batch size", change, logits, since=alone, rows=rows, batch_sizes=sizes)
    if wrong:
        table.findings.append(_batch_finding(graph, wrong, failures))
    return not wrong


def _batch_finding(graph: str, wrong: Sequence[Measurement], failures: Sequence[str]) -> Finding:
    """Name a graph whose answers depend on the batch size, or whose rounding grows too large."""
    sizes = ", ".join(str(size) for each in wrong for size in each.batch_sizes)
    worst = max(each.max_relative_error for each in wrong)
    differ = f"logits differ by up to {worst:.1e} of the scale"
    flipped = list(dict.fromkeys(flip.path for each in wrong for flip in each.flipped))
    if worst <= _MOST_ROUNDING and not flipped:
        return Finding(
            stage="batch size",
            message=f"{graph} answers otherwise in batches of {sizes} than one by one: {differ}, "
            f"and no {wrong[0].decision} changes; rounding that grows in the network may do that",
            hint="A runtime rounds otherwise for another batch size. The diagnosis by node "
            "(--layers) names a node that adds more than rounding; if none does, the network "
            "itself makes small differences large: compare it in float64, or train with less "
            "extreme weights.",
        )
    reason = failures[0] if failures else differ
    if flipped:
        reason += f", and the {wrong[0].decision} of {first_names(flipped)} changes"
    return Finding(
        stage="batch size",
        message=f"{graph} depends on the batch size: right one by one, wrong in batches of "
        f"{sizes}; {reason}",
        hint="Correct the network's forward, which mixes the images of a batch or has a batch size "
        "built in (x.view(2, ...), a mean over dimension 0, BatchNorm in training mode), and "
        "export again.",
    )


def add_candidates(
    table: StageTable, bundle: Bundle, candidates: Sequence[Candidate], deployed: Logits
) -> None:
    """Step from the FP32 deploy graph to each lower precision, and from there to each runtime.

    What cannot run here is told in a note.

    Args:
        table: So far.
        bundle: The bundle.
        candidates: What is compared, of engines the newest first.
        deployed: (N, K), the FP32 deploy graph's answers on ONNX Runtime's CPU provider.
    """
    known: dict[tuple[str, Precision], Logits] = {(CPU, "fp32"): deployed}
    skipped: list[tuple[Candidate, str]] = []
    for candidate in sorted(candidates, key=lambda it: it.runtime not in _ON_CPU):
        kind = candidate.runtime, candidate.precision
        if kind in known:
            continue  # an older engine
        try:
            with open_candidate(bundle, candidate) as session:
                logits = table.ask(session, str(candidate))
        except (MissingError, BundleError, GraphError) as exc:
            if not (isinstance(exc, MissingError) or is_flavour(candidate.runtime)):
                raise
            skipped.append((candidate, exc.message))
            continue
        origins = [known[origin] for origin in _origins(candidate) if origin in known]
        table.add(
            "precision" if candidate.runtime in _ON_CPU or candidate.is_hinted else "runtime",
            str(candidate),
            logits,
            since=origins[0] if origins else deployed,
            precision=candidate.precision,
        )
        known[kind] = logits
    for line in by_reason(skipped):
        table.progress(Note(f"skipped: {line}"))


def _origins(candidate: Candidate) -> list[tuple[str, Precision]]:
    """The runtimes on the CPU, with the precision, that another runtime is one step away from."""
    if candidate.runtime in _ON_CPU:
        return []
    return [(runtime, candidate.precision) for runtime in _ON_CPU]


def wanted_candidates(
    bundle: Bundle, runtime: str | None, precision: Precision | None, progress: Progress
) -> list[Candidate]:
    """What is meant by a runtime, a precision, or both; with where it comes from.

    A device's step is from the same precision on the CPU, so that it does not answer for what the
    precision does.

    Raises:
        UsageError: There is no such runtime, or it does not compute in that precision.
        BundleError: The bundle has nothing of that kind.
    """
    named = named_candidates(bundle, runtime, precision, progress)
    if runtime is None and find_gpu() is None:  # which needs no note
        named = [each for each in named if each.runtime != CUDA]
    origins = {origin for each in named for origin in _origins(each)}
    before = [
        each
        for each in all_candidates(bundle)
        if (each.runtime, each.precision) in origins and each not in named
    ]
    return [*before, *named]
