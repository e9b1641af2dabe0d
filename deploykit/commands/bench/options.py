"""The options of ``bench``: every way to run a bundle that there could be on a machine."""

from __future__ import annotations

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.commands.bench.results import CHECKPOINT, PLAIN, TORCH, Option, Skipped
from deploykit.errors import DeviceError, MissingError
from deploykit.inference.candidates import Candidate, all_candidates, open_candidate
from deploykit.inference.engines import is_flavour, named_engine, need_flavour
from deploykit.inference.sessions import open_bundle_graph
from deploykit.proof.reference import module_obstacle, recorded_module
from deploykit.runtime.opener import CPU, HOST_RUNTIMES, REHEARSAL, open_module
from deploykit.specs.model import Precision
from deploykit.specs.session import Session
from deploykit.system.gpu import need_gpu
from deploykit.system.progress import Progress


def list_options(bundle: Bundle, progress: Progress) -> tuple[list[Option], list[Skipped]]:
    """The options that may run here, and those that cannot.

    There is one of each runtime and precision: of several engines the newest that its passport
    lets run here. A rehearsal is no option, because it models another device.
    """
    chosen: dict[tuple[str, Precision], Candidate] = {}
    for candidate in all_candidates(bundle, progress):
        kind = candidate.runtime, candidate.precision
        if candidate.runtime == REHEARSAL:
            continue
        if kind not in chosen or (not _fits(bundle, chosen[kind]) and _fits(bundle, candidate)):
            chosen[kind] = candidate
    options = [
        Option(file=CHECKPOINT, runtime=TORCH, precision="fp32"),
        PLAIN,
        *(Option(file=c.file, runtime=c.runtime, precision=c.precision) for c in chosen.values()),
    ]
    no_torch, no_gpu = module_obstacle(bundle), _gpu_obstacle()
    able, skipped = [], []
    for option in options:
        reason = no_torch if option.runtime == TORCH else no_gpu
        if reason is None or option.runtime in HOST_RUNTIMES:
            able.append(option)
        else:
            skipped.append(Skipped(option=option, reason=reason))
    return able, skipped


def _fits(bundle: Bundle, candidate: Candidate) -> bool:
    """Whether an engine may run here, as far as its passport tells; a graph always may."""
    if not is_flavour(candidate.runtime):
        return True
    try:
        need_flavour(named_engine(bundle, candidate.file))
    except MissingError:
        return False
    return True


def _gpu_obstacle() -> str | None:
    try:
        need_gpu()
    except DeviceError as exc:
        return exc.message
    return None


def open_option(bundle: Bundle, option: Option, *, pipelined: bool) -> Session:
    """Open an option.

    Args:
        bundle: The bundle.
        option: One of its own.
        pipelined: Whether several batches will be under way at once, as in a prediction.

    Raises:
        MissingError: Its package or device is not here.
        DeploykitError: See :func:`deploykit.inference.candidates.open_candidate`.
    """
    if option.runtime == TORCH:
        # Never a user's own code, and no pickle that runs some: see module_obstacle.
        return open_module(
            recorded_module(bundle),
            preprocessing=bundle.manifest.preprocessing,
            classes=bundle.manifest.architecture.classes,
        )
    if option.file == CANONICAL_GRAPH:
        return open_bundle_graph(
            bundle, option.file, runtime=CPU, precision="fp32", pipelined=pipelined
        )
    return open_candidate(bundle, option.candidate, pipelined=pipelined)
