"""What every use of ONNX Runtime here shares: its errors, its options, and opening on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from deploykit.errors import GraphError

#: All that ONNX Runtime raises: errors of its own that share no base but Exception, and
#: RuntimeError from what is bound to device memory.
ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(
        value
        for value in vars(ort_errors).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ),
)
_SEVERITY_FATAL = 4
#: Those that change answers. The first rounds the FP32 bias of a Conv whose input and weight are
#: rounded to int32, and clips what is too large for it; TensorRT leaves biases as the graph has
#: them. The second makes the zeros of a Pad before a MaxPool the pool's own padding, which is
#: -infinity: where all of a window is negative, the zeros were the largest (1.31).
DISABLED_OPTIMIZERS = ["WeightBiasQuantization", "Pad_Fusion"]


def session_options(threads: int | None) -> Any:
    """Options of a session on any provider.

    Args:
        threads: For computing on the CPU; None for one a core.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _SEVERITY_FATAL  # errors come as exceptions; its log is on stderr
    if threads is not None:
        options.intra_op_num_threads = threads
    # Threads that spin between two runs take the cores from whoever decodes or compares meanwhile.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_on_cpu(graph: Path | bytes, name: str, threads: int | None) -> Any:
    """Open a graph on the CPU provider, which computes what the graph leaves in FP32 in FP32.

    Args:
        graph: The graph's file, or what would be in it.
        name: What an error calls a graph that is no file.
        threads: For computing; None for one a core.

    Raises:
        GraphError: ONNX Runtime cannot read the graph.
    """
    try:
        # enable_fallback=0, or a failed run is repeated on the CPU and the session stays there.
        return ort.InferenceSession(
            graph,
            session_options(threads),
            providers=["CPUExecutionProvider"],
            disabled_optimizers=DISABLED_OPTIMIZERS,
            enable_fallback=0,
        )
    except ORT_ERRORS as exc:
        where = graph if isinstance(graph, Path) else name
        raise GraphError(f"ONNX Runtime cannot read {where}: {exc}") from exc
