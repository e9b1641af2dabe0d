"""Graphs as files: one plain ONNX file, weights inside, labels and preprocessing beside them."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf import message as protobuf

from deploykit.bundle.onnx_file import MAX_GRAPH_BYTES, check_graph_file
from deploykit.errors import GraphError
from deploykit.specs.model import HEAD_KEY, Labels, TensorSpec
from deploykit.specs.preprocessing import PREPROCESSING_KEY, Preprocessing
from deploykit.system.files import read_file

PRODUCER = "deploykit"
# It warns, with a traceback, of what it then leaves as it is; whoever has set up logging gets it.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())
#: What onnx, onnx_ir and NumPy raise on what is no graph. They share no base but Exception.
ONNX_ERRORS: tuple[type[Exception], ...] = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError),
    *(MemoryError, AssertionError, RuntimeError),
    *(protobuf.DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError),
)


def save_graph(
    model: ir.Model, path: Path, *, labels: Labels, preprocessing: Preprocessing
) -> None:
    """Write a graph that says by itself what its inputs and outputs mean."""
    model.producer_name = PRODUCER
    model.producer_version = None
    model.metadata_props.pop(HEAD_KEY, None)
    model.metadata_props.update(labels.metadata)
    model.metadata_props[PREPROCESSING_KEY] = preprocessing.to_metadata()
    ir.save(model, path)


def load_graph(path: Path) -> ir.Model:
    """Read a graph, once ONNX itself has checked it.

    Raises:
        GraphError: The file is no ONNX graph, or has weights in another file.
    """
    try:
        check_graph_file(path)
        content = read_file(path, limit=MAX_GRAPH_BYTES)
        # Not by its path, whose ending decides which format onnx takes it for.
        proto = onnx.ModelProto.FromString(content)
        # Of a value inside the graph the checker wants a shape, which nobody else needs.
        inner = [*proto.graph.value_info]
        del proto.graph.value_info[:]
        onnx.checker.check_model(proto)
        proto.graph.value_info.extend(inner)
        model = ir.serde.deserialize_model(proto)
        _read_all(model)
    except ONNX_ERRORS as exc:
        reason = str(exc).strip().partition("\n")[0].rstrip(".")
        raise GraphError(
            f"{path} is no ONNX graph: {reason}.", hint="Export the bundle again."
        ) from exc
    return model


def _read_all(model: ir.Model) -> None:
    """Read what is read only when it is needed: numbers that may not fit their shape, and texts.

    Raises:
        Exception: Some of it cannot be read.
    """
    holders: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    graphs = [model.graph, *(graph for holder in holders for graph in holder.subgraphs())]
    for value in (value for graph in graphs for value in graph.initializers.values()):
        if value.const_value is not None:
            value.const_value.numpy()
    for node in (node for holder in holders for node in holder.all_nodes()):
        ir.serde.serialize_node(node)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                attribute.as_tensor().numpy()
            elif attribute.type == ir.AttributeType.TENSORS:
                for tensor in attribute.as_tensors():
                    tensor.numpy()


def tensor_specs(model: ir.Model) -> tuple[TensorSpec, TensorSpec]:
    """The specs of a graph's one input and one output."""
    (source,), (sink,) = model.graph.inputs, model.graph.outputs
    return tensor_spec(source), tensor_spec(sink)


def tensor_spec(value: ir.Value) -> TensorSpec:
    """An input's or output's name, type and shape; ``?`` stands for what a graph leaves open."""
    dtype = "?" if value.dtype is None else value.dtype.numpy().name
    shape: tuple[int | str, ...] = ("?",)
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else str(d.value or "?") for d in value.shape)
    return TensorSpec(name=value.name or "", dtype=dtype, shape=shape)


def opset_of(model: ir.Model) -> int:
    """The version of the ONNX operator set that a graph uses."""
    return model.opset_imports[""]
