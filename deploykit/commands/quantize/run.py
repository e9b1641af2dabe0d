"""Quantize: make the INT8 deploy graphs that decide as the checkpoint does, and prove them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.quantize.int8_calibration import SeenRanges, calibrate
from deploykit.commands.quantize.int8_files import Publication, publish_graphs, write_graph
from deploykit.commands.quantize.int8_loop import FOR_TENSORRT, ON_CPU, Blanket, Int8Loop, Scheme
from deploykit.commands.quantize.int8_proof import note_left_out, proofs_of, prove_graph
from deploykit.commands.quantize.replacement import refuse_unproven, weigh_photos
from deploykit.commands.quantize.request import SearchedGraph, SearchRequest
from deploykit.errors import GraphError, MissingError, ParityError
from deploykit.inference.engines import Engine, engines_outdated
from deploykit.parity.calibration import CalibrationMethod
from deploykit.proof.answered import AnsweredPhotos, split_answers
from deploykit.proof.photos import Photos, split_photos
from deploykit.proof.reference import EXPORT_PROVES, Reference, ReferenceRequest, open_reference
from deploykit.proof.verdict import Verdict
from deploykit.specs.value import choice
from deploykit.system.cpu import read_cpu, saturates_int8
from deploykit.system.files import staged
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import counted

if TYPE_CHECKING:
    import onnx_ir as ir

#: What the graph for CPUs can be made for.
INT8_RUNTIMES = ON_CPU.runtimes
#: INT8 adds up many small errors, which takes more photos to see than FP16's few large ones.
_SEARCH_PHOTOS = 64
_PROOF_PHOTOS = 128
_SCHEMES = (ON_CPU, FOR_TENSORRT)


@dataclass(frozen=True)
class QuantizeRequest(SearchRequest):
    """How to quantize.

    Attributes:
        runtime: What the graph for CPUs is made for, one of :data:`INT8_RUNTIMES`; None for the
            first of them that is here.
        graphs: What to make, ``deploy/int8.onnx`` and ``deploy/int8-tensorrt.onnx`` or one of them.
    """

    runtime: str | None = None
    graphs: tuple[str, ...] = (ON_CPU.graph, FOR_TENSORRT.graph)

    def check(self) -> None:
        """Refuse options that make no sense.

        Raises:
            UsageError: There is no such runtime or graph.
        """
        if self.runtime is not None:
            choice(self.runtime, INT8_RUNTIMES, "runtime for INT8 on CPUs")
        for graph in self.graphs:
            choice(graph, tuple(each.graph for each in _SCHEMES), "INT8 graph")


@dataclass(frozen=True)
class QuantizedGraph(SearchedGraph):
    """An INT8 graph that passed on the runtime that it is made for.

    Attributes:
        graph: Its path in the bundle.
        runtime: What it is made for: the search tried graphs there.
        integers: How many nodes compute with integers.
        method: How the tensors' ranges were chosen.
        verdicts: Of the very file, one for each runtime that is here.
        proofs: Those of them that passed, as the manifest keeps them.
    """

    graph: str
    runtime: str
    integers: int
    method: CalibrationMethod
    verdicts: tuple[Verdict, ...]
    proofs: tuple[KeptVerdict, ...]


@dataclass(frozen=True)
class Quantization:
    """The INT8 graphs of a bundle.

    Attributes:
        bundle: The bundle, which has the graphs and their proofs now.
        graphs: Those that passed: that for CPUs, then that for TensorRT.
        refused: Why none was made for TensorRT beside that for CPUs; None when it was.
        outdated: The engines that were built from an earlier graph of a name, and run no longer.
    """

    bundle: Bundle
    graphs: tuple[QuantizedGraph, ...]
    refused: ParityError | None
    outdated: tuple[Engine, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every graph that was asked for was made."""
        return self.refused is None


def quantize_bundle(
    bundle: Bundle, request: QuantizeRequest | None = None, progress: Progress = silent
) -> Quantization:
    """Make ``deploy/int8.onnx`` and ``deploy/int8-tensorrt.onnx`` from ``deploy/fp32.onnx``.

    They are calibrated on photos; a search chooses the nodes that stay in FP32; then the files that
    were written are compared on other photos: the first on OpenVINO where it is installed and on
    ONNX Runtime, and must pass on the one that it is made for, the second in rehearsal. Each is in
    the bundle once it has passed, whatever becomes of the other.

    Args:
        bundle: The bundle.
        request: How.
        progress: Called with what is being done.

    Raises:
        UsageError: There is no such runtime.
        ParityError: No set of FP32 nodes was found with which the first graph passes, or the one
            that was found fails on the photos that the search did not see, or they are too few to
            replace a graph that is proven, or most photos cannot be read. The bundle stays as it
            was.
        InputError: The bundle is damaged, or the photos cannot be used.
        MissingError: onnx or the runtime that was asked for is not here.
    """
    request = request or QuantizeRequest()
    request.check()
    split = quantization_photos(bundle, request.images, progress)
    if ON_CPU.graph in request.graphs:
        _note_saturation(progress)
    with ExitStack() as stack:
        reference = open_reference(bundle, ReferenceRequest(), progress)
        stack.enter_context(reference.session)
        if reference.objection is not None:
            raise ParityError(
                f"Nothing can be proven in INT8: {reference.objection}.", hint=EXPORT_PROVES
            )
        search, proof = split_answers(split, reference, progress)
        weigh_photos(bundle, request.graphs, proof, progress)
        folder = stack.enter_context(staged(bundle.folder))
        maker = _Maker(bundle, request, reference, search, proof, folder, progress)
        made, refused = maker.make()
    now = open_bundle(bundle.folder)
    return Quantization(now, made, refused, engines_outdated(bundle, now))


def quantization_photos(
    bundle: Bundle, images: Path | None, progress: Progress
) -> tuple[Photos, Photos]:
    """Photos to calibrate and search on, and others to prove on; see :func:`split_photos`."""
    return split_photos(bundle, images, progress, search=_SEARCH_PHOTOS, proof=_PROOF_PHOTOS)


def _note_saturation(progress: Progress) -> None:
    cpu = read_cpu()
    if saturates_int8(cpu):
        progress(
            Note(
                f"{cpu.name} has no VNNI: sums of INT8 products may saturate on it. The proof "
                "holds for CPUs like it; others run the self-test first."
            )
        )


@dataclass(frozen=True)
class _Maker:
    """Makes graphs, each of the same photos, and puts each into the bundle."""

    bundle: Bundle
    request: QuantizeRequest
    reference: Reference
    search: AnsweredPhotos
    proof: AnsweredPhotos
    folder: Path
    progress: Progress

    def make(self) -> tuple[tuple[QuantizedGraph, ...], ParityError | None]:
        """Make what was asked for, but not the one for TensorRT beside another if it fails.

        Raises:
            ParityError: The first does not pass.
        """
        first, *others = (each for each in _SCHEMES if each.graph in self.request.graphs)
        made = [self._publish(self._make(first))]
        for scheme in others:
            try:
                made.append(self._publish(self._make(scheme)))
            except ParityError as exc:
                if scheme.graph in self.bundle.manifest.files:
                    self.progress(Note(f"{scheme.graph} stays as it was made before"))
                return tuple(made), exc
        return tuple(made), None

    def _publish(self, graph: QuantizedGraph) -> QuantizedGraph:
        """Put a graph into the bundle: making another may fail, or be given up.

        Raises:
            ParityError: It is not proven well enough to replace the one that is there.
        """
        refuse_unproven(self.bundle, graph.graph, graph.proofs)
        search = self.search.search_on(graph.runtime, graph.integers)
        path = self._path(graph.graph)
        publish_graphs(
            self.bundle, [Publication(graph.graph, path, graph.kept, search, graph.proofs)]
        )
        self.progress(Note(f"{graph.graph} passed: it is in the bundle"))
        return graph

    def _make(self, scheme: Scheme) -> QuantizedGraph:
        manifest, path = self.bundle.manifest, self._path(scheme.graph)
        loop, blanket = self._begin(scheme)
        found = loop.run(blanket, self.request.search_seconds)
        kept, integers = write_graph(loop, found, manifest, path)
        try:
            verdicts = prove_graph(scheme, path, loop.runtime, manifest, self.proof, self.progress)
        except ParityError as exc:
            blame = loop.in_the_way(self.request.search_seconds)
            message = f"{exc.message}\n{counted(len(kept), 'node')} stayed in FP32. {blame}"
            raise ParityError(message, hint=exc.hint) from exc
        proofs = proofs_of(verdicts, path, self.reference, self.proof)
        return QuantizedGraph(
            graph=scheme.graph,
            runtime=loop.runtime,
            kept=kept,
            integers=integers,
            method=found.method,
            verdict=next(each for each in verdicts if each.candidate.runtime == loop.runtime),
            verdicts=verdicts,
            proof=next(each for each in proofs if each.runtime == loop.runtime),
            proofs=proofs,
            searched=len(self.search.logits),
            trials=found.trials,
            minimal=found.minimal,
        )

    def _begin(self, scheme: Scheme) -> tuple[Int8Loop, Blanket]:
        """Choose the runtime to search on: what was asked for, else the first that runs INT8.

        Raises:
            ParityError: INT8 computes nothing of the network.
            MissingError: That runtime, or every one, is not here.
            GraphError: It cannot run the graph.
        """
        wanted = self.request.runtime
        *others, last = [wanted] if wanted in scheme.runtimes else scheme.runtimes
        for runtime in others:
            loop = self._loop(scheme, runtime)
            try:
                return loop, loop.judge_blanket()
            except (MissingError, GraphError) as exc:
                note_left_out(scheme, runtime, exc, self.progress)
        loop = self._loop(scheme, last)
        return loop, loop.judge_blanket()

    def _loop(self, scheme: Scheme, runtime: str) -> Int8Loop:
        manifest, seen = self.bundle.manifest, self._seen
        return Int8Loop(self._fp32, scheme, runtime, manifest, seen, self.search, self.progress)

    @cached_property
    def _fp32(self) -> ir.Model:
        from deploykit.graph.files import load_graph

        return load_graph(self.bundle.checked(self.bundle.deploy_graph("fp32")))

    @cached_property
    def _seen(self) -> SeenRanges:
        return calibrate(self._fp32, self.search.batches, self.progress)

    def _path(self, graph: str) -> Path:
        return self.folder / Path(graph).name
