"""How a graph differs from the one that it should compute the same as, node by node."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploykit.graph._weight_changes import weight_change
from deploykit.graph.cut import pieces
from deploykit.graph.passes import MODULE_PATH
from deploykit.graph.values import working_copy

#: A change of precision inserts these; what they lose is measured, not told.
_CARRIERS = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear"})
_COMMUTATIVE = frozenset({"Add", "Max", "Mean", "Min", "Mul", "Sum"})


@dataclass(frozen=True)
class Difference:
    """A difference in the piece before a tensor.

    Attributes:
        message: What differs, by node and module, with both values.
        node: The node that it is about: the reference's where that one is missing.
        certain: Whether it is a fault whatever it costs. A pass may leave a node out, or read
            another tensor, and compute the same: then only a measured error tells.
    """

    message: str
    node: ir.Node
    certain: bool


def graph_differences(
    candidate: ir.Model, reference: ir.Model, tensors: Collection[str]
) -> dict[str, tuple[Difference, ...]]:
    """Compare two graphs piece by piece.

    Args:
        candidate: A graph; a Cast that was inserted is no difference.
        reference: The graph that it should be, or should compute the same as.
        tensors: Names of tensors at which the graphs are cut; one that not both compute is none.

    Returns:
        By tensor what differs between the piece before it and the reference's.

    Raises:
        GraphError: The type of a value cannot be inferred.
    """
    candidate, reference = working_copy(candidate), working_copy(reference)
    known = _computed(candidate) & _computed(reference)
    tensors = known.intersection(tensors)
    comparison = _Comparison(
        {node.name: node for node in candidate.graph},
        {node.name: node for node in reference.graph},
        frozenset(known.union(value.name or "" for value in candidate.graph.inputs)),
    )
    expected = pieces(reference, tensors)
    found = {
        tensor: tuple(comparison.of(nodes, expected[tensor]))
        for tensor, nodes in pieces(candidate, tensors).items()
    }
    return {tensor: differences for tensor, differences in found.items() if differences}


def nearest(candidate: ir.Model, references: Iterable[ir.Model]) -> ir.Model:
    """The graph that has most nodes in common with another, by their names.

    Args:
        candidate: The other.
        references: At least one; of equals the first is taken.
    """
    names = {node.name for node in candidate.graph}
    return max(references, key=lambda each: sum(node.name in names for node in each.graph))


def _computed(model: ir.Model) -> set[str]:
    return {value.name or "" for node in model.graph for value in node.outputs}


def module_of(node: ir.Node) -> str:
    """The path of the ``nn.Module`` that a node comes from; empty where none is known."""
    return node.metadata_props.get(MODULE_PATH, "")


def computing_node(piece: Sequence[ir.Node]) -> ir.Node:
    """The node of a piece that its tensor is called after: the last but for inserted Casts."""
    computing = [node for node in piece if node.op_type not in _CARRIERS]
    return (computing or piece)[-1]


def describe(node: ir.Node) -> str:
    """``Relu_3 (module conv2.act)``."""
    module = module_of(node)
    return f"{node.name} (module {module})" if module else str(node.name)


def _one(node: ir.Node) -> str:
    """``a Relu``, ``an Add``."""
    return f"{'an' if node.op_type[:1] in 'AEIO' else 'a'} {node.op_type}"


@dataclass(frozen=True)
class _Comparison:
    """The nodes of both graphs by name, and the names of the tensors that both have."""

    candidate: Mapping[str | None, ir.Node]
    reference: Mapping[str | None, ir.Node]
    known: frozenset[str]

    def of(self, found: Sequence[ir.Node], expected: Sequence[ir.Node]) -> Iterator[Difference]:
        """What differs between two pieces that end in the same tensor."""
        for node in expected:
            if node.name not in self.candidate:
                message = f"{describe(node)} is missing, {_one(node)}"
                yield Difference(message, node, certain=False)
        for node in found:
            namesake = self.reference.get(node.name)
            if namesake is not None:
                yield from self._changes(node, namesake)
            elif node.op_type not in _CARRIERS:
                yield Difference(f"{describe(node)} is new, {_one(node)}", node, certain=False)

    def _changes(self, node: ir.Node, namesake: ir.Node) -> Iterator[Difference]:
        """What differs between two nodes of the same name."""
        found, expected = (
            [self._source(value) for value in each.inputs] for each in (node, namesake)
        )
        if node.op_type in _COMMUTATIVE and sorted(found) == sorted(expected):
            found = expected
        changes = list(_moves(found, expected))
        if node.op_type != namesake.op_type:
            changes.append(f"is {_one(node)} instead of {_one(namesake)}")
        elif node.op_type not in _CARRIERS:
            changes += _attribute_changes(node, namesake)
        for value, wanted in zip(node.inputs, namesake.inputs, strict=False):
            if (change := weight_change(value, wanted)) is not None:
                changes.append(change)
        for change in changes:
            yield Difference(f"{describe(node)} {change}", node, certain=found == expected)

    def _source(self, value: ir.Value | None) -> str:
        """The common tensor that a node reads, through Casts and the like; empty for others."""
        while value is not None and value.name not in self.known:
            producer = value.producer()
            if producer is None or producer.op_type not in _CARRIERS:
                return ""
            value = producer.inputs[0]
        return value.name or "" if value is not None else ""


def _moves(found: Sequence[str], expected: Sequence[str]) -> Iterator[str]:
    """Say what is read instead of what; what lies in a piece of its own is not compared."""
    if len(found) != len(expected):
        yield f"has {len(found)} inputs instead of {len(expected)}"
    pairs = [
        (name, wanted)
        for name, wanted in zip(found, expected, strict=False)
        if name and wanted and name != wanted
    ]
    if pairs:
        names, wanted_names = (", ".join(side) for side in zip(*pairs, strict=True))
        yield f"reads {names} instead of {wanted_names}"


def _attribute_changes(node: ir.Node, namesake: ir.Node) -> Iterator[str]:
    for name in sorted(node.attributes.keys() | namesake.attributes.keys()):
        found, expected = (_text(each.attributes.get(name)) for each in (node, namesake))
        if found != expected:
            yield f"has {name} {found} instead of {expected}"


def _text(attribute: ir.Attr | None) -> str:
    """An attribute's value as text; what a subgraph computes is not looked into."""
    if attribute is None:
        return "unset"
    if attribute.type == ir.AttributeType.TENSOR:
        return str(attribute.as_tensor().numpy().tolist())
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "a subgraph"
    if attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        # As a file holds them: before it was written, a value may have more digits.
        return str(np.float32(attribute.value).tolist())
    return str(attribute.value)
