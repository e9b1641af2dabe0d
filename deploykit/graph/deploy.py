"""From the canonical graph to the FP32 deploy graph: the rules, then the normalisation inside."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploykit.errors import GraphError
from deploykit.graph.optimise import DEPLOY_RULES
from deploykit.graph.passes import MODULE_PATH, SCOPE, Pass, apply
from deploykit.graph.values import named_node, new_constant
from deploykit.specs.preprocessing import Preprocessing

DEPLOY_INPUT = "images"
#: The tensor in a deploy graph that stands for the canonical graph's input.
NORMALISED = f"{SCOPE}/Add"


def apply_deploy_passes(canonical: ir.Model, preprocessing: Preprocessing) -> ir.Model:
    """Make the FP32 deploy graph of a canonical graph, which is changed."""
    return apply(canonical, (*DEPLOY_RULES, fuse_preprocessing(preprocessing)))


def fuse_preprocessing(preprocessing: Preprocessing) -> Pass:
    """Make the pass that puts scaling to 0..1 and normalisation into the graph.

    ``images`` [N, H, W, 3] replaces the normalised float32 [N, 3, H, W]. They are uint8, or
    float32 where training does not round pixels. Bytes are cast before they are transposed, because
    TensorRT does not transpose uint8.
    """
    mean = np.array(preprocessing.mean, np.float64)
    std = np.array(preprocessing.std, np.float64)

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
        shape = ir.Shape([batch, height, width, 3])
        fp32, order = ir.DataType.FLOAT, {"perm": [0, 3, 1, 2]}
        images = ir.val(DEPLOY_INPUT, fp32 if preprocessing.pixels else ir.DataType.UINT8, shape)
        factor, offset = (
            new_constant(graph, f"{SCOPE}.{name}", values.astype(np.float32).reshape(1, 3, 1, 1))
            for name, values in (("factor", 1 / (255 * std)), ("offset", -mean / std))
        )
        # (N, H, W, 3) uint8 => float32 => (N, 3, H, W)
        nodes, floats = [], images
        if images.dtype != fp32:
            cast = named_node(
                "Cast", [images], f"{SCOPE}/Cast", {"to": fp32}, like=images, dtype=fp32
            )
            nodes, floats = [cast], cast.outputs[0]
        transpose = named_node("Transpose", [floats], f"{SCOPE}/Transpose", order, like=old)
        multiply = named_node("Mul", [*transpose.outputs, factor], f"{SCOPE}/Mul", like=old)
        add = named_node("Add", [*multiply.outputs, offset], NORMALISED, like=old)
        nodes += [transpose, multiply, add]
        for node in nodes:
            node.metadata_props[MODULE_PATH] = SCOPE
        old.replace_all_uses_with(add.outputs[0])
        graph.inputs[0] = images
        graph.insert_before(graph[0], nodes)
        return model, True

    return fuse
