"""The pass from the canonical graph to the deploy graph: bytes in, normalisation inside."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploykit.errors import GraphError
from deploykit.graph.passes import MODULE_PATH, Pass
from deploykit.specs.preprocessing import Preprocessing

DEPLOY_INPUT = "images"
#: The names of the nodes and weights of the normalisation begin with this.
SCOPE = "preprocessing"
#: The tensor in a deploy graph that stands for the canonical graph's input.
NORMALISED = f"{SCOPE}/Add"


def fuse_preprocessing(preprocessing: Preprocessing) -> Pass:
    """Make the pass that puts scaling to 0..1 and normalisation into the graph.

    ``images`` uint8 [N, H, W, 3] replaces the normalised float32 [N, 3, H, W]. The bytes are cast
    before they are transposed, because TensorRT does not transpose uint8.
    """
    mean = np.array(preprocessing.mean, np.float64)
    std = np.array(preprocessing.std, np.float64)
    factor, offset = 1 / (255 * std), -mean / std

    def fuse(model: ir.Model) -> tuple[ir.Model, bool]:
        graph = model.graph
        (old,) = graph.inputs
        if old.name == DEPLOY_INPUT:
            return model, False
        if old.shape is None or len(old.shape) != 4:
            raise GraphError(
                f"The graph's input {old.name} has shape {old.shape}, not [N, 3, H, W]."
            )
        batch, _, height, width = old.shape
        images = ir.Value(
            name=DEPLOY_INPUT,
            shape=ir.Shape([batch, height, width, 3]),
            type=ir.TensorType(ir.DataType.UINT8),
        )
        nodes = _normalisation(graph, images, factor, offset)
        shape = ir.Shape([batch, 3, height, width])
        for node in nodes:
            node.metadata_props[MODULE_PATH] = SCOPE
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            node.outputs[0].shape = shape
        nodes[0].outputs[0].shape = images.shape
        old.replace_all_uses_with(nodes[-1].outputs[0])
        graph.inputs[0] = images
        graph.insert_before(graph[0], nodes)
        return model, True

    return fuse


def _normalisation(
    graph: ir.Graph, images: ir.Value, factor: np.ndarray, offset: np.ndarray
) -> list[ir.Node]:
    """Cast, transpose, multiply, add: (N, H, W, 3) uint8 => (N, 3, H, W) float32."""
    constants = []
    for name, values in (("factor", factor), ("offset", offset)):
        data = values.astype(np.float32).reshape(1, 3, 1, 1)
        constant = ir.Value(
            name=f"{SCOPE}.{name}",
            shape=ir.Shape(data.shape),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=ir.tensor(data, name=f"{SCOPE}.{name}"),
        )
        graph.register_initializer(constant)
        constants.append(constant)
    cast = ir.node("Cast", [images], {"to": ir.DataType.FLOAT}, name=f"{SCOPE}/Cast")
    transpose = ir.node(
        "Transpose", [cast.outputs[0]], {"perm": [0, 3, 1, 2]}, name=f"{SCOPE}/Transpose"
    )
    multiply = ir.node("Mul", [transpose.outputs[0], constants[0]], name=f"{SCOPE}/Mul")
    add = ir.node("Add", [multiply.outputs[0], constants[1]], name=NORMALISED)
    nodes = [cast, transpose, multiply, add]
    for node in nodes:
        node.outputs[0].name = node.name
    return nodes
