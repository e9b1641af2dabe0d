"""Measure the error of every tensor of a graph against what the graph was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from deploykit.errors import GraphError
from deploykit.parity.layers import TensorError
from deploykit.runtime._base import normalised
from deploykit.runtime.opener import CUDA, open_probe
from deploykit.specs.model import Precision
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import ImageBatch, SessionSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from deploykit.graph.cut import Step
    from deploykit.runtime._onnxruntime import GraphProbe

Tensors: TypeAlias = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A graph to diagnose.

    Attributes:
        spec: What runs.
        graph: The canonical graph or a deploy graph.
        executed: What is run of it: the graph, or its rehearsal.
        preprocessing: What its images need.
    """

    spec: SessionSpec
    graph: ir.Model
    executed: ir.Model
    preprocessing: Preprocessing

    def open(self, model: ir.Model) -> GraphProbe:
        """Open a graph that was made from this one where this one runs."""
        from deploykit.graph.instruments import model_bytes

        cuda: Precision | None = self.spec.precision if self.spec.runtime == CUDA else None
        return open_probe(model_bytes(model), cuda=cuda)

    def feeds(self, images: ImageBatch) -> Tensors:
        """What the graph takes, for images of (N, H, W, 3) uint8."""
        return graph_feeds(self.graph, images, self.preprocessing)


@dataclass(frozen=True, eq=False)
class Origin:
    """What a graph was made from, and whose tensors are right by definition.

    Attributes:
        description: In words.
        steps: By the name of each of its tensors how it is computed.
        tensors: Gives its float tensors for images of (N, H, W, 3) uint8.
    """

    description: str
    steps: Mapping[str, Step]
    tensors: Callable[[ImageBatch], Tensors]


@dataclass(frozen=True, eq=False)
class Errors:
    """The error of a tensor when its node takes the origin's tensors, and in the whole graph."""

    own: TensorError = field(default_factory=TensorError)
    whole: TensorError = field(default_factory=TensorError)


def graph_feeds(graph: ir.Model, images: ImageBatch, preprocessing: Preprocessing) -> Tensors:
    """What a deploy graph takes for images, or a canonical one: it is normalised for."""
    from deploykit.graph.deploy import DEPLOY_INPUT

    (source,) = graph.graph.inputs
    name = source.name or ""
    return {name: images if name == DEPLOY_INPUT else normalised(images, preprocessing)}


@contextmanager
def graph_origin(
    graph: ir.Model, preprocessing: Preprocessing, description: str
) -> Iterator[Origin]:
    """A graph as an origin, on ONNX Runtime's CPU provider.

    A canonical graph's input counts as the tensor of a deploy graph that is the same.
    """
    from deploykit.graph.cut import Step, float_tensors, steps_of
    from deploykit.graph.deploy import DEPLOY_INPUT, NORMALISED
    from deploykit.graph.instruments import model_bytes, with_outputs

    names, steps = float_tensors(graph), steps_of(graph)
    source = graph.graph.inputs[0].name or ""
    if source != DEPLOY_INPUT:
        steps = {NORMALISED: Step(source, "input", module="", inputs=()), **steps}
    with open_probe(model_bytes(with_outputs(graph, names))) as probe:

        def tensors(images: ImageBatch) -> Tensors:
            feeds = graph_feeds(graph, images, preprocessing)
            given = {} if source == DEPLOY_INPUT else {NORMALISED: feeds[source]}
            return {**probe.run(feeds), **given}

        yield Origin(description, steps, tensors)


def module_origin(
    module: nn.Module, preprocessing: Preprocessing, description: str, *, opset: int | None
) -> Origin:
    """A torch module as an origin, traced as the export traces it.

    Raises:
        GraphError: torch cannot export the module.
    """
    from deploykit.graph.traced import TracedModule

    traced = TracedModule(module, preprocessing.input_size, opset=opset)
    return Origin(
        description, traced.steps, lambda images: traced.run(normalised(images, preprocessing))
    )


def common_tensors(subject: Subject, origin: Origin) -> tuple[str, ...]:
    """The names of the float tensors that a graph and its origin compute, in the graph's order."""
    from deploykit.graph.cut import float_tensors

    known = origin.steps.keys() & set(float_tensors(subject.graph))
    return tuple(name for name in float_tensors(subject.executed) if name in known)


def measured(
    subject: Subject, origin: Origin, names: Sequence[str], images: ImageBatch, batch: int
) -> dict[str, Errors]:
    """Measure what each tensor loses.

    Args:
        subject: The graph.
        origin: What it was made from.
        names: See :func:`common_tensors`.
        images: (N, H, W, 3) uint8.
        batch: How many images run together: all tensors of a batch are in memory at once.

    Returns:
        By name the errors, in the graph's order.
    """
    from deploykit.graph.cut import cut_graph
    from deploykit.graph.instruments import with_outputs

    # Cut at the tensors, so that each node computes from the origin's.
    cut = cut_graph(subject.executed, names)
    errors = {name: Errors() for name in names}
    own = {name: each.own for name, each in errors.items()}
    whole = {name: each.whole for name, each in errors.items()}
    with (
        subject.open(cut.model) as pieces,
        subject.open(with_outputs(subject.executed, names)) as probe,
    ):
        for start in range(0, len(images), batch):
            chosen = images[np.arange(start, start + batch) % len(images)]
            wanted = origin.tensors(chosen)
            feeds = {**subject.feeds(chosen), **cut.feeds(wanted)}
            try:
                _add(pieces.run(feeds), wanted, own)
            except GraphError:
                _measure_parts(subject, cut.model, feeds, wanted, own)
            try:
                _add(probe.run(subject.feeds(chosen)), wanted, whole)
            except GraphError as exc:
                for error in whole.values():
                    error.failure = _cause(exc)
            del wanted  # or two batches' tensors are in memory while the next one's are computed
    return errors


def _measure_parts(
    subject: Subject,
    cut: ir.Model,
    feeds: Tensors,
    wanted: Tensors,
    errors: Mapping[str, TensorError],
) -> None:
    """Measure some pieces of a cut graph; where they fail together, each half of them."""
    from deploykit.graph.instruments import with_only

    try:
        with subject.open(with_only(cut, errors)) as probe:
            _add(probe.run(feeds), wanted, errors)
    except GraphError as exc:
        names = list(errors)
        if len(names) == 1:
            errors[names[0]].failure = f"fails: {_cause(exc)}"
            return
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            _measure_parts(subject, cut, feeds, wanted, {name: errors[name] for name in half})


def _add(found: Tensors, wanted: Tensors, errors: Mapping[str, TensorError]) -> None:
    for name, error in errors.items():
        error.add(found[name], wanted[name])


def _cause(error: GraphError) -> str:
    """What ONNX Runtime says at the end: what was fed to all other pieces stands before it."""
    text = str(error.__cause__ or error).strip()
    return text.rpartition("Status Message: ")[2]
