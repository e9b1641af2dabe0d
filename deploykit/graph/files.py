"""Graphs as files: one plain ONNX file, weights inside, labels and preprocessing beside them."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from google.protobuf import message as protobuf

from deploykit.errors import GraphError
from deploykit.specs.model import LABELS_KEY, Labels, TensorSpec
from deploykit.specs.preprocessing import PREPROCESSING_KEY, Preprocessing

PRODUCER = "deploykit"


def save_graph(
    model: ir.Model, path: Path, *, labels: Labels, preprocessing: Preprocessing
) -> None:
    """Write a graph that says by itself what its inputs and outputs mean."""
    model.producer_name = PRODUCER
    model.producer_version = None
    model.metadata_props[LABELS_KEY] = labels.to_metadata()
    model.metadata_props[PREPROCESSING_KEY] = preprocessing.to_metadata()
    ir.save(model, path)


def load_graph(path: Path) -> ir.Model:
    """Read a graph.

    Raises:
        GraphError: The file is no ONNX model.
    """
    try:
        return ir.load(path)
    except (OSError, ValueError, protobuf.DecodeError) as exc:
        raise GraphError(
            f"{path} is no ONNX graph: {exc}.", hint="Export the bundle again."
        ) from exc


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
