"""From what was measured of tensors to a report that names nodes and modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.commands.diagnose.layers.pieces import Subject
from deploykit.commands.diagnose.layers.walk import Walked, walk_graph
from deploykit.parity.diagnosis import LayerError, LayerReport
from deploykit.parity.layers import TensorError, layer_tolerance
from deploykit.specs.session import ImageBatch

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.graph.differences import Difference

_RANKED = 10


@dataclass(frozen=True, eq=False)
class _Row:
    """A node, and how it differs from the reference's where that matters."""

    layer: LayerError
    differences: tuple[Difference, ...]


def graph_report(
    subject: Subject,
    reference: ir.Model,
    description: str,
    images: ImageBatch,
    *,
    made: ir.Model | None = None,
) -> LayerReport:
    """Walk over a graph that should compute the same as another, and judge.

    Args:
        subject: The graph.
        reference: The other, which takes bytes too.
        description: What the report calls it.
        images: (N, H, W, 3) uint8.
        made: What the graph should be, node by node; None for the reference.
    """
    from deploykit.graph.differences import graph_differences

    walked = walk_graph(subject, reference, images)
    differences = graph_differences(subject.graph, made or reference, walked)
    return layer_report(subject, description, len(images), walked, differences)


def layer_report(
    subject: Subject,
    reference: str,
    images: int,
    walked: Mapping[str, Walked],
    differences: Mapping[str, Sequence[Difference]] | None = None,
) -> LayerReport:
    """Judge what was measured: which node is the first, which add most.

    Args:
        subject: The graph.
        reference: What it was compared with, in words.
        images: On how many images.
        walked: By tensor what was measured, in the graph's order.
        differences: By tensor how the graph differs before it from the reference's; None where
            that is no graph.
    """
    tolerance = layer_tolerance(subject.spec.precision)
    rows = list(_rows(subject, walked, differences or {}, tolerance))
    lost = _lost_reference(subject, walked)
    guilty = (
        row.layer
        for row in rows
        if row.differences
        or row.layer.added > tolerance
        or row.layer.non_finite
        or row.layer.tensor == lost
    )
    told = (difference.message for row in rows for difference in row.differences)
    ranking = sorted((row.layer for row in rows if row.layer.added > 0), key=lambda it: -it.added)
    return LayerReport(
        candidate=subject.spec,
        reference=reference,
        images=images,
        tolerance=tolerance,
        first=next(guilty, None),
        ranking=tuple(ranking[:_RANKED]),
        nodes=len(rows),
        differences=tuple(dict.fromkeys(told)),
    )


def layer_error(
    node: ir.Node, tensor: str, own: TensorError, whole: TensorError, reasons: Sequence[str]
) -> LayerError:
    """What a node does to the error, by name and module.

    Args:
        node: The node that is to blame for the tensor.
        tensor: What was compared.
        own: The tensor's error when it is computed from the reference's tensors.
        whole: Its error in the whole graph.
        reasons: What was seen beside the numbers.
    """
    from deploykit.graph.differences import module_of

    return LayerError(
        node=node.name or "",
        operator=node.op_type,
        module=module_of(node),
        tensor=tensor,
        added=own.relative,
        carried=whole.relative,
        non_finite=whole.non_finite,
        reason="; ".join([*reasons, own.failure] if own.failure else reasons),
    )


def _rows(
    subject: Subject,
    walked: Mapping[str, Walked],
    differences: Mapping[str, Sequence[Difference]],
    tolerance: float,
) -> Iterator[_Row]:
    """Each tensor by the node that is to blame: where the graph differs, the one that differs."""
    from deploykit.graph.cut import pieces
    from deploykit.graph.differences import computing_node

    found = pieces(subject.graph, walked)
    lost = _lost_reference(subject, walked)
    for name, walk in walked.items():
        telling = tuple(
            difference
            for difference in differences.get(name, ())
            if difference.certain or walk.own.relative > tolerance
        )
        node = telling[0].node if telling else computing_node(found[name])
        reasons = [difference.message for difference in telling]
        if name == lost:
            reasons.append("the reference is not finite from here on")
        yield _Row(layer_error(node, name, walk.own, walk.whole, reasons), telling)


def _lost_reference(subject: Subject, walked: Mapping[str, Walked]) -> str | None:
    """The first tensor of which the reference is not finite, where that reaches its answer.

    A mask that is infinite in places does not.
    """
    outputs = {value.name for value in subject.graph.graph.outputs}
    if any(
        walk.own.nothing_to_compare or (name in outputs and walk.own.reference_non_finite)
        for name, walk in walked.items()
    ):
        return next(name for name, walk in walked.items() if walk.own.reference_non_finite)
    return None
