"""The closed loop of INT8: convert, compare, and while that fails keep more nodes in FP32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from deploykit.bundle.folder import INT8_TENSORRT_GRAPH, deploy_graph
from deploykit.bundle.manifest import Manifest
from deploykit.commands.quantize.int8_calibration import SeenRanges, ranges_of
from deploykit.commands.quantize.int8_ranking import rank_roundings
from deploykit.commands.quantize.search import KeptSet, NodeSet, Trials, group_reasons, grow, shrink
from deploykit.errors import DeviceError, ParityError
from deploykit.parity.calibration import CalibrationMethod, calibration_methods
from deploykit.proof.answered import AnsweredPhotos
from deploykit.proof.verdict import Verdict
from deploykit.runtime.opener import CPU, OPENVINO, REHEARSAL, open_graph
from deploykit.system.progress import Note, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

_NAMED_NODES = 5
#: The part of the tolerance that the search uses up: on other photos a probability changes by more.
_SEARCHED_PART = 0.75
#: The same for a typical photo. The largest change of so few photos is luck, of which a search that
#: tries many sets finds some; on dpn92 the largest of 192 photos was 3 to 10 times the typical one.
_TYPICAL_PART = 0.2


@dataclass(frozen=True)
class Scheme:
    """One of the two ways in which integers stand for a tensor's values.

    Attributes:
        graph: The graph's path in a bundle.
        symmetric: Whether integers are signed and 0 stands for 0.
        runtimes: What shows whether the graph decides rightly, the fastest first; the search runs
            on the first that is here. TensorRT is rehearsed: each tensor rounded as there, and
            computed with mostly in FP32.
        instead: What a user has where the graph does not pass.
    """

    graph: str
    symmetric: bool
    runtimes: tuple[str, ...]
    instead: str


ON_CPU = Scheme(
    deploy_graph("int8"), symmetric=False, runtimes=(OPENVINO, CPU), instead="BF16 or FP32"
)
FOR_TENSORRT = Scheme(
    INT8_TENSORRT_GRAPH, symmetric=True, runtimes=(REHEARSAL,), instead="FP16 or FP32"
)
#: By calibration, what the graph without a node in FP32 is worth.
Blanket: TypeAlias = Mapping[CalibrationMethod, Verdict]


@dataclass(frozen=True)
class Int8Set(KeptSet):
    """What the loop found.

    Attributes:
        method: How the tensors' ranges are chosen.
    """

    method: CalibrationMethod


class Int8Loop:
    """Looks for the nodes of one graph that must stay in FP32, and for the better calibration.

    Args:
        graph: ``deploy/fp32.onnx``; not changed.
        scheme: What to make of it.
        runtime: What to try it on, one of the scheme's.
        manifest: The bundle's.
        seen: What values its tensors have.
        photos: What to search on.
        progress: Called with what is being done.

    Attributes:
        runtime: As given.
        integer_nodes: The nodes that compute with integers where none is kept in FP32.
    """

    def __init__(
        self,
        graph: ir.Model,
        scheme: Scheme,
        runtime: str,
        manifest: Manifest,
        seen: SeenRanges,
        photos: AnsweredPhotos,
        progress: Progress,
    ) -> None:
        from deploykit.graph.int8 import has_weight, integer_nodes

        self.runtime = runtime
        self._graph = graph
        self._scheme = scheme
        self._joins = runtime != OPENVINO
        self._manifest = manifest
        self._photos = photos
        self._progress = progress
        methods = calibration_methods(len(photos.logits))
        self._ranges = {method: ranges_of(seen, method) for method in methods}
        self._method = methods[0]
        self.integer_nodes = integer_nodes(graph, joins=self._joins)
        self._all_nodes: NodeSet = frozenset(node.name or "" for node in self.integer_nodes)
        self._weighted: NodeSet = frozenset(
            node.name or "" for node in self.integer_nodes if has_weight(node)
        )
        self._judged = 0
        self._objections: tuple[str, ...] = ()
        self._ranked: tuple[str, ...] = ()

    def judge_blanket(self) -> Blanket:
        """Judge the graph without a node in FP32, calibrated in each way.

        Raises:
            ParityError: INT8 computes nothing of it.
            MissingError: The runtime is not here, or computes no INT8.
            GraphError: It cannot run the graph.
        """
        if not self._weighted:
            raise ParityError(
                "INT8 computes nothing of this network: it has no Conv, Gemm or MatMul with a "
                "weight of FP32.",
                hint=f"Stay with {self._scheme.instead}.",
            )
        return {method: self._judge(frozenset(), method) for method in self._ranges}

    def run(self, blanket: Blanket, seconds: float) -> Int8Set:
        """Find a set with which the graph passes, and from which no node can be dropped.

        Args:
            blanket: What :meth:`judge_blanket` gave.
            seconds: How long new trials may begin.

        Raises:
            ParityError: There is none but that of all nodes, or none was found in that time.
        """
        trials = Trials(self._passes, seconds)
        self._method = min(blanket, key=lambda method: _preference(blanket[method]))
        first = blanket[self._method]
        if first.passed:
            return Int8Set(frozenset(), {}, self._judged, True, self._method)
        self._objections = first.objections
        if not first.broken:
            raise ParityError(
                f"INT8 cannot be judged on these photos: {'; '.join(first.objections)}.",
                hint="Give photos that the network decides: --images DIR",
            )
        self._progress(
            Note(f"{self._scheme.graph} does not pass yet: {'; '.join(first.objections)}")
        )
        trials.know(frozenset(), passing=False)
        groups = self._ranked_groups(trials)
        nodes = grow(frozenset(), [names for names, _ in groups], trials)
        if nodes is None:
            raise self._not_found(trials)
        nodes, minimal = shrink(nodes, frozenset(), trials)
        if nodes >= self._weighted:
            raise self._not_found(trials)
        reasons = group_reasons(groups)
        kept = {name: reasons[name] for name in nodes}
        return Int8Set(nodes, kept, self._judged, minimal, self._method)

    def converted(self, keep: NodeSet, method: CalibrationMethod) -> ir.Model:
        """The INT8 graph that keeps these nodes in FP32."""
        from deploykit.graph import passes
        from deploykit.graph.int8 import convert_to_int8

        ranges = self._ranges[method]
        symmetric = self._scheme.symmetric
        step = convert_to_int8(ranges, keep, symmetric=symmetric, joins=self._joins)
        return passes.apply(self._graph, [step])

    def _passes(self, keep: NodeSet) -> bool:
        if keep >= self._weighted:
            return True  # the FP32 graph, which is proven, whatever carries its tensors on
        try:
            verdict = self._judge(keep, self._method)
        except DeviceError as exc:  # OpenVINO may leave integers alone that it took before
            self._objections = (exc.message,)
            return False
        if not verdict.passed:
            self._objections = verdict.objections
        return verdict.passed

    def _judge(self, keep: NodeSet, method: CalibrationMethod) -> Verdict:
        from deploykit.graph.instruments import model_bytes

        self._judged += 1
        with open_graph(
            model_bytes(self.converted(keep, method)),
            name=self._scheme.graph,
            runtime=self.runtime,
            precision="int8",
            preprocessing=self._manifest.preprocessing,
            labels=self._manifest.labels,
            pipelined=True,  # one stream fits all batches: nothing is compiled twice
        ) as candidate:
            return _with_headroom(self._photos.judge(candidate, self._manifest, self._progress))

    def _ranked_groups(self, trials: Trials) -> list[tuple[Sequence[str], str]]:
        """Nodes to keep together, with the reason, the most promising first; all nodes at last."""
        from deploykit.graph.int8 import quantized_tensors

        takers = quantized_tensors(self._graph, joins=self._joins)
        moved = rank_roundings(
            self._graph,
            self._ranges[self._method],
            self._photos,
            trials,
            self._progress,
            symmetric=self._scheme.symmetric,
            joins=self._joins,
        )
        groups: list[tuple[Sequence[str], str]] = [
            (takers[tensor], f"rounding {tensor} to INT8 moves a probability by {by:.2g}")
            for tensor, by in moved.items()
        ]
        self._ranked = tuple(dict.fromkeys(name for names, _ in groups for name in names))
        everything = sorted(self._all_nodes)
        return [*groups, (everything, "the search found no set that passes without it")]

    def in_the_way(self, seconds: float) -> str:
        """Which nodes' roundings move the answers most, as a sentence.

        Args:
            seconds: How long to measure it, where the search had no need to.
        """
        if not self._ranked:
            self._ranked_groups(Trials(self._passes, seconds))
        return self._worst_nodes()

    def _worst_nodes(self) -> str:
        if not self._ranked:
            return "There was no time to measure which nodes stand in the way."
        return (
            f"Of the {len(self._all_nodes)} nodes that INT8 computes with integers, rounding the "
            f"inputs of these moves the answers most: {', '.join(self._ranked[:_NAMED_NODES])}."
        )

    def _not_found(self, trials: Trials) -> ParityError:
        """Why there is no graph, by how much it fails, and which nodes stand in the way."""
        objections = "; ".join(self._objections)
        message = f"INT8 does not pass: {objections}. {self._worst_nodes()}"
        if trials.expired:
            return ParityError(
                f"{message} In {trials.seconds:.0f} s the search tried {self._judged} graphs.",
                hint="Let it search longer (--search-seconds), or stay with "
                f"{self._scheme.instead}.",
            )
        return ParityError(
            f"{message} It passes only with every one of them in FP32, and then nothing is left "
            "in INT8.",
            hint=f"Stay with {self._scheme.instead}: deploykit verify shows which of them passes.",
        )


def _with_headroom(verdict: Verdict) -> Verdict:
    """A verdict that passes only where it leaves something for other photos."""
    allowed = verdict.tolerance.max_probability_change
    if allowed is None or not verdict.passed:
        return verdict
    strict = msgspec.structs.replace(
        verdict.tolerance,
        max_probability_change=_SEARCHED_PART * allowed,
        max_typical_change=_TYPICAL_PART * allowed,
    )
    objections = strict.objections(verdict.measurement)
    return msgspec.structs.replace(
        verdict,
        tolerance=strict,
        objections=tuple(f"{each} on the photos of the search" for each in objections),
    )


def _preference(verdict: Verdict) -> tuple[bool, int, float]:
    """Verdicts in order: those that pass, then by what they change."""
    found = verdict.measurement
    return not verdict.passed, found.flips, found.mean_probability_change
