"""INT8: calibration, the conversion, and what each tensor's rounding costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from deploykit.bundle.folder import INT8_TENSORRT_GRAPH, deploy_graph
from deploykit.bundle.manifest import Manifest
from deploykit.commands.quantize.search import NodeSet, Trials
from deploykit.commands.quantize.strategy import Group, KeptSet, Scheme, Strategy
from deploykit.errors import ParityError
from deploykit.parity.calibration import (
    CalibrationMethod,
    Interval,
    ValueRange,
    calibration_methods,
)
from deploykit.parity.compare import NamedBatch, regroup
from deploykit.parity.measures import softmax
from deploykit.proof.answered import AnsweredPhotos
from deploykit.proof.verdict import Verdict
from deploykit.runtime.opener import CPU, OPENVINO, REHEARSAL, open_graph, open_probe
from deploykit.specs.model import KeptNode
from deploykit.specs.session import ImageBatch, Session
from deploykit.system.progress import Progress, Step

if TYPE_CHECKING:
    import onnx_ir as ir

ON_CPU = Scheme(deploy_graph("int8"), "int8", (OPENVINO, CPU), instead="BF16 or FP32")
FOR_TENSORRT = Scheme(
    INT8_TENSORRT_GRAPH, "int8", (REHEARSAL,), instead="FP16 or FP32", symmetric=True
)
SeenRanges: TypeAlias = Mapping[str, ValueRange]
"""By the name of each tensor that INT8 rounds the range of its values."""

#: The part of the tolerance that the search uses up: on other photos a probability changes by more.
_SEARCHED_PART = 0.75
#: The same for a typical photo. The largest change of so few photos is luck, of which a search that
#: tries many sets finds some; on dpn92 the largest of 192 photos was 3 to 10 times the typical one.
_TYPICAL_PART = 0.2


class Int8(Strategy):
    """Keeps in FP32 the nodes whose rounding costs most, with the better calibration.

    Args:
        graph: See :class:`Strategy`, as the arguments below that are not told here.
        scheme: What to make of it.
        runtime: What to try it on.
        manifest: The bundle's.
        photos: What to search on.
        progress: Called with what is being done.
        seen: What values the graph's tensors have.
    """

    def __init__(
        self,
        graph: ir.Model,
        scheme: Scheme,
        runtime: str,
        manifest: Manifest,
        photos: AnsweredPhotos,
        progress: Progress,
        *,
        seen: SeenRanges,
    ) -> None:
        from deploykit.graph.int8 import has_weight, integer_nodes

        super().__init__(graph, scheme, runtime, manifest, photos, progress)
        self._joins = runtime != OPENVINO
        methods = calibration_methods(len(photos.logits))
        self._ranges = {method: ranges_of(seen, method) for method in methods}
        self._method = methods[0]
        self._blanket: dict[CalibrationMethod, Verdict] = {}
        self._integer_nodes = integer_nodes(graph, joins=self._joins)
        self._weighted = frozenset(n.name or "" for n in self._integer_nodes if has_weight(n))

    @property
    def lowered(self) -> NodeSet:
        """Those with a weight: without one in INT8 nothing is gained, whatever carries tensors on.

        See :class:`Strategy`, as the methods below.
        """
        return self._weighted

    def converted(self, keep: NodeSet) -> ir.Model:
        """The INT8 graph that keeps these nodes in FP32."""
        from deploykit.graph import passes
        from deploykit.graph.int8 import convert_to_int8

        ranges, symmetric = self._ranges[self._method], self.scheme.symmetric
        step = convert_to_int8(ranges, keep, symmetric=symmetric, joins=self._joins)
        return passes.apply(self._graph, [step])

    def open(self, graph: ir.Model | Path, runtime: str) -> Session:
        """Open it there; a trial with one stream, so that nothing is compiled twice."""
        from deploykit.graph.instruments import model_bytes

        return open_graph(
            graph if isinstance(graph, Path) else model_bytes(graph),
            name=self.scheme.graph,
            runtime=runtime,
            precision="int8",
            preprocessing=self._manifest.preprocessing,
            labels=self._manifest.labels,
            pipelined=not isinstance(graph, Path),
        )

    def kept_nodes(self, graph: ir.Model, found: KeptSet) -> tuple[KeptNode, ...]:
        """Those that the search kept."""
        del graph  # it has other nodes beside them, that round
        from deploykit.graph.passes import MODULE_PATH

        return tuple(
            KeptNode(
                node=node.name or "",
                operator=node.op_type,
                module=node.metadata_props.get(MODULE_PATH, ""),
                reason=found.reasons[node.name or ""],
            )
            for node in self._integer_nodes
            if node.name in found.nodes
        )

    def integers(self, kept: Sequence[KeptNode]) -> int:
        """How many nodes compute with integers where some are kept."""
        return len(self._integer_nodes) - len(kept)

    def begin(self) -> tuple[dict[str, str], NodeSet]:
        """Judge the graph without a node in FP32, calibrated in each way, and take the better."""
        if not self._weighted:
            raise ParityError(
                "INT8 computes nothing of this network: it has no Conv, Gemm or MatMul with a "
                "weight of FP32.",
                hint=f"Stay with {self.scheme.instead}.",
            )
        for method in self._ranges:
            self._method = method
            self._blanket[method] = super().judge(frozenset())
        self._blanket = {m: _with_headroom(verdict) for m, verdict in self._blanket.items()}
        self._method = min(self._blanket, key=lambda method: _preference(self._blanket[method]))
        return {}, frozenset()

    def judge(self, keep: NodeSet) -> Verdict:
        """Compare on the photos of the search, leaving something of the tolerance for others."""
        return _with_headroom(super().judge(keep)) if keep else self._blanket[self._method]

    def find(self, start: tuple[dict[str, str], NodeSet], seconds: float) -> KeptSet:
        """The same with the calibration that was taken."""
        return replace(super().find(start, seconds), method=self._method)

    def ranked(self, keep: NodeSet, trials: Trials) -> list[Group]:
        """By how much each tensor's rounding, and no other, moves the answers."""
        del keep  # nothing is kept before the ranking
        from deploykit.graph.int8 import quantized_tensors

        takers = quantized_tensors(self._graph, joins=self._joins)
        moved = rank_roundings(
            self._graph,
            self._ranges[self._method],
            self._photos,
            trials,
            self._progress,
            symmetric=self.scheme.symmetric,
            joins=self._joins,
        )
        return [
            (takers[tensor], f"rounding {tensor} to INT8 moves a probability by {by:.2g}")
            for tensor, by in moved.items()
        ]


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
    reasons = strict.reasons(verdict.measurement)
    return msgspec.structs.replace(
        verdict,
        tolerance=strict,
        reasons=tuple(f"{each} on the photos of the search" for each in reasons),
    )


def _preference(verdict: Verdict) -> tuple[bool, int, float]:
    """Verdicts in order: those that pass, then by what they change."""
    found = verdict.measurement
    return not verdict.passed, found.flips, found.mean_probability_change


#: Every tensor of two images of a large network is in memory at once: some 200 MB for dpn92.
_CALIBRATION_BATCH = 2


def calibrate(graph: ir.Model, batches: Sequence[NamedBatch], progress: Progress) -> SeenRanges:
    """Run an FP32 deploy graph on photos, and note the values of what INT8 rounds.

    Args:
        graph: ``deploy/fp32.onnx``.
        batches: The photos.
        progress: Called after every batch.

    Returns:
        By the name of each tensor the range of its values.

    Raises:
        ParityError: A tensor has values that are not finite.
    """
    from deploykit.graph.deploy import DEPLOY_INPUT
    from deploykit.graph.instruments import model_bytes, with_outputs
    from deploykit.graph.int8 import quantized_tensors

    seen = {name: ValueRange() for name in quantized_tensors(graph)}
    count = sum(len(images) for _, images in batches)
    done = 0
    with open_probe(model_bytes(with_outputs(graph, seen))) as probe:
        for _, images in regroup(batches, [_CALIBRATION_BATCH] * count):
            values = probe.run({DEPLOY_INPUT: images})
            for name, extremes in seen.items():
                extremes.add(values[name])
            done += len(images)
            progress(Step("calibrating", done, count))
    endless = [name for name, extremes in seen.items() if not extremes.is_finite]
    if endless:
        raise ParityError(
            f"INT8 cannot hold what the FP32 graph computes: {endless[0]} is NaN or infinite.",
            hint="The FP32 graph is at fault, or a photo: deploykit verify --layers shows where.",
        )
    return seen


def ranges_of(seen: SeenRanges, method: CalibrationMethod) -> dict[str, Interval]:
    """The values that INT8 is to hold of each tensor."""
    return {name: extremes.interval(method) for name, extremes in seen.items()}


_ROWS = 8
#: Photos differ in what they show: of one that the network is sure of no probability moves.
_IMAGES = 8


def rank_roundings(
    graph: ir.Model,
    ranges: Mapping[str, tuple[float, float]],
    photos: AnsweredPhotos,
    trials: Trials,
    progress: Progress,
    *,
    symmetric: bool,
    joins: bool,
) -> dict[str, float]:
    """Measure by how much each tensor's rounding, and no other, moves the answers.

    Each row of a batch is the same photo with another tensor rounded. The errors of INT8 are many,
    small and independent, so that they add up as squares: what moves the answer most by itself is
    what is best spared. Leaving one out of all roundings would show little but chance.

    Args:
        graph: ``deploy/fp32.onnx``.
        ranges: What INT8 holds of each tensor.
        photos: Of which a few, evenly spread, are taken.
        trials: When their time is up, what has been measured must do.
        progress: Called after every batch.
        symmetric: See :func:`deploykit.graph.int8.convert_to_int8`, as the argument below.
        joins: Whether Add and Concat take integers.

    Returns:
        For each tensor that was measured the root mean square of what a probability moves by,
        the largest first.
    """
    from deploykit.graph.deploy import DEPLOY_INPUT
    from deploykit.graph.instruments import model_bytes
    from deploykit.graph.int8 import switchable_int8
    from deploykit.graph.values import SWITCHES

    switchable, tensors = switchable_int8(graph, ranges, symmetric=symmetric, joins=joins)
    moved = np.zeros(len(tensors))
    measured = 0
    images = _spread(photos.images)
    with open_probe(model_bytes(switchable)) as probe:
        nothing = np.ones((1, len(tensors)), np.bool_)
        exact = [probe.run({DEPLOY_INPUT: each[None], SWITCHES: nothing}) for each in images]
        for start in range(0, len(tensors), _ROWS):
            if trials.expired:
                break
            choices = ~np.eye(len(tensors), dtype=np.bool_)[start : start + _ROWS]
            for image, wanted in zip(images, exact, strict=True):
                rows = np.repeat(image[None], len(choices), axis=0)
                found = probe.run({DEPLOY_INPUT: rows, SWITCHES: choices})
                moved[start : start + len(choices)] += _squares(found, wanted)
            measured = start + len(choices)
            progress(Step("measuring sensitivity", measured, len(tensors)))
    order = sorted(range(measured), key=lambda index: -moved[index])
    return {tensors[index]: float(np.sqrt(moved[index] / len(images))) for index in order}


def _spread(images: ImageBatch) -> ImageBatch:
    """A few images, evenly spread over all."""
    return images[:: max(len(images) // _IMAGES, 1)][:_IMAGES]


def _squares(
    found: Mapping[str, npt.NDArray[np.float32]], wanted: Mapping[str, npt.NDArray[np.float32]]
) -> npt.NDArray[np.float64]:
    """(N,) the mean square of what each row's probabilities moved by."""
    (logits,), (reference,) = found.values(), wanted.values()
    moved: npt.NDArray[np.float64] = np.square(softmax(logits) - softmax(reference)).mean(axis=1)
    return moved
