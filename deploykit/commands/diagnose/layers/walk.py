"""Walk over the nodes of a graph: what each adds to the error, what it inherits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from deploykit.commands.diagnose.layers.pieces import Pieces, Subject, Tensors
from deploykit.errors import GraphError
from deploykit.parity.layers import TensorError, layer_tolerance
from deploykit.runtime.opener import open_probe
from deploykit.specs.session import ImageBatch

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.runtime._probe import GraphProbe

TensorSource: TypeAlias = Callable[[ImageBatch], Tensors]

#: A tensor that is this far off may be another one of the reference's name, such as its transpose.
_ANOTHER_TENSOR = 0.5


@dataclass(frozen=True, eq=False)
class Walked:
    """The error of a tensor that was computed from the reference's, and in the whole graph."""

    own: TensorError = field(default_factory=TensorError)
    whole: TensorError = field(default_factory=TensorError)

    @property
    def may_be_another(self) -> bool:
        """Whether it is so far off that another tensor may have its name."""
        found = not (self.own.non_finite or self.whole.non_finite or self.own.nothing_to_compare)
        return found and min(self.own.relative, self.whole.relative) > _ANOTHER_TENSOR


def walk_graph(subject: Subject, reference: ir.Model, images: ImageBatch) -> dict[str, Walked]:
    """Measure what the tensors lose that another graph computes too, under the same names.

    Args:
        subject: The graph.
        reference: The other, which takes bytes too; runs on ONNX Runtime's CPU provider.
        images: See :func:`walk_tensors`, also for what is returned.
    """
    from deploykit.graph.cut import float_tensors
    from deploykit.graph.instruments import model_bytes, with_outputs
    from deploykit.graph.preprocessing import DEPLOY_INPUT

    names = subject.tensors(float_tensors(reference))
    with open_probe(model_bytes(with_outputs(reference, names))) as probe:
        return walk_tensors(subject, names, images, lambda image: probe.run({DEPLOY_INPUT: image}))


def walk_tensors(
    subject: Subject, names: Sequence[str], images: ImageBatch, reference: TensorSource
) -> dict[str, Walked]:
    """Measure what each tensor loses.

    Args:
        subject: The graph.
        names: Tensors that it and the reference compute, in the graph's order.
        images: (N, H, W, 3) uint8, run one by one: all tensors of one are in memory at once.
        reference: Gives the reference's tensors for an image.

    Returns:
        By name the errors, in the graph's order; without what is another tensor of the same name:
        it is far off, and what is computed through it is right.
    """
    walked = _measured(subject, names, images, reference)
    outputs = {value.name for value in subject.executed.graph.outputs}
    suspects = {
        name for name, walk in walked.items() if walk.may_be_another and name not in outputs
    }
    if not suspects:
        return walked
    without = [name for name in names if name not in suspects]
    merged = _measured(subject, without, images, reference)
    others = suspects & _computed_rightly(subject, merged)
    if others == suspects:
        return merged
    kept = [name for name in names if name not in others]
    return _measured(subject, kept, images, reference) if others else walked


def _computed_rightly(subject: Subject, walked: Mapping[str, Walked]) -> set[str]:
    """The names of the tensors within pieces of the graph all of which are right."""
    from deploykit.graph.cut import pieces

    tolerance = layer_tolerance(subject.spec.precision)
    right: set[str] = set()
    wrong: set[str] = set()
    for name, nodes in pieces(subject.graph, walked).items():
        computed = {value.name or "" for node in nodes for value in node.outputs}
        (right if walked[name].own.relative <= tolerance else wrong).update(computed)
    return right - wrong


def _measured(
    subject: Subject, names: Sequence[str], images: ImageBatch, reference: TensorSource
) -> dict[str, Walked]:
    walked = {name: Walked() for name in names}
    own = {name: walk.own for name, walk in walked.items()}
    inherited = {name: walk.whole for name, walk in walked.items()}
    with Pieces(subject, names) as pieces, subject.open_whole(names) as whole:
        for index in range(len(images)):
            image = images[index : index + 1]
            wanted = reference(image)
            pieces.measure(image, wanted, own)
            _measure_whole(whole, image, wanted, inherited)
            del wanted  # or two images' tensors are in memory while the next one's are computed
    return walked


def _measure_whole(
    whole: GraphProbe, image: ImageBatch, wanted: Tensors, errors: Mapping[str, TensorError]
) -> None:
    from deploykit.graph.preprocessing import DEPLOY_INPUT

    try:
        found = whole.run({DEPLOY_INPUT: image})
    except GraphError as exc:
        for error in errors.values():
            error.failure = exc.message
        return
    for name, error in errors.items():
        error.add(found[name], wanted[name])
