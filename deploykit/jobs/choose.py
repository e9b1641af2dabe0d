"""Which runtime a bundle runs on: the one that was asked for, or the best that is proven."""

from __future__ import annotations

from deploykit.bundle import Bundle
from deploykit.errors import MissingError, ParityError
from deploykit.jobs.sessions import open_bundle_graph
from deploykit.progress import Note, Progress
from deploykit.proofs import Proof
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
        UsageError: No such runtime, or one that does not compute in that precision.
        BundleError: No graph of that precision, or it is damaged.
        ParityError: ``auto``, and nothing is proven.
        MissingError: The runtime's package or device is not here.
    """
    if runtime != AUTO:
        return _open_named(bundle, runtime, precision or "fp32", threads, progress)
    if precision is not None:
        bundle.deploy_graph(precision)
    obstacle: MissingError | None = None
    for name, candidate in _PREFERENCE:
        if precision not in (None, candidate) or not proofs_of(bundle, name, candidate):
            continue
        graph = bundle.deploy_graph(candidate)
        try:
            session = open_bundle_graph(
                bundle, graph, runtime=name, precision=candidate, threads=threads
            )
        except MissingError as exc:
            progress(Note(f"{candidate} on {name} is proven but cannot run here: {exc.message}"))
            obstacle = exc
            continue
        if _is_proven(bundle, session):
            return session
        session.close()
        progress(Note(f"{candidate} on {name} is proven, but not on {session.spec.device}"))
    if obstacle is not None:
        raise obstacle
    raise ParityError(
        f"No graph of bundle {bundle.name} is proven to decide as the checkpoint does.",
        hint=f"Prove it: deploykit verify --bundle {bundle.folder} --images DIR; "
        "or run it unproven by naming a --runtime.",
    )


def proofs_of(bundle: Bundle, runtime: str, precision: Precision) -> list[Proof]:
    """The executed proofs, without a decidable flip, of a deploy graph as it is now."""
    manifest = bundle.manifest
    graph = manifest.deploy.get(precision)
    if graph is None:
        return []
    return [
        proof
        for proof in manifest.proofs
        if (proof.graph, proof.graph_sha256) == (graph, manifest.files[graph].sha256)
        and (proof.runtime, proof.kind, proof.measurement.flips) == (runtime, "executed", 0)
    ]


def _open_named(
    bundle: Bundle, runtime: str, precision: Precision, threads: int | None, progress: Progress
) -> Session:
    graph = bundle.deploy_graph(precision)
    session = open_bundle_graph(
        bundle, graph, runtime=runtime, precision=precision, threads=threads
    )
    if not _is_proven(bundle, session):
        progress(
            Note(
                f"{precision} on {runtime}, {session.spec.device}, is not proven: "
                "deploykit verify does that"
            )
        )
    return session


def _is_proven(bundle: Bundle, session: Session) -> bool:
    """Whether there is a proof from this very device: another GPU has other kernels."""
    spec = session.spec
    proofs = proofs_of(bundle, spec.runtime, spec.precision)
    return any(proof.device == spec.device for proof in proofs)
