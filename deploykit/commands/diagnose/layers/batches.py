"""Does a graph answer an image as it does alone, whatever else is in the batch?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from deploykit.commands.diagnose.layers.pieces import Pieces, Subject
from deploykit.commands.diagnose.layers.report import layer_error
from deploykit.errors import DeviceError, GraphError
from deploykit.parity.diagnosis import LayerError, LayerReport
from deploykit.parity.layers import TensorError, answer_tolerance, layer_tolerance
from deploykit.specs.session import ImageBatch, Logits, Session

if TYPE_CHECKING:
    import onnx_ir as ir

_BATCH_SIZES = (2, 5)


@dataclass(frozen=True)
class BatchTrouble:
    """A batch whose answer is not what its images answer alone.

    Attributes:
        size: How many images it has.
        message: What is wrong with the answer.
    """

    size: int
    message: str


def batch_trouble(session: Session, images: ImageBatch, answers: Logits) -> BatchTrouble | None:
    """Find the first batch size at which an answer depends on the rest of the batch.

    Args:
        session: A graph, open as it is deployed.
        images: (N, H, W, 3) uint8; repeated where they are too few for a batch.
        answers: (N, K), the session's for each of them alone.
    """
    for size in _BATCH_SIZES:
        chosen = _chosen(size, images)
        message = _trouble(session, images[chosen], answers[chosen])
        if message is not None:
            return BatchTrouble(size, message)
    return None


def with_batch_trouble(
    report: LayerReport, subject: Subject, images: ImageBatch, trouble: BatchTrouble
) -> LayerReport:
    """Add to a report which node makes an answer depend on the rest of the batch.

    Args:
        report: Of the walk over the graph, image by image.
        subject: The graph.
        images: Those of the trouble.
        trouble: What is wrong.
    """
    reason = f"differs between batch sizes 1 and {trouble.size}"
    node = _first_node(subject, images[_chosen(trouble.size, images)], reason)
    message = f"the answer {reason}: {trouble.message}"
    if node is not None:
        of_module = f" (module {node.module})" if node.module else ""
        message = f"{node.node}{of_module} {node.reason}"
    return msgspec.structs.replace(
        report, first=report.first or node, differences=(*report.differences, message)
    )


def _chosen(size: int, images: ImageBatch) -> npt.NDArray[np.intp]:
    return np.arange(size) % len(images)


def _trouble(session: Session, images: ImageBatch, alone: Logits) -> str | None:
    """What is wrong with a batch's answer; None when nothing is."""
    error = TensorError()
    try:
        error.add(session.run(images), alone)
    except (DeviceError, GraphError) as exc:
        return exc.message
    if error.relative <= answer_tolerance(session.spec.precision):
        return None
    return f"the logits are off by {error.relative:.1e} of their norm"


def _first_node(subject: Subject, images: ImageBatch, reason: str) -> LayerError | None:
    """The first node that, from what each image gives alone, gives something else for a batch."""
    from deploykit.graph.cut import float_tensors, pieces
    from deploykit.graph.differences import computing_node

    names = subject.tensors(float_tensors(subject.graph))
    alone = _alone(subject, names, images)
    errors = {name: TensorError() for name in names}
    with Pieces(subject, names) as cut:
        cut.measure(images, alone, errors)
    tolerance = layer_tolerance(subject.spec.precision)
    nodes = pieces(subject.graph, names)
    for name, error in errors.items():
        if error.relative > tolerance:
            # The first inherits nothing.
            return layer_error(computing_node(nodes[name]), name, error, error, [reason])
    return None


def _alone(
    subject: Subject, names: Sequence[str], images: ImageBatch
) -> dict[str, npt.NDArray[Any]]:
    """What the tensors of a batch should be: those of its images alone, one behind the other."""
    from deploykit.graph.preprocessing import DEPLOY_INPUT

    with subject.open_whole(names) as probe:
        runs = [probe.run({DEPLOY_INPUT: image[None]}) for image in images]
    constant = _without_batch(subject.executed)
    return {
        name: runs[0][name] if name in constant else np.concatenate([run[name] for run in runs])
        for name in names
    }


def _without_batch(model: ir.Model) -> set[str | None]:
    """The names of the tensors whose first dimension is not the images'."""
    return {
        value.name
        for node in model.graph
        for value in node.outputs
        if value.shape is not None and (not value.shape or isinstance(value.shape[0], int))
    }
