"""The steps from the network to what is deployed: graphs, passes, precisions, runtimes."""

from __future__ import annotations

from collections.abc import Sequence

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle, deploy_graph
from deploykit.commands.diagnose.stages.batches import record_batches, try_batches
from deploykit.commands.diagnose.stages.table import StageTable
from deploykit.errors import BundleError, DependencyError, GraphError, MissingError
from deploykit.inference.candidates import (
    Candidate,
    all_candidates,
    by_reason,
    named_candidates,
    open_bundle_graph,
    open_candidate,
)
from deploykit.parity.diagnosis import Finding
from deploykit.runtime.opener import CPU, CUDA, REHEARSAL, graph_precision, open_graph
from deploykit.specs.engine import is_flavour
from deploykit.specs.model import Precision
from deploykit.specs.session import Logits, Session
from deploykit.system.gpu import find_gpu
from deploykit.system.progress import Note, Progress


def add_fp32_steps(
    table: StageTable, bundle: Bundle, since: Logits, *, is_reference: bool
) -> Logits:
    """Step from the network over the canonical graph and each pass to the FP32 deploy graph.

    What is deployed is tried in batches. The canonical graph is, too, where the deploy graph is not
    what the passes make of it, or depends on the batch size and may have that from it.

    Args:
        table: So far.
        bundle: The bundle.
        since: (N, K), the network's answers to the recorded preprocessing.
        is_reference: Whether the network is the canonical graph already.

    Returns:
        (N, K), the FP32 deploy graph's answers one by one.
    """
    canonical = since
    if not is_reference:
        change = f"{CANONICAL_GRAPH} on {CPU} instead of the torch module"
        with _opened(bundle, CANONICAL_GRAPH) as session:
            canonical = table.ask(session, change)
        table.add("canonical graph", change, canonical, since=since)
    passed, content = _add_each_pass(table, bundle, canonical)
    graph = deploy_graph("fp32")
    change = f"{graph} as it is in the bundle"
    is_passed = content == bundle.checked(graph).read_bytes()
    with _opened(bundle, graph) as session:
        deployed = passed if is_passed else table.ask(session, change)
        table.add("graph pass", change, deployed, since=passed)
        trial = try_batches(table, session, deployed)
    if trial.wrong or not is_passed:
        with _opened(bundle, CANONICAL_GRAPH) as session:
            record_batches(table, try_batches(table, session, canonical))
    record_batches(table, trial)
    return deployed


def _opened(bundle: Bundle, graph: str) -> Session:
    return open_bundle_graph(bundle, graph, runtime=CPU, precision="fp32")


def _add_each_pass(table: StageTable, bundle: Bundle, since: Logits) -> tuple[Logits, bytes | None]:
    """Apply one graph pass after the other.

    A pass that finds nothing to do is no step.

    Returns:
        (N, K), the answers of what comes out, and its content; None where no pass can run here, or
        one fails or makes a graph that does not run.
    """
    try:
        from deploykit.graph.deploy import deploy_passes
        from deploykit.graph.files import load_graph
        from deploykit.graph.instruments import model_bytes
    except DependencyError as exc:
        table.progress(Note(f"graph passes are not compared one by one: {exc.message}"))
        return since, None
    manifest = bundle.manifest
    model = load_graph(bundle.checked(CANONICAL_GRAPH))
    content: bytes | None = None
    for each in deploy_passes(manifest.preprocessing):
        try:
            model, changed = each.run(model)
            if not changed:
                continue
            content = model_bytes(model)
            with open_graph(
                content,
                name=f"{CANONICAL_GRAPH} with {each.name}",
                runtime=CPU,
                precision="fp32",
                preprocessing=manifest.preprocessing,
                labels=manifest.labels,
            ) as session:
                logits = table.ask(session, each.name)
        except GraphError as exc:
            _record_broken_pass(table, each.name, since, exc)
            return since, None
        table.add("graph pass", each.name, logits, since=since)
        since = logits
    return since, content


def _record_broken_pass(table: StageTable, name: str, since: Logits, error: GraphError) -> None:
    """Write down a pass that gives no answer to compare: a step that failed, and a finding."""
    reasons = ("it gives no graph that runs",)
    table.add(
        "graph pass", name, since[:0], since=since, places=(), batch_sizes=(), reasons=reasons
    )
    table.findings.append(
        Finding(
            stage="graph pass",
            message=f'"{name}" makes no graph that runs of {CANONICAL_GRAPH}: '
            f"{error.message.strip()}",
            hint="The fault is deploykit's, not the network's: report it, with the graph if you "
            f"may. {CANONICAL_GRAPH} itself is not touched by it.",
        )
    )


def add_candidates(
    table: StageTable, bundle: Bundle, candidates: Sequence[Candidate], deployed: Logits
) -> None:
    """Step from the FP32 deploy graph to each lower precision, and from there to each runtime.

    BF16, which is no graph's own, is a step from the same runtime's FP32. What cannot run here is
    told in a note.

    Args:
        table: So far.
        bundle: The bundle.
        candidates: What is compared, of engines the newest first.
        deployed: (N, K), the FP32 deploy graph's answers on ONNX Runtime's CPU provider.
    """
    known: dict[tuple[str, Precision], Logits] = {(CPU, "fp32"): deployed}
    left_out: list[tuple[Candidate, str]] = []
    for candidate in sorted(candidates, key=lambda it: (not _on_cpu(it), it.is_hinted)):
        kind = candidate.runtime, candidate.precision
        if kind in known:
            continue  # an older engine
        try:
            with open_candidate(bundle, candidate) as session:
                logits = table.ask(session, str(candidate))
        except (MissingError, BundleError, GraphError) as exc:
            if not (isinstance(exc, MissingError) or is_flavour(candidate.runtime)):
                raise
            if candidate.runtime != CUDA or find_gpu() is not None:
                left_out.append((candidate, exc.message))
            continue
        origins = (known[origin] for origin in _origins(candidate) if origin in known)
        table.add(
            "precision" if _on_cpu(candidate) or candidate.is_hinted else "runtime",
            str(candidate),
            logits,
            since=next(origins, deployed),
            precision=candidate.precision,
        )
        known[kind] = logits
    for line in by_reason(left_out):
        table.progress(Note(f"left out: {line}"))


def _origins(candidate: Candidate) -> list[tuple[str, Precision]]:
    """The runtime and precision that a candidate is one step away from, the likeliest first."""
    if _on_cpu(candidate):
        return []
    if candidate.is_hinted:
        return [(candidate.runtime, graph_precision(candidate.precision))]
    return [(runtime, candidate.precision) for runtime in (CPU, REHEARSAL)]


def wanted_candidates(
    bundle: Bundle, runtime: str | None, precision: Precision | None, progress: Progress
) -> list[Candidate]:
    """What is meant by a runtime, a precision, or both; with where it comes from.

    A device's step is from the same precision on the CPU, so that it does not answer for what the
    precision does; and BF16's from its runtime's FP32.
    BF16 is meant only where it is named, for it is no graph's own.

    Raises:
        UsageError: There is no such runtime, or it does not compute in that precision.
        BundleError: The bundle has nothing of that kind.
    """
    named = named_candidates(bundle, runtime, precision, progress)
    origins = {origin for each in named for origin in _origins(each)}
    before = [
        each
        for each in all_candidates(bundle)
        if (each.runtime, each.precision) in origins and each not in named
    ]
    return [*before, *named]


def _on_cpu(candidate: Candidate) -> bool:
    return candidate.runtime in (CPU, REHEARSAL)
