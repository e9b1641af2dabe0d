"""Which runtime a bundle runs on: the one that was asked for, or the best that is proven."""

from __future__ import annotations

from deploykit.bundle import Bundle
from deploykit.errors import BundleError, MissingError, ParityError
from deploykit.progress import Note, Progress
from deploykit.runtime.opener import open_graph
from deploykit.session import Session
from deploykit.specs import Precision

AUTO = "auto"
#: What ``auto`` tries, fastest first.
_PREFERENCE: tuple[tuple[str, Precision], ...] = (
    ("onnxruntime-cuda", "fp32"),
    ("onnxruntime-cpu", "fp32"),
)


def open_best(
    bundle: Bundle,
    *,
    runtime: str,
    precision: Precision | None,
    threads: int | None,
    progress: Progress,
) -> Session:
    """Open a bundle's deploy graph.

    Args:
        bundle: The bundle.
        runtime: A runtime's name, which is used or fails; or ``auto`` for the fastest that has an
            ``executed`` proof without a decidable flip.
        precision: A precision; None for any with ``auto``, else ``fp32``.
        threads: For computing on the CPU; None for one a core.
        progress: Called with a note when ``auto`` leaves out a proven runtime, and why, and when a
            runtime that was asked for has no proof.

    Raises:
        UsageError: No such runtime.
        BundleError: No graph of that precision, or it is damaged.
        ParityError: ``auto``, and nothing is proven.
        MissingError: The runtime's package or device is not here.
    """
    if runtime != AUTO:
        wanted = precision or "fp32"
        session = _open(bundle, runtime, wanted, threads)
        if not is_proven(bundle, runtime, wanted):
            progress(Note(f"{wanted} on {runtime} is not proven: deploykit verify does that"))
        return session
    obstacle: MissingError | None = None
    for name, candidate in _PREFERENCE:
        if precision not in (None, candidate) or not is_proven(bundle, name, candidate):
            continue
        try:
            return _open(bundle, name, candidate, threads)
        except MissingError as exc:
            progress(Note(f"{candidate} on {name} is proven but cannot run here: {exc.message}"))
            obstacle = exc
    if obstacle is not None:
        raise obstacle
    wanted_text = f"{precision} graph" if precision else "graph"
    raise ParityError(
        f"No {wanted_text} of bundle {bundle.name} is proven to decide as the checkpoint does.",
        hint=f"Prove it: deploykit verify --bundle {bundle.folder} --images DIR; "
        "or run it unproven by naming a --runtime.",
    )


def is_proven(bundle: Bundle, runtime: str, precision: Precision) -> bool:
    """Whether a deploy graph, as it is now, has an executed proof without a decidable flip."""
    manifest = bundle.manifest
    graph = manifest.deploy.get(precision)
    return graph is not None and any(
        proof.graph == graph
        and proof.runtime == runtime
        and proof.kind == "executed"
        and proof.graph_sha256 == manifest.files[graph].sha256
        and proof.measurement.flips == 0
        for proof in manifest.proofs
    )


def _open(bundle: Bundle, runtime: str, precision: Precision, threads: int | None) -> Session:
    manifest = bundle.manifest
    graph = manifest.deploy.get(precision)
    if graph is None:
        have = ", ".join(manifest.deploy)
        raise BundleError(f"Bundle {bundle.name} has no {precision} graph; it has {have}.")
    return open_graph(
        bundle.checked(graph),
        name=graph,
        runtime=runtime,
        precision=precision,
        preprocessing=manifest.preprocessing,
        classes=manifest.architecture.classes,
        threads=threads,
    )
