"""The options of ``bench``: every way to run a bundle that there could be on a machine."""

from __future__ import annotations

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.commands.bench.results import CHECKPOINT, PLAIN, TORCH, LeftOut, Option
from deploykit.errors import DeviceError, MissingError
from deploykit.inference.candidates import Candidate, all_candidates, open_candidate
from deploykit.inference.engines import is_flavour, named_engine, need_flavour
from deploykit.inference.sessions import open_bundle_graph
from deploykit.proof.reference import module_obstacle, recorded_module
from deploykit.runtime.opener import CPU, HOST_RUNTIMES, REHEARSAL, open_module
from deploykit.specs.precision import Precision
from deploykit.specs.session import Session
from deploykit.system.gpu import need_gpu
from deploykit.system.progress import Progress


def list_options(bundle: Bundle, progress: Progress) -> tuple[list[Option], list[LeftOut]]:
    """The options that may run here, and those that cannot.

    The rehearsal is none, because it is a model of another device; of the engines of a kind the
    newest is one that its passport lets run here.
    """
    torch = [
        Option(file=CHECKPOINT, runtime=TORCH, precision="fp32", channels_last=channels_last)
        for channels_last in (False, True)
    ]
    options = [*torch, PLAIN, *_deployable(bundle, progress)]
    obstacles = {TORCH: module_obstacle(bundle), "gpu": _gpu_obstacle()}
    able, left_out = [], []
    for option in options:
        place = option.runtime if option.runtime in (TORCH, *HOST_RUNTIMES) else "gpu"
        reason = obstacles.get(place)
        if reason is None:
            able.append(option)
        else:
            left_out.append(LeftOut(option=option, reason=reason))
    return able, left_out


def _deployable(bundle: Bundle, progress: Progress) -> list[Option]:
    """What a prediction can take, one of each runtime and precision."""
    chosen: dict[tuple[str, Precision], Candidate] = {}
    for candidate in all_candidates(bundle, progress):
        kind = candidate.runtime, candidate.precision
        if candidate.runtime == REHEARSAL:
            continue
        if kind not in chosen or (not _fits(bundle, chosen[kind]) and _fits(bundle, candidate)):
            chosen[kind] = candidate
    return [
        Option(file=each.file, runtime=each.runtime, precision=each.precision)
        for each in chosen.values()
    ]


def _fits(bundle: Bundle, candidate: Candidate) -> bool:
    """Whether an engine may run here, as far as its passport tells; a graph does."""
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
        return _open_torch(bundle, channels_last=option.channels_last)
    if option.file == CANONICAL_GRAPH:
        return open_bundle_graph(
            bundle, option.file, runtime=CPU, precision="fp32", pipelined=pipelined
        )
    return open_candidate(bundle, option.candidate, pipelined=pipelined)


def _open_torch(bundle: Bundle, *, channels_last: bool) -> Session:
    """The recorded checkpoint's module; nobody's own code, and no pickle that would run some."""
    import torch

    module = recorded_module(bundle)
    if channels_last:
        module.to(memory_format=torch.channels_last)
    manifest = bundle.manifest
    return open_module(
        module, preprocessing=manifest.preprocessing, classes=manifest.architecture.classes
    )
