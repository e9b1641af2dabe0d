"""Candidates: what of a bundle can run on what, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.bundle.accepted import MachineIdentity
from deploykit.bundle.folder import INT8_AVX2_GRAPH, INT8_TENSORRT_GRAPH, Bundle, deploy_graph
from deploykit.errors import BundleError, UsageError
from deploykit.runtime.opener import (
    CPU,
    CUDA,
    REHEARSAL,
    RUNTIMES,
    graph_precision,
    open_graph,
    precisions_of,
)
from deploykit.specs.engine import is_flavour
from deploykit.specs.model import PRECISIONS, Precision
from deploykit.specs.session import Session
from deploykit.system.cpu import read_cpu, saturates_int8
from deploykit.system.deps import RUNTIME_PACKAGES, installed_versions
from deploykit.system.gpu import find_gpu
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.threads import usable_cpus

if TYPE_CHECKING:
    from deploykit.inference.engines import Engine

#: What makes the deploy graph of a lower precision.
_MAKERS = {
    "fp16": "Make the fp16 graph: deploykit quantize --precision fp16",
    "int8": "Make the int8 graphs: deploykit quantize --images DIR",
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

    A damaged engine is skipped; a note says so.
    """
    engines = _engine_candidates(bundle, lambda error: progress(_damage_note(error)))
    return [*engines, *_graph_candidates(bundle)]


def _damage_note(error: BundleError) -> Note:
    return Note(f"skipped: {error.message} {error.hint}")


def _engine_candidates(bundle: Bundle, on_damage: Callable[[BundleError], None]) -> list[Candidate]:
    if not bundle.manifest.engines:
        return []
    from deploykit.inference.engines import engines_of

    return [engine_candidate(engine) for engine in engines_of(bundle, on_damage=on_damage)]


def engine_candidate(engine: Engine) -> Candidate:
    """An engine on its flavour of TensorRT."""
    return Candidate(engine.file, engine.passport.flavour, engine.passport.precision)


def _graph_candidates(bundle: Bundle) -> list[Candidate]:
    found = []
    for precision in PRECISIONS:
        for runtime, able in RUNTIMES.items():
            graph = _graph_for(bundle, runtime, precision)
            if graph is not None and precision in able and not is_flavour(runtime):
                found.append(Candidate(graph, runtime, precision))
    return found


def _graph_for(bundle: Bundle, runtime: str, precision: Precision) -> str | None:
    """The deploy graph that a runtime takes; in INT8 the one for this CPU, if there is one."""
    files, graph = bundle.manifest.files, bundle.manifest.deploy.get(graph_precision(precision))
    if (runtime, precision) == (REHEARSAL, "int8"):  # of what engines are built from
        return INT8_TENSORRT_GRAPH if INT8_TENSORRT_GRAPH in files else None
    if precision == "int8" and INT8_AVX2_GRAPH in files and saturates_int8(read_cpu()):
        return INT8_AVX2_GRAPH
    return graph


def for_other_cpus(bundle: Bundle) -> tuple[str, str] | None:
    """The INT8 graph that is for CPUs of another kind than this one, and which these are."""
    graphs = {deploy_graph("int8"): "with VNNI", INT8_AVX2_GRAPH: "without VNNI"}
    taken = _graph_for(bundle, CPU, "int8")
    others = (each for each in graphs if each in bundle.manifest.files and each != taken)
    return next(((each, f"it is for CPUs {graphs[each]}") for each in others), None)


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
    candidates = _graph_candidates(bundle)
    if runtime is None or is_flavour(runtime):
        candidates = [*_engine_candidates(bundle, damaged.append), *candidates]
    found = [
        candidate
        for candidate in candidates
        if runtime in (None, candidate.runtime)
        and (candidate.precision == precision or (precision is None and not candidate.is_hinted))
    ]
    if damaged and runtime is not None and not found:
        raise damaged[0]
    for error in damaged:
        progress(_damage_note(error))
    if found:
        return found
    if runtime is not None and is_flavour(runtime):
        kind = f"{precision} " if precision else ""
        option = f" --precision {precision}" if precision else ""
        raise BundleError(
            f"Bundle {bundle.name} has no {kind}engine for {runtime}.",
            hint=f"Build one: deploykit build-trt --flavour {runtime}{option}",
        )
    wanted = precision or " or ".join(able)
    have = ", ".join(bundle.manifest.deploy)
    raise BundleError(
        f"Bundle {bundle.name} has no {wanted} graph; it has {have}.",
        hint=_MAKERS.get(wanted),
    )


def embedded(bundle: Bundle, candidate: Candidate) -> Candidate:
    """The graph with embeddings in place of the FP32 graph; any other candidate as it is."""
    record = bundle.manifest.embeddings
    if record is None or candidate.file != bundle.manifest.deploy.get("fp32"):
        return candidate
    return candidate if candidate.is_hinted else replace(candidate, file=record.graph)


def only_embedded(bundle: Bundle, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that run the FP32 graph, with the graph with embeddings in its place."""
    pairs = ((each, embedded(bundle, each)) for each in candidates)
    return [new for each, new in pairs if new != each]


def with_embedded(bundle: Bundle, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates, and behind the FP32 graph on a runtime the graph with embeddings there."""
    pairs = ((each, embedded(bundle, each)) for each in candidates)
    return [*dict.fromkeys(each for pair in pairs for each in pair)]


def open_candidate(
    bundle: Bundle,
    candidate: Candidate,
    *,
    threads: int | None = None,
    pipelined: bool = False,
    tf32: bool = False,
) -> Session:
    """Open a candidate, once its hash has been checked.

    INT8 is rehearsed by running the very graph, FP16 by running it with FP32 kernels.

    Args:
        bundle: The bundle.
        candidate: One of its own; or its canonical graph on a runtime.
        threads: For computing on the CPU; None for one a core.
        pipelined: Whether several batches will be under way at once, as an engine's always may.
        tf32: Whether a GPU may compute FP32 in TensorFloat-32.

    Raises:
        UsageError: TF32 for a runtime that has none.
        BundleError: Its file is missing or changed.
        MissingError: Its runtime's package or device is not here.
        DeploykitError: See :func:`deploykit.runtime.opener.open_graph`.
    """
    runtime, precision = candidate.runtime, candidate.precision
    if tf32 and runtime != CUDA:
        raise UsageError(f"{runtime} has no TF32.", hint=f"What has: --runtime {CUDA}")
    if is_flavour(runtime):
        from deploykit.inference.engines import named_engine, open_bundle_engine

        return open_bundle_engine(bundle, named_engine(bundle, candidate.file))
    path = bundle.checked(candidate.file)
    graph: Path | bytes = path
    if (runtime, precision) == (REHEARSAL, "fp16"):
        from deploykit.graph.files import load_graph
        from deploykit.graph.instruments import model_bytes
        from deploykit.graph.rehearsal import rehearsal_of

        graph = model_bytes(rehearsal_of(load_graph(path)))
    record = bundle.manifest.embeddings
    return open_graph(
        graph,
        name=candidate.file,
        runtime=runtime,
        precision=precision,
        preprocessing=bundle.manifest.preprocessing,
        labels=bundle.manifest.labels,
        threads=threads,
        pipelined=pipelined,
        tf32=tf32,
        embedding=record.tap.size if record and candidate.file == record.graph else 0,
    )


def by_reason(skipped: Sequence[tuple[Candidate, str]]) -> Iterator[str]:
    """``A on R, B on R: reason``, a line for each reason."""
    for reason in dict.fromkeys(reason for _, reason in skipped):
        names = ", ".join(str(candidate) for candidate, each in skipped if each == reason)
        yield f"{names}: {reason}"


def this_machine() -> MachineIdentity:
    """This machine, as far as it decides which candidate is the fastest."""
    cpu, gpu = read_cpu(), find_gpu()
    return MachineIdentity(
        cpu=cpu.name,
        cpus=usable_cpus(),
        instruction_sets=cpu.instruction_sets or (),
        gpu=None if gpu is None else gpu.name,
        versions={name: v for name, v in installed_versions().items() if name in RUNTIME_PACKAGES},
    )
