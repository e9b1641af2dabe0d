"""Run a graph on the images of a search, and look inside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from deploykit.commands.quantize.search import Trials
from deploykit.parity.compare import NamedBatch, regroup
from deploykit.runtime.opener import open_probe
from deploykit.specs.session import ImageBatch, Logits
from deploykit.system.progress import Progress, Step

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.runtime._onnxruntime import GraphProbe

Switches: TypeAlias = npt.NDArray[np.bool_]
"""(N, T): for each image of a batch, which of a graph's T roundings are switched off."""

#: How many rows of switches are run in one batch.
TOGETHER = 8


def observed(
    graph: ir.Model,
    tensors: Collection[str],
    batches: Sequence[NamedBatch],
    progress: Progress,
    stage: str,
) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """Run a deploy graph on images one by one, and hand out some of its tensors.

    So a tensor is an image's, whatever its first dimension is: a transformer's may be its tokens,
    or its windows.

    Args:
        graph: ``deploy/fp32.onnx``.
        tensors: Their names.
        batches: The images.
        progress: Called after every batch.
        stage: What it is told.

    Yields:
        An image's tensors, by their names.
    """
    from deploykit.graph.deploy import DEPLOY_INPUT
    from deploykit.graph.instruments import model_bytes, with_outputs

    count = sum(len(images) for _, images in batches)
    with open_probe(model_bytes(with_outputs(graph, list(tensors)))) as probe:
        for done, (_, image) in enumerate(regroup(batches, [1] * count), start=1):
            yield probe.run({DEPLOY_INPUT: image})
            progress(Step(stage, done, count))


def run_switched(probe: GraphProbe, images: ImageBatch, switches: Switches) -> Logits:
    """Run a graph whose roundings have switches; (N, K) logits."""
    from deploykit.graph.deploy import DEPLOY_INPUT
    from deploykit.graph.values import SWITCHES

    logits: Logits
    (logits,) = probe.run({DEPLOY_INPUT: images, SWITCHES: switches}).values()
    return logits


def each_switched(
    probe: GraphProbe,
    images: ImageBatch,
    switches: Switches,
    trials: Trials,
    progress: Progress,
    *,
    together: int = TOGETHER,
) -> Iterator[tuple[slice, int, Logits]]:
    """Run every image with every row of switches: a batch is the same image several times.

    Args:
        probe: The open graph.
        images: (M, H, W, 3) uint8.
        switches: (R, T).
        trials: When their time is up, it ends early.
        progress: Called after every few rows.
        together: How many rows there are in a batch.

    Yields:
        Which rows, with which image, and the logits, one line a row.
    """
    for start in range(0, len(switches), together):
        if trials.expired:
            return
        rows = switches[start : start + together]
        for index, image in enumerate(images):
            batch = np.repeat(image[None], len(rows), axis=0)
            yield slice(start, start + len(rows)), index, run_switched(probe, batch, rows)
        progress(Step("measuring sensitivity", start + len(rows), len(switches)))
