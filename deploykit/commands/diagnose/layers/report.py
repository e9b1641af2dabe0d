"""From what was measured of tensors to a report that names nodes and modules."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from math import isfinite
from typing import TYPE_CHECKING

import msgspec

from deploykit.commands.diagnose.layers.measure import (
    Errors,
    Origin,
    Subject,
    common_tensors,
    measured,
)
from deploykit.errors import GraphError
from deploykit.parity.diagnosis import LayerError, LayerReport, node_title
from deploykit.parity.layers import answer_tolerance, layer_tolerance
from deploykit.specs.session import ImageBatch

if TYPE_CHECKING:
    from deploykit.graph.cut import Step

DIAGNOSED_IMAGES = 4
_RANKED = 10
#: Of what computes a tensor in the reference, the last first.
_STEPS_SHOWN = 4
#: One by one, then in pairs: some graphs are right for an image, and wrong for a batch.
_BATCHES = (1, 2)


def layer_report(subject: Subject, origin: Origin, images: ImageBatch) -> LayerReport:
    """Diagnose a graph: which node is the first whose error is too large, which add most.

    Args:
        subject: The graph.
        origin: What it was made from.
        images: (N, H, W, 3) uint8.
    """
    names = common_tensors(subject, origin)
    report = _judged(subject, origin, len(images), {})
    for batch in _BATCHES:
        try:
            errors = measured(subject, origin, names, images, batch)
        except GraphError as exc:
            why = f"the reference cannot run in batches of {batch}: {exc.message}"
            return msgspec.structs.replace(report, differences=(why,))
        report = _judged(subject, origin, len(images), errors)
        first = report.first
        if first is not None:
            reasons = (
                f"only in batches of {batch} images" if batch > 1 else "",
                first.reason,
                _other_way(origin, names, first),
            )
            first = msgspec.structs.replace(first, reason="; ".join(filter(None, reasons)))
            return msgspec.structs.replace(report, first=first)
    return report


def _judged(
    subject: Subject, origin: Origin, images: int, errors: Mapping[str, Errors]
) -> LayerReport:
    tolerance = layer_tolerance(subject.spec.precision)
    layers = list(_layers(subject, errors))
    answer = errors.get(subject.graph.graph.outputs[0].name or "", Errors())
    # A mask that is infinite in places does no harm, an answer without numbers does.
    lost = bool(answer.own.reference_non_finite)

    def is_lost(layer: LayerError) -> bool:
        return lost and errors[layer.tensor].own.reference_non_finite > 0

    first = next(
        (each for each in layers if each.added > tolerance or each.non_finite or is_lost(each)),
        None,
    )
    if first is not None and is_lost(first):
        first = msgspec.structs.replace(first, reason="the reference is not finite from here on")
    carried = answer.whole.relative
    differences: tuple[str, ...] = ()
    if first is None and carried > answer_tolerance(subject.spec.precision):
        what = f"the answer's error is {carried:.1e}, and no node alone adds too much"
        # Where large values cancel, small errors become large ones of a node that adds none.
        finite = [each for each in layers if isfinite(each.carried)]
        worst = max(finite, key=lambda each: each.carried - each.inherited)
        growth = f"from {worst.inherited:.1e} before it to {worst.carried:.1e} after it"
        differences = (f"{what}: it adds up, most at {worst.title}, {growth}",)
    ranking = sorted((each for each in layers if each.added > 0), key=lambda each: -each.added)
    return LayerReport(
        candidate=subject.spec,
        reference=origin.description,
        images=images,
        tolerance=tolerance,
        first=first,
        ranking=tuple(ranking[:_RANKED]),
        nodes=len(layers),
        differences=differences,
    )


def _layers(subject: Subject, errors: Mapping[str, Errors]) -> Iterator[LayerError]:
    """Each tensor by the node that computes it, with the error before that node."""
    from deploykit.graph.cut import computing_node, pieces
    from deploykit.graph.passes import MODULE_PATH

    for name, piece in pieces(subject.graph, errors).items():
        own, whole = errors[name].own, errors[name].whole
        node = computing_node(piece)
        read = {value.name or "" for each in piece for value in each.inputs if value is not None}
        before = [errors[each].whole.relative for each in read & errors.keys()]
        yield LayerError(
            node=node.name or "",
            operator=node.op_type,
            module=node.metadata_props.get(MODULE_PATH, ""),
            tensor=name,
            added=own.relative,
            carried=whole.relative,
            non_finite=whole.non_finite,
            reason=own.failure,
            inherited=max(before, default=0.0),
        )


def _other_way(origin: Origin, names: Collection[str], first: LayerError) -> str:
    """How the reference computes a node's output, where it does so in another way than one node.

    One of its steps may be missing in the graph; or it is in the node, as a BatchNorm in its Conv.
    """
    steps: list[Step] = []
    pending = [first.tensor]
    for name in pending:
        if name in origin.steps and (name == first.tensor or name not in names):
            steps.append(origin.steps[name])
            pending += (each for each in origin.steps[name].inputs if each not in pending)
    # What takes one of an operation's several results computes nothing.
    steps = [step for step in steps if step.operator != "getitem"]
    if len(steps) < 2:
        return ""
    shown = [node_title(each.node, each.operator, each.module) for each in steps[:_STEPS_SHOWN]]
    return f"in the reference it comes from {', '.join(shown)}"
