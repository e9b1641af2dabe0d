"""The candidates of ``bench``: every way to run a bundle that there could be on a machine."""

from __future__ import annotations

from deploykit.bundle.folder import Bundle
from deploykit.commands.bench.results import PLAIN, TORCH, Skipped
from deploykit.errors import DeviceError, MissingError
from deploykit.inference.candidates import (
    Candidate,
    all_candidates,
    open_candidate,
)
from deploykit.proof.reference import ReferenceRequest, module_reason, module_reference
from deploykit.runtime.opener import HOST_RUNTIMES, REHEARSAL
from deploykit.specs.engine import is_flavour
from deploykit.specs.model import Precision
from deploykit.specs.session import Session
from deploykit.system.gpu import need_gpu
from deploykit.system.progress import Progress


def list_candidates(bundle: Bundle, progress: Progress) -> tuple[list[Candidate], list[Skipped]]:
    """The candidates that may run here, and those that cannot.

    There is one of each runtime and precision: of several engines the newest that its passport
    lets run here. A rehearsal is none, because it models another device.
    """
    chosen: dict[tuple[str, Precision], Candidate] = {}
    for candidate in all_candidates(bundle, progress):
        kind = candidate.runtime, candidate.precision
        if candidate.runtime == REHEARSAL:
            continue
        if kind not in chosen or (not _fits(bundle, chosen[kind]) and _fits(bundle, candidate)):
            chosen[kind] = candidate
    no_gpu = None
    try:
        need_gpu()
    except DeviceError as exc:
        no_gpu = exc.message
    able, skipped = [], []
    for candidate in (TORCH, PLAIN, *chosen.values()):
        reason = module_reason(bundle) if candidate == TORCH else no_gpu
        if reason is None or candidate.runtime in HOST_RUNTIMES:
            able.append(candidate)
        else:
            skipped.append(Skipped(candidate=candidate, reason=reason))
    return able, skipped


def _fits(bundle: Bundle, candidate: Candidate) -> bool:
    """Whether an engine may run here, as far as its passport tells; a graph always may."""
    if not is_flavour(candidate.runtime):
        return True
    from deploykit.inference.engines import named_engine, need_flavour

    try:
        need_flavour(named_engine(bundle, candidate.file))
    except MissingError:
        return False
    return True


def open_listed(bundle: Bundle, candidate: Candidate, *, pipelined: bool) -> Session:
    """Open a candidate.

    Args:
        bundle: The bundle.
        candidate: One of :func:`list_candidates`.
        pipelined: Whether several batches will be under way at once, as in a prediction.

    Raises:
        MissingError: Its package or device is not here.
        DeploykitError: See :func:`deploykit.inference.candidates.open_candidate`.
    """
    if candidate == TORCH:
        # Never a user's own code, and no pickle that runs some: see module_reason.
        return module_reference(bundle, ReferenceRequest()).session
    return open_candidate(bundle, candidate, pipelined=pipelined)
