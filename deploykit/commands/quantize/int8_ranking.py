"""The ranking that the search begins with: what rounding each tensor to 8 bits costs by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deploykit.commands.quantize.search import Trials
from deploykit.parity.measures import softmax
from deploykit.proof.answered import AnsweredPhotos
from deploykit.runtime.opener import open_probe
from deploykit.specs.session import ImageBatch
from deploykit.system.progress import Progress, Step

if TYPE_CHECKING:
    import onnx_ir as ir

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
    from deploykit.graph.instruments import model_bytes
    from deploykit.graph.int8 import switchable_int8
    from deploykit.graph.preprocessing import DEPLOY_INPUT
    from deploykit.graph.switches import SWITCHES

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
