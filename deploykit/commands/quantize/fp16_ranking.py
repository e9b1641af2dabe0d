"""The ranking that the search begins with: what rounding each tensor to FP16 costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from deploykit.commands.quantize.search import Trials
from deploykit.runtime.opener import open_probe
from deploykit.specs.session import ImageBatch, Logits
from deploykit.system.progress import Progress, Step

if TYPE_CHECKING:
    import onnx_ir as ir

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
    from deploykit.graph.instruments import model_bytes
    from deploykit.graph.preprocessing import DEPLOY_INPUT
    from deploykit.graph.rehearsal import switchable_rehearsal
    from deploykit.graph.switches import SWITCHES

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
