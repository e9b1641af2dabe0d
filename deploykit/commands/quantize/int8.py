"""INT8: calibration, the conversion, and what each tensor's rounding costs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.bundle.folder import INT8_AVX2_GRAPH, INT8_TENSORRT_GRAPH, Bundle, deploy_graph
from deploykit.commands.quantize.observe import TOGETHER, each_switched, observed, run_switched
from deploykit.commands.quantize.search import NodeSet, Trials
from deploykit.commands.quantize.strategy import Group, Scheme, Strategy, StrategyArguments
from deploykit.errors import ParityError
from deploykit.parity.calibration import (
    CalibrationMethod,
    Interval,
    ValueRange,
    calibration_methods,
)
from deploykit.parity.compare import NamedBatch
from deploykit.proof.verdict import Verdict
from deploykit.runtime.opener import (
    CPU,
    OPENVINO,
    REHEARSAL,
    node_milliseconds,
    open_graph,
    open_probe,
)
from deploykit.specs.model import KeptNode, Precision
from deploykit.specs.session import Session
from deploykit.system.progress import Progress, Step

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.graph.rounded_weights import RoundedWeight

ON_CPU = Scheme(
    deploy_graph("int8"),
    "int8",
    (OPENVINO, CPU),
    instead="BF16 or FP32",
    weight_bits=8,
    cpu="vnni",
)
#: Sums of two products with weights of 7 bits fit into 16 bits: 2 * 255 * 63 < 2**15.
ON_AVX2 = replace(ON_CPU, graph=INT8_AVX2_GRAPH, instead="FP32", weight_bits=7, cpu="avx2")
FOR_TENSORRT = Scheme(
    INT8_TENSORRT_GRAPH,
    "int8",
    (REHEARSAL,),
    instead="FP16 or FP32",
    symmetric=True,
    weight_bits=8,
)

#: Images differ in what they show: of one that the network is sure of no probability moves.
_RANKED_ON = 8
#: A graph of which FP32 takes a larger part of the time than this is hardly faster than FP32.
_MOST_FP32_TIME = 0.5
_TIMED_BATCH, _TIMED_RUNS = 8, 7
#: Less exact for less than that would be a bad bargain, and noise.
_LEAST_GAIN = 1.05


_Way: TypeAlias = tuple[bool, CalibrationMethod]
"""Whether Add and Concat take integers, too, and how the ranges are chosen."""


@dataclass(frozen=True)
class Calibration:
    """What was seen of an FP32 deploy graph on images.

    Attributes:
        ranges: By the name of each tensor that INT8 rounds the range of its values.
        weights: By their bits, and by the name of each node with a weight, the rounded weights.
    """

    ranges: Mapping[str, ValueRange]
    weights: Mapping[int, Mapping[str, RoundedWeight]]


class Int8(Strategy):
    """Keeps in FP32 the nodes whose rounding costs most, with the better calibration.

    Args:
        seen: What the graph computes.
        arguments: Those of :class:`Strategy`.
    """

    # The search tries many sets, and takes one that just passes: on other images probabilities
    # change by more. Simulated with changes of a log-normal distribution (the largest of 192 images
    # 5 to 8 times the root mean square) a set found so passes on 128 others in 62 to 87 % of the
    # cases; with three quarters in 45 to 67 %.
    searched_part = 0.6

    def __init__(self, seen: Calibration, *arguments: *StrategyArguments) -> None:
        from deploykit.graph.int8 import has_weight, integer_nodes

        super().__init__(*arguments)
        self._joins = True
        methods = calibration_methods(len(self._images.logits))
        self._ranges = {method: ranges_of(seen.ranges, method) for method in methods}
        self._weights = seen.weights[self.scheme.weight_bits or 8]
        self._method: CalibrationMethod = methods[0]
        self._blanket: dict[_Way, Verdict] = {}
        self._moved: dict[tuple[str, ...], float] = {}
        self._all_integer = {each: integer_nodes(self._graph, joins=each) for each in (True, False)}
        self._weighted = frozenset(n.name or "" for n in self._integer_nodes if has_weight(n))

    @property
    def _integer_nodes(self) -> tuple[ir.Node, ...]:
        return self._all_integer[self._joins]

    @property
    def lowered(self) -> NodeSet:
        """Those with a weight: without one in INT8 nothing is gained, whatever carries tensors on.

        See :class:`Strategy`, as the methods below.
        """
        return self._weighted

    def converted(self, keep: NodeSet) -> ir.Model:
        """The INT8 graph that keeps these nodes in FP32."""
        return self._converted(keep, (self._joins, self._method))

    def _converted(self, keep: NodeSet, way: _Way) -> ir.Model:
        from deploykit.graph import passes
        from deploykit.graph.int8 import convert_to_int8

        joins, method = way
        step = convert_to_int8(
            self._ranges[method],
            keep,
            symmetric=self.scheme.symmetric,
            joins=joins,
            weights=self._weights,
        )
        return passes.apply(self._graph, [step])

    def open(self, graph: ir.Model | Path, runtime: str) -> Session:
        """Open it there."""
        return self._opened(graph, runtime, "int8")

    def fp32_nodes(self, graph: ir.Model, keep: NodeSet) -> Sequence[ir.Node]:
        """Those that the search kept."""
        del graph  # it has other nodes beside them, that round
        return [node for node in self._integer_nodes if node.name in keep]

    def integers(self, kept: Sequence[KeptNode]) -> int:
        """How many nodes compute with integers where some are kept."""
        return len(self._integer_nodes) - len(kept)

    def begin(self) -> tuple[dict[str, str], NodeSet]:
        """Judge the graph without a node in FP32, calibrated in each way, and take the better.

        OpenVINO can do without integers in Add and Concat, which is more exact: on a dpn92 a
        probability moved by 0.003 instead of 0.035. With VNNI resnet50 took 1.25 times as long so,
        densenet121 0.9 times: where both ways pass, the less exact is taken if it is faster.
        """
        if not self._weighted:
            raise ParityError(
                "INT8 computes nothing of this network: it has no Conv, Gemm or MatMul with a "
                "weight of FP32.",
                hint=f"Stay with {self.scheme.instead}.",
            )
        has_joins = len(self._all_integer[True]) > len(self._all_integer[False])
        both = self.runtime == OPENVINO and has_joins
        for way in itertools.product((True, False) if both else (True,), self._ranges):
            self._joins, self._method = way
            self._blanket[way] = super().judge(frozenset())
        best, *others = sorted(self._blanket, key=lambda way: _preference(self._blanket[way]))
        self._joins, self._method = best
        rivals = (way for way in others if way[0] != best[0] and self._blanket[way].passed)
        if rival := next(rivals, None):
            self._joins, self._method = self._faster(best, rival)
        return {}, frozenset()

    def _faster(self, exact: _Way, other: _Way) -> _Way:
        """The less exact of two ways only if it is clearly faster."""
        graphs = (self._converted(frozenset(), way) for way in (exact, other))
        exactly, otherwise = self._seconds(*((graph, "int8") for graph in graphs))
        return other if otherwise * _LEAST_GAIN < exactly else exact

    def judge(self, keep: NodeSet) -> Verdict:
        """See :class:`Strategy`; of the graph without a node in FP32 the verdict is there."""
        return super().judge(keep) if keep else self._blanket[self._joins, self._method]

    def ranked(self, keep: NodeSet, trials: Trials) -> list[Group]:
        """By how much each tensor's rounding, and no other, moves the answers.

        The errors of INT8 are many, small and independent, so that they add up as squares: what
        moves the answer most by itself is what is best spared. Leaving one out of all roundings
        would show little but chance.
        """
        del keep  # nothing is kept before the ranking
        from deploykit.graph.deploy import DEPLOY_INPUT
        from deploykit.graph.instruments import model_bytes
        from deploykit.graph.int8 import quantized_tensors, switchable_int8

        takers = quantized_tensors(self._graph, joins=self._joins)
        probabilities = self._manifest.labels.head.probabilities
        ranges, symmetric = self._ranges[self._method], self.scheme.symmetric
        switchable, tensors, by_image = switchable_int8(
            self._graph, ranges, symmetric=symmetric, joins=self._joins
        )
        every = self._images.images
        images = every[:: max(len(every) // _RANKED_ON, 1)][:_RANKED_ON]
        squares, measured = np.zeros(len(tensors)), 0
        with open_probe(model_bytes(switchable)) as probe:
            exact = np.ones((1, len(tensors)), np.bool_)
            wanted = [probabilities(run_switched(probe, image[None], exact)) for image in images]
            alone = ~np.eye(len(tensors), dtype=np.bool_)
            together = TOGETHER if by_image else 1
            for rows, index, logits in each_switched(
                probe, images, alone, trials, self._progress, together=together
            ):
                squares[rows] += np.square(probabilities(logits) - wanted[index]).mean(axis=1)
                measured = rows.stop
        moved = np.sqrt(squares[:measured] / len(images))
        if self.scheme.cpu is not None:  # on a GPU the nodes' times are other ones
            batch = {DEPLOY_INPUT: every[:_TIMED_BATCH]}
            self.costs = node_milliseconds(model_bytes(self._graph), batch)
        self._moved = moved_by_takers(takers, dict(zip(tensors, moved, strict=False)))
        return [
            (
                takers[tensors[index]],
                f"rounding {tensors[index]} to INT8 moves a probability by {moved[index]:.2g}",
            )
            for index in np.argsort(-moved, kind="stable")
        ]

    def by_value(self, groups: Sequence[Group]) -> Sequence[Group]:
        """By the square of what a tensor moves for each millisecond that sparing it takes."""

        def value(group: Group) -> float:
            names = tuple(group[0])
            return float(self._moved[names] ** 2 / self._milliseconds(names))

        return sorted(groups, key=value, reverse=True)

    def _milliseconds(self, names: Collection[str]) -> float:
        """What nodes take in FP32; all the same where that does not count."""
        least = sum(self.costs.values()) / 1000  # or what is next to free would come first
        return max(sum(self.costs.get(name, 0.0) for name in names), least) if self.costs else 1.0

    def is_worth(self, keep: NodeSet) -> bool:
        """See :class:`Strategy`: OpenVINO's BF16 takes half of the time of FP32, too."""
        if not self.costs or not keep:
            return True
        part = self._milliseconds(keep & self.lowered) / self._milliseconds(self.lowered)
        return part <= _MOST_FP32_TIME

    def times_fp32(self, keep: NodeSet) -> float | None:
        """See :class:`Strategy`."""
        if self.scheme.cpu is None:
            return None
        lowered, fp32 = self._seconds((self.converted(keep), "int8"), (self._graph, "fp32"))
        return fp32 / lowered

    def _seconds(self, *graphs: tuple[ir.Model, Precision]) -> list[float]:
        """How long a batch takes in each graph: the medians of a few, by turns."""
        batch = self._images.images[:_TIMED_BATCH]
        taken: list[list[float]] = [[] for _ in graphs]
        with ExitStack() as stack:
            sessions = [
                stack.enter_context(self._opened(graph, self.runtime, precision))
                for graph, precision in graphs
            ]
            for run in range(_TIMED_RUNS + 1):
                for session, found in zip(sessions, taken, strict=True):
                    start = time.perf_counter()
                    session.run(batch)
                    if run:  # the first one compiles
                        found.append(time.perf_counter() - start)
        return [float(np.median(each)) for each in taken]

    def _opened(self, graph: ir.Model | Path, runtime: str, precision: Precision) -> Session:
        from deploykit.graph.instruments import model_bytes

        return open_graph(
            graph if isinstance(graph, Path) else model_bytes(graph),
            name=deploy_graph("fp32") if precision == "fp32" else self.scheme.graph,
            runtime=runtime,
            precision=precision,
            preprocessing=self._manifest.preprocessing,
            labels=self._manifest.labels,
        )


def moved_by_takers(
    takers: Mapping[str, tuple[str, ...]], moved: Mapping[str, float]
) -> dict[tuple[str, ...], float]:
    """What is spared where nodes stay in FP32: of two tensors that the same nodes take, both.

    Args:
        takers: By the name of a tensor the nodes that take it.
        moved: By how much the rounding of each tensor moves a probability, the root mean square.

    Returns:
        By these nodes the same of all that they take: errors that do not depend on each other.
    """
    found: dict[tuple[str, ...], float] = {}
    for tensor, each in moved.items():
        nodes = takers[tensor]
        found[nodes] = math.hypot(found.get(nodes, 0.0), each)
    return found


def _preference(verdict: Verdict) -> tuple[bool, int, float]:
    """Verdicts in order: those that pass, then by what they change."""
    found = verdict.measurement
    return not verdict.passed, found.flips, found.p99_probability_change


def calibrate(
    graph: ir.Model,
    bundle: Bundle,
    batches: Sequence[NamedBatch],
    weight_bits: Collection[int],
    progress: Progress,
) -> Calibration:
    """Run an FP32 deploy graph on images, note what INT8 rounds, and round the weights.

    Args:
        graph: ``deploy/fp32.onnx``.
        bundle: What it is of.
        batches: The images.
        weight_bits: To how many bits the weights are to be rounded.
        progress: Called after every batch and every weight.

    Raises:
        ParityError: A tensor has values that are not finite.
    """
    from deploykit.graph.int8 import has_weight, integer_nodes, quantized_tensors
    from deploykit.graph.rounded_weights import MomentsOfInputs

    seen = {name: ValueRange() for name in quantized_tensors(graph)}
    layers = [node for node in integer_nodes(graph) if has_weight(node)]
    inputs = MomentsOfInputs(layers, sum(len(images) for _, images in batches))
    images = [name for names, _ in batches for name in names]
    calibrating = observed(graph, seen, batches, progress, "calibrating")
    for image, values in zip(images, calibrating, strict=True):
        for name, extremes in seen.items():
            extremes.add(values[name])
            if not extremes.is_finite:
                raise ParityError(
                    f"INT8 cannot hold what the FP32 graph computes: {name} is NaN or infinite on "
                    f"{image}.",
                    hint="The FP32 graph is at fault, or that image; see where, with its path: "
                    f"{bundle.command('verify', '--layers', '--images', 'FILE')}",
                )
        inputs.add(values, 1)
    weights: dict[int, dict[str, RoundedWeight]] = {}
    for bits in weight_bits:
        rounded = weights.setdefault(bits, {})
        for name, weight in inputs.rounded_weights(2 ** (bits - 1) - 1):
            rounded[name] = weight
            progress(Step(f"rounding weights to {bits} bits", len(rounded), len(layers)))
    return Calibration(seen, weights)


def ranges_of(seen: Mapping[str, ValueRange], method: CalibrationMethod) -> dict[str, Interval]:
    """The values that INT8 is to hold of each tensor."""
    return {name: extremes.interval(method) for name, extremes in seen.items()}
