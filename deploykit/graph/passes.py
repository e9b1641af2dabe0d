"""Graph passes: small functions from a model to (model, whether it changed), kept in lists."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

Pass: TypeAlias = Callable[[ir.Model], tuple[ir.Model, bool]]

#: The key under which a node keeps the path of its ``nn.Module``: ``conv2.0.conv1.0``.
MODULE_PATH = "module"
#: The names of the nodes and weights of the normalisation in a deploy graph begin with this.
SCOPE = "preprocessing"
_SCOPES = "pkg.torch.onnx.name_scopes"


def apply(model: ir.Model, passes: Sequence[Pass]) -> ir.Model:
    """Run passes in order."""
    for step in passes:
        model, _ = step(model)
    return model


def keep_module_paths(model: ir.Model) -> tuple[ir.Model, bool]:
    """Replace a node's exporter metadata by the path of the module that it comes from.

    The rest of it names files and lines of the exporting machine, and is most of the file that is
    not weights. A node with a weight belongs to the weight's owner: after a BatchNorm is folded
    into a Conv, the exporter names the BatchNorm.
    """
    changed = False
    for node in model.graph.all_nodes():
        path = _weight_owner(node) or _innermost_module(node)
        wanted = {} if path is None else {MODULE_PATH: path}
        changed |= dict(node.metadata_props) != wanted
        node.metadata_props.clear()
        node.metadata_props.update(wanted)
    return model, changed


def drop_other_metadata(model: ir.Model) -> tuple[ir.Model, bool]:
    """Remove the metadata of the model, the graph and its values, and every doc string."""
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        values += node.outputs
        node.doc_string = None
    holders: tuple[ir.Model | ir.Graph | ir.Value, ...] = (model, model.graph, *values)
    changed = any(holder.metadata_props or holder.doc_string for holder in holders)
    for holder in holders:
        holder.metadata_props.clear()
        holder.doc_string = None
    return model, changed


def _weight_owner(node: ir.Node) -> str | None:
    """``layer1.0.conv1`` for a node that alone takes ``layer1.0.conv1.weight``."""
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.name and len(value.uses()) == 1:
            owner, _, leaf = value.name.rpartition(".")
            if owner and leaf == "weight":
                return owner
    return None


def _innermost_module(node: ir.Node) -> str | None:
    """The last module in the exporter's list of scopes; behind it stands the operation."""
    scopes = node.metadata_props.get(_SCOPES)
    if scopes is None:
        return node.metadata_props.get(MODULE_PATH)
    names = ast.literal_eval(scopes)
    return names[-2] if len(names) >= 2 else None


#: What turns the exporter's graph, simplified, into the canonical one.
CLEAN_UP: tuple[Pass, ...] = (keep_module_paths, drop_other_metadata)
