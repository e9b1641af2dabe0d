"""From what was measured of tensors to a report that names nodes and modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING

import msgspec

from deploykit.commands.diagnose.layers.measure import (
    Errors,
    Origin,
    Pieces,
    Subject,
    common_tensors,
    measured,
)
from deploykit.errors import GraphError
from deploykit.parity.diagnosis import LayerError, LayerReport
from deploykit.parity.layers import answer_tolerance, layer_tolerance
from deploykit.specs.session import ImageBatch

if TYPE_CHECKING:
    from deploykit.graph.cut import Step

DIAGNOSED_IMAGES = 4
_RANKED = 10
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
        if report.first is not None:
            first = _with_omission(subject, origin, names, report.first, images[:batch])
            if batch > 1:
                reason = f"only in batches of {batch} images"
                first = msgspec.structs.replace(
                    first, reason="; ".join(each for each in (reason, first.reason) if each)
                )
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
        where = f"{worst.node} ({worst.operator}{f' of {worst.module}' if worst.module else ''})"
        growth = f"from {worst.inherited:.1e} before it to {worst.carried:.1e} after it"
        differences = (f"{what}: it adds up, most at {where}, {growth}",)
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


def _with_omission(
    subject: Subject, origin: Origin, names: Sequence[str], first: LayerError, images: ImageBatch
) -> LayerError:
    """Name the operation that is missing before a node, where its absence is the fault.

    That is so where the node is right once it reads what the missing operation gives instead of
    what that one takes. Others may be missing for a good reason: a BatchNorm is in its Conv.
    """
    from deploykit.graph.cut import pieces

    piece = pieces(subject.graph, names)[first.tensor]
    read = {value.name for node in piece for value in node.inputs if value is not None}
    tolerance = layer_tolerance(subject.spec.precision)
    wanted = origin.tensors(images)
    with Pieces(subject, names) as cut:
        for missing, sources in _missing(origin, names, first.tensor):
            for source in sources & read & wanted.keys():
                if missing not in wanted or wanted[missing].shape != wanted[source].shape:
                    continue
                error = cut.alone(images, wanted, first.tensor, {source: wanted[missing]})
                if error.relative <= tolerance:
                    step = origin.steps[missing]
                    return msgspec.structs.replace(
                        first,
                        node=step.node,
                        operator=step.operator,
                        module=step.module,
                        reason=f"it is missing before {first.node}",
                    )
    same = origin.steps[first.tensor]
    if same.module in ("", first.module):
        return first
    # A BatchNorm that is in its Conv, a Relu that a pass moved.
    what = f"it gives what {same.node} ({same.operator} of {same.module}) gives in the reference"
    return msgspec.structs.replace(first, reason="; ".join(filter(None, (first.reason, what))))


def _missing(origin: Origin, names: Sequence[str], tensor: str) -> Iterator[tuple[str, set[str]]]:
    """What the origin computes on the way to a tensor and the graph does not, last ones first.

    Yields:
        A tensor's name, and those of the common tensors that it is computed from.
    """
    known = set(names)
    pending, seen = list(origin.steps[tensor].inputs), set()
    while pending:
        name = pending.pop(0)
        step: Step | None = origin.steps.get(name)
        if step is None or name in known or name in seen:
            continue
        seen.add(name)
        pending += step.inputs
        yield name, _known_before(origin, known, name)


def _known_before(origin: Origin, known: set[str], tensor: str) -> set[str]:
    found: set[str] = set()
    pending, seen = list(origin.steps[tensor].inputs), set()
    while pending:
        name = pending.pop()
        if name in known:
            found.add(name)
        elif name in origin.steps and name not in seen:
            seen.add(name)
            pending += origin.steps[name].inputs
    return found
