"""A graph to walk, and the same cut into pieces that each compute from the reference's tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy.typing as npt

from deploykit.errors import GraphError
from deploykit.parity.layers import TensorError
from deploykit.runtime.opener import CUDA, open_probe
from deploykit.specs.precision import Precision
from deploykit.specs.session import ImageBatch, SessionSpec
from deploykit.system.closing import Closing

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.runtime._probe import GraphProbe

Tensors: TypeAlias = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A graph to walk.

    Attributes:
        spec: What runs.
        graph: The graph in the bundle, which takes bytes.
        executed: What is run of it: the graph, or its rehearsal.
    """

    spec: SessionSpec
    graph: ir.Model
    executed: ir.Model

    def tensors(self, known: Collection[str]) -> tuple[str, ...]:
        """The names of its float tensors that are known elsewhere too, in the graph's order."""
        from deploykit.graph.cut import float_tensors

        common = set(float_tensors(self.graph)).intersection(known)
        return tuple(name for name in float_tensors(self.executed) if name in common)

    def open(self, model: ir.Model) -> GraphProbe:
        """Open a graph that was made from this one where this one runs."""
        from deploykit.graph.instruments import model_bytes

        cuda: Precision | None = self.spec.precision if self.spec.runtime == CUDA else None
        return open_probe(model_bytes(model), cuda=cuda)

    def open_whole(self, tensors: Sequence[str]) -> GraphProbe:
        """Open the graph, which hands out these tensors too."""
        from deploykit.graph.instruments import with_outputs

        return self.open(with_outputs(self.executed, tensors))


class Pieces(Closing):
    """A graph in pieces, open to be run.

    Args:
        subject: The graph.
        tensors: Names of the tensors at which it is cut.
    """

    def __init__(self, subject: Subject, tensors: Collection[str]) -> None:
        from deploykit.graph.cut import cut_graph

        self._subject = subject
        self._cut = cut_graph(subject.executed, tensors)
        self._probe = subject.open(self._cut.model)

    def measure(
        self, images: ImageBatch, wanted: Tensors, errors: Mapping[str, TensorError]
    ) -> None:
        """Run every piece on the reference's tensors.

        Args:
            images: (N, H, W, 3) uint8, what the first piece takes.
            wanted: The reference's tensors.
            errors: By tensor what to add its error to, or why there is none.
        """
        from deploykit.graph.preprocessing import DEPLOY_INPUT

        feeds = {DEPLOY_INPUT: images, **self._cut.feeds(wanted)}
        try:
            _add(self._probe.run(feeds), wanted, errors)
        except GraphError:
            self._measure_parts(feeds, wanted, errors)

    def _measure_parts(
        self, feeds: Tensors, wanted: Tensors, errors: Mapping[str, TensorError]
    ) -> None:
        """Halve what fails as a whole until it is one piece."""
        from deploykit.graph.instruments import with_only

        names = list(errors)
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            part = {name: errors[name] for name in half}
            if not part:
                continue
            try:
                with self._subject.open(with_only(self._cut.model, half)) as probe:
                    _add(probe.run(feeds), wanted, part)
            except GraphError as exc:
                if len(half) > 1:
                    self._measure_parts(feeds, wanted, part)
                else:
                    errors[half[0]].failure = f"fails: {_cause(exc)}"

    def close(self) -> None:
        """Free the graph's memory."""
        self._probe.close()


def _add(found: Tensors, wanted: Tensors, errors: Mapping[str, TensorError]) -> None:
    for name, error in errors.items():
        error.add(found[name], wanted[name])


def _cause(error: GraphError) -> str:
    """What ONNX Runtime says at the end: what was fed to all other pieces stands before it."""
    text = str(error.__cause__ or error).strip()
    return text.rpartition("Status Message: ")[2]
