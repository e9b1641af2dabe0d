"""From an ``nn.Module`` to the canonical graph."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO, cast

import onnx_ir as ir
import torch
from torch import nn

from deploykit.bundle.onnx_file import MAX_GRAPH_BYTES
from deploykit.errors import GraphError, UsageError
from deploykit.graph import passes
from deploykit.graph.export_errors import export_error, line_that_fixes_a_size
from deploykit.graph.simplify import simplify
from deploykit.specs.preprocessing import Size

CANONICAL_INPUT = "input"
OUTPUT = "logits"
BATCH_DIMENSION = "N"
#: A bundle's graph is one file, in which the nodes need room beside the weights.
_MAX_WEIGHT_BYTES = MAX_GRAPH_BYTES - 2**20
#: deploy graphs and later passes are written for these; an older one lacks operators they use.
OPSETS = range(18, 24)
#: The packages whose log is the exporter's.
_EXPORTERS = frozenset({"onnx_ir", "onnxscript", "torch"})
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
    with _exporting(module):
        model = simplify(_program(module, input_size, opset).model)
    weights = (value.const_value for value in model.graph.initializers.values())
    size = sum(weight.nbytes for weight in weights if weight is not None)
    if size > _MAX_WEIGHT_BYTES:
        holds = f"{_MAX_WEIGHT_BYTES / 1e9:.1f}"
        raise GraphError(f"The weights take {size / 1e9:.1f} GB; an ONNX file holds {holds}.")
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
    with _exporting(module):
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


class _OtherThreads:
    """A stream that drops what this thread writes: torch prints its graphs; a bar goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._silent = threading.get_ident()

    def write(self, text: str) -> int:
        """Write another thread's text."""
        if threading.get_ident() == self._silent:
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _exporting(module: nn.Module) -> Iterator[None]:
    """Turn what the exporter raises into a GraphError, and keep its chatter off the terminal.

    What forward() prints is dropped as well: while it is traced, its tensors have no numbers.
    """
    shapes = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = shapes.level
    fixed: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.name == shapes.name and (line := line_that_fixes_a_size(record.getMessage())):
            fixed.append(line)
        return record.name.partition(".")[0] not in _EXPORTERS

    # torch gives several of its loggers handlers of their own.
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    found = [each.handlers for each in loggers if isinstance(each, logging.Logger)]
    handlers = {*itertools.chain(*found), *filter(None, [logging.lastResort])}
    for handler in handlers:
        handler.addFilter(keep)
    shapes.setLevel(logging.INFO)  # which tells the line that fixes the size of a batch
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(cast("TextIO", _OtherThreads(sys.stderr))),
        ):
            warnings.simplefilter("ignore")
            yield
    # The exporter raises whatever its own parts and the module raise.
    except (Exception, SystemExit) as exc:
        raise export_error(exc, module, fixed) from exc
    finally:
        shapes.setLevel(level)
        for handler in handlers:
            handler.removeFilter(keep)
