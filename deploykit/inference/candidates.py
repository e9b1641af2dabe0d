"""Candidates: what of a bundle can run on what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deploykit.bundle.folder import INT8_TENSORRT_GRAPH, Bundle
from deploykit.errors import BundleError, UsageError
from deploykit.inference.engines import (
    Engine,
    engines_of,
    is_flavour,
    named_engine,
    open_bundle_engine,
)
from deploykit.inference.sessions import open_bundle_graph
from deploykit.runtime.opener import CPU, CUDA, REHEARSAL, RUNTIMES, graph_precision, precisions_of
from deploykit.specs.model import PRECISIONS, Precision
from deploykit.specs.session import Session
from deploykit.system.progress import Note, Progress, silent

#: What makes the deploy graph of a lower precision.
_MAKERS = {
    "fp16": "deploykit quantize --precision fp16 makes the fp16 graph; build-trt does, too.",
    "int8": "deploykit quantize --images DIR makes the int8 graphs.",
}


@dataclass(frozen=True)
class Candidate:
    """One of a bundle's graphs or engines on a runtime.

    Attributes:
        file: Relative to the bundle: ``deploy/fp16.onnx``, ``engines/....engine``.
        runtime: What executes it.
        precision: The precision of its arithmetic.
    """

    file: str
    runtime: str
    precision: Precision

    @property
    def is_hinted(self) -> bool:
        """Whether the runtime computes in another precision than the graph is made for."""
        return graph_precision(self.precision) != self.precision

    def __str__(self) -> str:
        hint = f" in {self.precision}" if self.is_hinted else ""
        return f"{self.file}{hint} on {self.runtime}"


def all_candidates(bundle: Bundle, progress: Progress = silent) -> list[Candidate]:
    """Every engine, the newest first, and every deploy graph on every runtime that computes in it.

    An engine that is damaged is none; a note says so.
    """
    engines = engines_of(bundle, on_damage=lambda error: progress(_left_out(error)))
    return [*map(engine_candidate, engines), *_graph_candidates(bundle)]


def _left_out(error: BundleError) -> Note:
    return Note(f"left out: {error.message} {error.hint}")


def _graph_candidates(bundle: Bundle) -> list[Candidate]:
    return [
        Candidate(graph, runtime, precision)
        for precision in PRECISIONS
        for runtime, able in RUNTIMES.items()
        if precision in able and not is_flavour(runtime)
        if (graph := _graph_for(bundle, runtime, precision)) is not None
    ]


def _graph_for(bundle: Bundle, runtime: str, precision: Precision) -> str | None:
    """What a runtime runs for a precision; None where the bundle is without it.

    INT8 is rehearsed with the graph from which engines are built.
    """
    if (runtime, precision) == (REHEARSAL, "int8"):
        return INT8_TENSORRT_GRAPH if INT8_TENSORRT_GRAPH in bundle.manifest.files else None
    return bundle.manifest.deploy.get(graph_precision(precision))


def engine_candidate(engine: Engine) -> Candidate:
    """An engine on its flavour of TensorRT."""
    return Candidate(engine.file, engine.passport.flavour, engine.passport.precision)


def named_candidates(
    bundle: Bundle,
    runtime: str | None,
    precision: Precision | None,
    progress: Progress = silent,
) -> list[Candidate]:
    """What is meant by a runtime, a precision, or both; of engines the newest first.

    A precision that is no graph's own, BF16, is meant only where it is named.

    Raises:
        UsageError: There is no such runtime, or it does not compute in that precision.
        BundleError: The bundle has nothing of that kind, or only engines that are damaged.
    """
    able = PRECISIONS if runtime is None else precisions_of(runtime)
    if precision not in (None, *able):
        rehearsal = precision == "fp16" and runtime == CPU
        raise UsageError(
            f"{runtime} does not compute in {precision}; it does in {', '.join(able)}.",
            hint=f"FP16 on a CPU is --runtime {REHEARSAL}."
            if rehearsal
            else "Leave out --runtime for whatever can run here.",
        )
    damaged: list[BundleError] = []
    if runtime is None:
        candidates = all_candidates(bundle, progress)
    elif is_flavour(runtime):
        engines = engines_of(bundle, on_damage=damaged.append)
        candidates = [engine_candidate(engine) for engine in engines]
    else:
        candidates = _graph_candidates(bundle)
    found = [
        candidate
        for candidate in candidates
        if runtime in (None, candidate.runtime)
        and (candidate.precision == precision or (precision is None and not candidate.is_hinted))
    ]
    if found:
        for error in damaged:
            progress(_left_out(error))
        return found
    if damaged:
        raise damaged[0]
    if runtime is not None and is_flavour(runtime):
        raise BundleError(
            f"Bundle {bundle.name} has no {precision or ''} engine for {runtime}.".replace(
                "  ", " "
            ),
            hint=f"Build one: deploykit build-trt --flavour {runtime}"
            + (f" --precision {precision}" if precision else ""),
        )
    wanted = precision or " or ".join(able)
    have = ", ".join(bundle.manifest.deploy)
    raise BundleError(
        f"Bundle {bundle.name} has no {wanted} graph; it has {have}.",
        hint=_MAKERS.get(wanted),
    )


def open_candidate(
    bundle: Bundle,
    candidate: Candidate,
    *,
    threads: int | None = None,
    pipelined: bool = False,
    tf32: bool = False,
) -> Session:
    """Open a candidate, once its hash has been checked.

    Args:
        bundle: The bundle.
        candidate: One of its own.
        threads: For computing on the CPU; None for one a core.
        pipelined: Whether several batches will be under way at once, as an engine's always may.
        tf32: Whether a GPU may compute FP32 in TensorFloat-32.

    Raises:
        UsageError: TF32 for a runtime that has none.
        BundleError: Its file is missing or changed.
        MissingError: Its runtime's package or device is not here.
        DeploykitError: See :func:`deploykit.inference.sessions.open_bundle_graph`.
    """
    if tf32 and candidate.runtime != CUDA:
        raise UsageError(f"{candidate.runtime} has no TF32.", hint=f"What has: --runtime {CUDA}")
    if is_flavour(candidate.runtime):
        return open_bundle_engine(bundle, named_engine(bundle, candidate.file))
    return open_bundle_graph(
        bundle,
        candidate.file,
        runtime=candidate.runtime,
        precision=candidate.precision,
        threads=threads,
        pipelined=pipelined,
        tf32=tf32,
    )


def by_reason(left_out: Sequence[tuple[Candidate, str]]) -> Iterator[str]:
    """``A on R, B on R: why``, a line for each reason: a GPU that is missing is missing for all."""
    for reason in dict.fromkeys(reason for _, reason in left_out):
        names = ", ".join(str(candidate) for candidate, each in left_out if each == reason)
        yield f"{names}: {reason}"
