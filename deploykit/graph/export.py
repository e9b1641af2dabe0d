"""From an ``nn.Module`` to the canonical graph."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from deploykit.errors import GraphError, UsageError
from deploykit.graph import passes
from deploykit.graph.simplify import simplify
from deploykit.specs.preprocessing import Size

CANONICAL_INPUT = "input"
OUTPUT = "logits"
BATCH_DIMENSION = "N"
#: One serialized protobuf holds 2 GB at most, and a bundle's graph is one file.
MAX_GRAPH_BYTES = 2**31 - 2**20
#: deploy graphs and later passes are written for these; an older one lacks operators they use.
OPSETS = range(18, 24)
_EXPORT_BATCH = 2  # torch.export takes a dimension of 1 for a constant


def onnx_from_module(module: nn.Module, input_size: Size, *, opset: int | None = None) -> ir.Model:
    """Export a module to the canonical graph, through ``torch.onnx.export`` (dynamo).

    Args:
        module: In eval mode, from (N, 3, H, W) float32 to (N, K) float32.
        input_size: H and W, which the graph fixes; N stays dynamic.
        opset: The ONNX operator set; None for torch's own choice.

    Returns:
        ``input`` float32 [N, 3, H, W] to ``logits`` float32 [N, K], each node with the path of the
        ``nn.Module`` that it comes from, and no other trace of the exporter.

    Raises:
        UsageError: The operator set is not supported.
        GraphError: torch cannot export the module with a dynamic batch, or it is too large.
    """
    if opset is not None and opset not in OPSETS:
        raise UsageError(f"Opset {opset} is not supported; {OPSETS[0]} to {OPSETS[-1]} are.")
    with _exporting():
        model = simplify(_program(module, input_size, opset).model)
    weights = (value.const_value for value in model.graph.initializers.values())
    size = sum(weight.nbytes for weight in weights if weight is not None)
    if size > MAX_GRAPH_BYTES:
        raise GraphError(
            f"The weights take {size / 1e9:.1f} GB; an ONNX file holds {MAX_GRAPH_BYTES / 1e9:.1f}."
        )
    return passes.apply(model, passes.CLEAN_UP)


def traced_program(
    module: nn.Module, input_size: Size, *, opset: int | None = None
) -> torch.export.ExportedProgram:
    """Trace a module as :func:`onnx_from_module` does, without translating it to ONNX.

    Args:
        module: See :func:`onnx_from_module`, as the arguments below.
        input_size: H and W.
        opset: The ONNX operator set.

    Returns:
        The program, in torch's operators. Its tensors have the names that the canonical graph
        gives them.

    Raises:
        GraphError: torch cannot export the module.
    """
    with _exporting():
        program: torch.export.ExportedProgram = _program(module, input_size, opset).exported_program
    return program


def _program(module: nn.Module, input_size: Size, opset: int | None) -> Any:
    return torch.onnx.export(
        module,
        (torch.zeros(_EXPORT_BATCH, 3, *input_size),),
        dynamo=True,
        input_names=[CANONICAL_INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: BATCH_DIMENSION},),
        opset_version=opset,
        optimize=False,  # graph.simplify does it in less time
        verbose=False,
    )


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """Turn what the exporter raises into a GraphError, and keep its chatter off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    except Exception as exc:  # the exporter raises whatever its own parts and the module raise
        raise GraphError(
            f"torch.onnx.export failed: {_root_cause(exc)}",
            hint="The forward may branch on values or on the batch size; "
            "-v shows the exporter's whole report.",
        ) from exc
    finally:
        logger.setLevel(level)


def _root_cause(error: BaseException) -> str:
    """The first line of the error at the bottom of the exporter's chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
