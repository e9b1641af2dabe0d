"""Open a runtime by its name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.deps import need
from deploykit.errors import UsageError
from deploykit.session import Session
from deploykit.specs import Labels, Precision, Preprocessing

if TYPE_CHECKING:
    from torch import nn

#: The precisions that each runtime really computes in. ONNX Runtime's CPU provider runs an FP16
#: graph in FP32 behind casts, so what it answers shows nothing about FP16.
RUNTIMES: dict[str, tuple[Precision, ...]] = {
    "onnxruntime-cpu": ("fp32", "int8"),
    "onnxruntime-cuda": ("fp32", "fp16"),
}


def precisions_of(runtime: str) -> tuple[Precision, ...]:
    """The precisions that a runtime really computes in.

    Raises:
        UsageError: There is no such runtime.
    """
    if runtime not in RUNTIMES:
        close = difflib.get_close_matches(runtime, RUNTIMES, n=1)
        raise UsageError(
            f"There is no runtime {runtime!r}; there are {', '.join(RUNTIMES)}.",
            hint=f"Did you mean {close[0]}?" if close else None,
        )
    return RUNTIMES[runtime]


def open_graph(
    graph: Path,
    *,
    name: str,
    runtime: str,
    precision: Precision,
    preprocessing: Preprocessing,
    labels: Labels,
    threads: int | None = None,
) -> Session:
    """Open an ONNX graph, canonical or deploy, on a runtime.

    Args:
        graph: The graph's file.
        name: What reports call it, ``deploy/fp32.onnx``.
        runtime: One of :data:`RUNTIMES`.
        precision: The precision of the graph's arithmetic.
        preprocessing: The image size, and the normalisation that the canonical graph is without.
        labels: The classes' names. Where the graph tells its labels and preprocessing itself, they
            must be these.
        threads: For computing on the CPU; None for one a core.

    Raises:
        UsageError: No such runtime, or one that does not compute in that precision.
        GraphError: The runtime cannot read the graph, or it is not the graph it should be.
        DependencyError: A package is missing.
        DeviceError: The device is missing, or the runtime would fall back to another.
    """
    if precision not in precisions_of(runtime):
        able = [name for name, precisions in RUNTIMES.items() if precision in precisions]
        raise UsageError(
            f"{runtime} does not compute in {precision}.",
            hint=f"What does: {', '.join(able)}." if able else None,
        )
    need("onnxruntime")
    from deploykit.runtime._onnxruntime import OnnxRuntimeSession

    return OnnxRuntimeSession(
        graph,
        name=name,
        cuda=runtime == "onnxruntime-cuda",
        precision=precision,
        preprocessing=preprocessing,
        labels=labels,
        threads=threads,
    )


def open_module(module: nn.Module, *, preprocessing: Preprocessing, classes: int) -> Session:
    """Open a torch module in eval mode as a session on the CPU: the reference.

    Args:
        module: From (N, 3, H, W) float32, normalised, to (N, K) float32.
        preprocessing: The image size and the normalisation.
        classes: K.
    """
    need("torch")
    from deploykit.runtime._torch import ModuleSession

    return ModuleSession(module, preprocessing=preprocessing, classes=classes)
