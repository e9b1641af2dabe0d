"""The range scan: what FP16 cannot hold of a graph's weights and, on photos, of its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.parity.compare import NamedBatch, regroup
from deploykit.parity.ranges import FP16_MAX, MAX_ROUNDING_LOSS, RangeScan, TensorRange
from deploykit.runtime.opener import open_probe
from deploykit.system.progress import Progress, Step

if TYPE_CHECKING:
    import onnx_ir as ir

#: Every tensor of two images of a large network is in memory at once: some 200 MB for dpn92.
_SCAN_BATCH = 2


@dataclass(frozen=True)
class Scan:
    """What a scan found.

    Attributes:
        reasons: Why a node should stay in FP32, by its name; in the order of the graph.
        pinned: Those nodes without which a tensor would overflow: no search may drop them.
    """

    reasons: dict[str, str]
    pinned: frozenset[str]


def scan_ranges(graph: ir.Model, batches: Sequence[NamedBatch], progress: Progress) -> Scan:
    """Run an FP32 deploy graph on photos and look at every tensor that it computes.

    Args:
        graph: ``deploy/fp32.onnx``.
        batches: The photos.
        progress: Called after every batch.
    """
    from deploykit.graph.fp16 import guardians, weight_losses
    from deploykit.graph.instruments import model_bytes, with_outputs
    from deploykit.graph.preprocessing import DEPLOY_INPUT

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
    return Scan(_in_order(reasons, graph), frozenset(pinned))


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
