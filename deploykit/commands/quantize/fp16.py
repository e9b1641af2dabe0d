"""FP16: the range scan, the conversion, and what each tensor's rounding costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from deploykit.bundle.folder import deploy_graph
from deploykit.commands.quantize.search import NodeSet, Trials
from deploykit.commands.quantize.strategy import Group, KeptSet, Scheme, Strategy
from deploykit.inference.sessions import open_rehearsal
from deploykit.parity.compare import NamedBatch, regroup
from deploykit.parity.ranges import FP16_MAX, MAX_ROUNDING_LOSS, RangeScan, TensorRange
from deploykit.runtime.opener import REHEARSAL, open_probe
from deploykit.specs.model import KeptNode
from deploykit.specs.session import ImageBatch, Logits, Session
from deploykit.system.progress import Progress, Step

if TYPE_CHECKING:
    import onnx_ir as ir

FP16 = Scheme(deploy_graph("fp16"), "fp16", (REHEARSAL,), instead="FP32 (--precision fp32)")


class Fp16(Strategy):
    """Keeps in FP32 what FP16 cannot hold, and what is rounded at too high a cost."""

    @cached_property
    def lowered(self) -> NodeSet:
        """See :class:`Strategy`, as the methods below."""
        from deploykit.graph.fp16 import convertible_nodes

        return convertible_nodes(self._graph)

    def converted(self, keep: NodeSet) -> ir.Model:
        """The FP16 graph that keeps these nodes in FP32."""
        from deploykit.graph import passes
        from deploykit.graph.fp16 import convert_to_fp16

        return passes.apply(self._graph, [convert_to_fp16(keep)])

    def open(self, graph: ir.Model | Path, runtime: str) -> Session:
        """Open its rehearsal."""
        del runtime  # there is one
        from deploykit.graph.files import load_graph

        return open_rehearsal(
            load_graph(graph) if isinstance(graph, Path) else graph,
            name=self.scheme.graph,
            preprocessing=self._manifest.preprocessing,
            labels=self._manifest.labels,
        )

    def kept_nodes(self, graph: ir.Model, found: KeptSet) -> tuple[KeptNode, ...]:
        """Those that the search kept, and those that no converter takes."""
        from deploykit.graph.fp16 import fp32_nodes
        from deploykit.graph.passes import MODULE_PATH

        return tuple(
            KeptNode(
                node=node.name or "",
                operator=node.op_type,
                module=node.metadata_props.get(MODULE_PATH, ""),
                reason=found.reasons.get(
                    node.name or "", f"ONNX Runtime's converter leaves {node.op_type} in FP32"
                ),
            )
            for node in fp32_nodes(graph)
        )

    def begin(self) -> tuple[dict[str, str], NodeSet]:
        """Run the FP32 graph on photos, and look at every tensor that it computes."""
        return scan_ranges(self._graph, self._photos.batches, self._progress)

    def ranked(self, keep: NodeSet, trials: Trials) -> list[Group]:
        """By how much the answers improve without the rounding of one tensor."""
        from deploykit.graph.fp16 import guardians

        guarded = guardians(self._graph)
        photos = self._photos
        gains = rank_tensors(
            self.converted(keep), photos.images, photos.logits, trials, self._progress
        )
        return [
            (guarded[tensor], f"rounding {tensor} to FP16 moves a logit by {gain:.2g}")
            for tensor, gain in gains.items()
        ]


#: Every tensor of two images of a large network is in memory at once: some 200 MB for dpn92.
_SCAN_BATCH = 2


def scan_ranges(
    graph: ir.Model, batches: Sequence[NamedBatch], progress: Progress
) -> tuple[dict[str, str], NodeSet]:
    """Find what FP16 cannot hold of a graph's weights and, on photos, of its tensors.

    Args:
        graph: ``deploy/fp32.onnx``.
        batches: The photos.
        progress: Called after every batch.

    Returns:
        Why a node should stay in FP32, by its name, in the order of the graph; and those nodes
        without which a tensor would overflow.
    """
    from deploykit.graph.deploy import DEPLOY_INPUT
    from deploykit.graph.fp16 import guardians, weight_losses
    from deploykit.graph.instruments import model_bytes, with_outputs

    guarded = guardians(graph)
    scan = RangeScan()
    count = sum(len(images) for _, images in batches)
    done = 0
    with open_probe(model_bytes(with_outputs(graph, list(guarded)))) as probe:
        for _, images in regroup(batches, [_SCAN_BATCH] * count):
            values = probe.run({DEPLOY_INPUT: images})
            scan.add({name: values[name] for name in guarded}, len(images))
            done += len(images)
            progress(Step("scanning ranges", done, count))
    reasons = {
        name: _weight_reason(loss)
        for name, loss in weight_losses(graph).items()
        if not loss <= MAX_ROUNDING_LOSS
    }
    pinned: set[str] = set()
    for found in scan.ranges():
        if found.fits:
            continue
        producer, *others = guarded[found.name]
        reasons.setdefault(producer, _reason(found, "its output"))
        for node in others:
            reasons.setdefault(node, _reason(found, f"its input {found.name}"))
        if found.overflows:
            pinned.update(guarded[found.name])
    return _in_order(reasons, graph), frozenset(pinned)


def _weight_reason(loss: float) -> str:
    if math.isinf(loss):
        return f"it has a weight beyond {FP16_MAX:.0f}, where FP16 ends"
    return f"rounding its weights to FP16 loses {100 * loss:.1f} % of their norm"


def _reason(found: TensorRange, tensor: str) -> str:
    if found.overflows:
        return f"{tensor} reaches {found.max_abs:.3g}; FP16 ends at {FP16_MAX:.0f}"
    return f"rounding {tensor} to FP16 loses {100 * found.rounding_loss:.1f} % of its norm"


def _in_order(reasons: dict[str, str], graph: ir.Model) -> dict[str, str]:
    names: Iterable[str] = (node.name or "" for node in graph.graph)
    return {name: reasons[name] for name in names if name in reasons}


_Scalar = TypeVar("_Scalar", bound=np.generic)
_ROWS = 8
_WORST_IMAGES = 2

Errors: TypeAlias = npt.NDArray[np.float64]
"""(N,) the largest logit error of each row; infinite where a logit is not finite."""


def rank_tensors(
    graph: ir.Model,
    images: ImageBatch,
    reference: Logits,
    trials: Trials,
    progress: Progress,
) -> dict[str, float]:
    """Measure, in one pass over the tensors, by how much the answer improves without each rounding.

    Each row of a batch is the same image with another tensor left unrounded. The images are the two
    whose answers are furthest from the reference's.

    Args:
        graph: A converted deploy graph, ``deploy/fp16.onnx``.
        images: (N, H, W, 3) uint8.
        reference: (N, K), the reference's logits of these images.
        trials: When their time is up, what has been measured must do.
        progress: Called after every batch.

    Returns:
        For each tensor that was measured the decrease of the largest logit error, the largest
        first; infinite where only without this rounding the answer is finite.
    """
    from deploykit.graph.deploy import DEPLOY_INPUT
    from deploykit.graph.instruments import model_bytes
    from deploykit.graph.rehearsal import switchable_rehearsal
    from deploykit.graph.values import SWITCHES

    switchable, tensors = switchable_rehearsal(graph)
    gains = dict.fromkeys(tensors, -math.inf)
    measured: set[str] = set()
    with open_probe(model_bytes(switchable)) as probe:

        def errors(rows: ImageBatch, exact: npt.NDArray[np.bool_], wanted: Logits) -> Errors:
            (logits,) = probe.run({DEPLOY_INPUT: rows, SWITCHES: exact}).values()
            return _largest_errors(logits, wanted)

        nothing = np.zeros((_ROWS, len(tensors)), np.bool_)
        rounded = np.concatenate(
            [
                errors(rows, nothing[: len(rows)], reference[i : i + _ROWS])
                for i, rows in _slices(images)
            ]
        )
        worst = np.argsort(-rounded, kind="stable")[:_WORST_IMAGES]
        choices = np.eye(len(tensors), dtype=np.bool_)
        for start, exact in _slices(choices):
            if trials.expired:
                break
            for image in worst:
                rows = np.broadcast_to(images[image], (len(exact), *images.shape[1:]))
                wanted = np.broadcast_to(reference[image], (len(exact), reference.shape[1]))
                found = errors(np.ascontiguousarray(rows), exact, wanted)
                for tensor, error in zip(tensors[start : start + _ROWS], found, strict=True):
                    gains[tensor] = max(gains[tensor], _gain(rounded[image], error))
                    measured.add(tensor)
            progress(Step("measuring sensitivity", len(measured), len(tensors)))
    return {name: gains[name] for name in sorted(measured, key=lambda name: -gains[name])}


def _largest_errors(logits: Logits, reference: Logits) -> Errors:
    """Each row's largest logit error; infinite where a logit is not finite."""
    errors = np.abs(logits.astype(np.float64) - reference).max(axis=1)
    return np.where(np.isfinite(errors), errors, np.inf)


def _gain(before: float, after: float) -> float:
    if math.isinf(after):
        return 0.0
    return before - after


def _slices(rows: npt.NDArray[_Scalar]) -> Iterator[tuple[int, npt.NDArray[_Scalar]]]:
    for start in range(0, len(rows), _ROWS):
        yield start, rows[start : start + _ROWS]
