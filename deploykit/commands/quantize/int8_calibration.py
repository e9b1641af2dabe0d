"""Calibration: what values the tensors of an FP32 deploy graph have on photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from deploykit.errors import ParityError
from deploykit.parity.calibration import CalibrationMethod, Interval, ValueRange
from deploykit.parity.compare import NamedBatch, regroup
from deploykit.runtime.opener import open_probe
from deploykit.system.progress import Progress, Step

if TYPE_CHECKING:
    import onnx_ir as ir

SeenRanges: TypeAlias = Mapping[str, ValueRange]

#: Every tensor of two images of a large network is in memory at once: some 200 MB for dpn92.
_BATCH = 2


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
    from deploykit.graph.instruments import model_bytes, with_outputs
    from deploykit.graph.int8 import quantized_tensors
    from deploykit.graph.preprocessing import DEPLOY_INPUT

    seen = {name: ValueRange() for name in quantized_tensors(graph)}
    count = sum(len(images) for _, images in batches)
    done = 0
    with open_probe(model_bytes(with_outputs(graph, seen))) as probe:
        for _, images in regroup(batches, [_BATCH] * count):
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
