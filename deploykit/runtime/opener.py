"""Open a runtime by its name."""

from __future__ import annotations

import difflib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import DependencyError, DeviceError, UsageError
from deploykit.specs.engine import Profile
from deploykit.specs.model import Labels, Precision
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import ServerProtocol, Session, SessionSpec
from deploykit.specs.value import choice
from deploykit.system.cpu import cpu_device
from deploykit.system.deps import need
from deploykit.system.gpu import need_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    import numpy.typing as npt
    from torch import nn

    from deploykit.runtime._onnxruntime import GraphProbe
    from deploykit.runtime._server import OpenServer
    from deploykit.runtime._tensorrt import TensorRTSession
    from deploykit.specs.engine import TensorRT

CPU = "onnxruntime-cpu"
CUDA = "onnxruntime-cuda"
OPENVINO = "openvino"
#: A model of the hardware: each tensor rounded through FP16 or int8, and computed with mostly in
#: FP32 by kernels on the CPU.
REHEARSAL = "rehearsal"

#: The precisions that each runtime really computes in. ONNX Runtime's CPU provider runs an FP16
#: graph in FP32 behind casts, so what it answers shows nothing about FP16.
RUNTIMES: dict[str, tuple[Precision, ...]] = {
    CPU: ("fp32", "int8"),
    CUDA: ("fp32", "fp16"),
    OPENVINO: ("fp32", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "int8"),
    "tensorrt_rtx": ("fp32", "fp16", "int8"),
    REHEARSAL: ("fp16", "int8"),
}
#: Those that run an ONNX graph; the others run engines.
GRAPH_RUNTIMES = (CPU, CUDA, OPENVINO, REHEARSAL)
#: Those that need no device but the CPU, and are no model of another.
HOST_RUNTIMES = (CPU, OPENVINO)


def graph_precision(precision: Precision) -> Precision:
    """The precision of the deploy graph that is opened for a precision: for BF16 it is FP32.

    BF16 is the one precision that lives in a hint to the runtime and not in a graph.
    """
    return "fp32" if precision == "bf16" else precision


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
    graph: Path | bytes,
    *,
    name: str,
    runtime: str,
    precision: Precision,
    preprocessing: Preprocessing,
    labels: Labels,
    threads: int | None = None,
    pipelined: bool = False,
    tf32: bool = False,
    embedding: int = 0,
) -> Session:
    """Open an ONNX graph, canonical or deploy, on a runtime.

    Args:
        graph: The graph's file, or what would be in it. A rehearsal is of a graph that was made
            for it: the FP16 graph's values in FP32, rounded where that one rounds.
        name: What reports call it, ``deploy/fp32.onnx``.
        runtime: One of :data:`GRAPH_RUNTIMES`.
        precision: The precision of the graph's arithmetic.
        preprocessing: The image size, and the normalisation that the canonical graph is without.
        labels: The classes' names. Where the graph tells its labels and preprocessing itself, they
            must be these.
        threads: For computing on the CPU; None for one a core.
        pipelined: Whether several batches will be under way at once, which is how to have the most
            images/s. ONNX Runtime then computes in its callers' threads only, OpenVINO each image
            in one thread of its own.
        tf32: Whether a GPU may compute FP32 in TensorFloat-32, with 10 bits of mantissa.
        embedding: E, of the graph with embeddings: the session is an ``EmbeddingSession``. 0 of all
            others, which must have one output.

    Raises:
        UsageError: No such runtime, or one that does not compute in that precision, or TF32 on a
            runtime that has none.
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
    runtime = choice(runtime, GRAPH_RUNTIMES, "runtime of ONNX graphs")
    if tf32 and runtime != CUDA:
        raise UsageError(f"{runtime} has no TF32.", hint=f"What has: {CUDA}.")
    need("openvino" if runtime == OPENVINO else "onnxruntime")
    spec = SessionSpec(
        runtime=runtime,
        graph=name,
        precision=precision,
        device=_cuda_device() if runtime == CUDA else cpu_device(precision),
        input_size=preprocessing.input_size,
        classes=labels.logits,
        tf32=tf32,
        concurrent=runtime in (CPU, REHEARSAL),
    )
    if runtime == OPENVINO:
        from deploykit.runtime._openvino import OpenVinoSession

        return OpenVinoSession(
            *(graph, spec, preprocessing, labels, threads),
            pipelined=pipelined,
            embedding=embedding,
        )
    from deploykit.runtime._onnxruntime import OnnxRuntimeSession

    return OnnxRuntimeSession(
        graph, spec, preprocessing, labels, 1 if pipelined else threads, embedding
    )


def _cuda_device() -> str:
    """The name of GPU 0, which ONNX Runtime needs."""
    try:
        return need_gpu().name
    except DeviceError as exc:
        hint = "The CPU runs the same graph: --runtime onnxruntime-cpu"
        raise DeviceError(exc.message, hint=hint) from exc


def open_engine(
    tensorrt: TensorRT,
    plan: bytes,
    *,
    name: str,
    precision: Precision,
    profile: Profile,
    preprocessing: Preprocessing,
    labels: Labels,
    cache: Path | None = None,
) -> TensorRTSession:
    """Open a TensorRT engine on GPU 0.

    Args:
        tensorrt: The flavour that built the engine.
        plan: The serialized engine.
        name: What reports call it, ``engines/....engine``.
        precision: The precision of the graph that it was built from.
        profile: The batch sizes that it was built for.
        preprocessing: The images' size and type.
        labels: The classes' names.
        cache: The file that keeps the kernels that TensorRT for RTX compiles for this GPU, written
            when the session closes; None for none. TensorRT compiles them into the engine, and
            has no such file.

    Returns:
        A session that can also have two batches in flight: ``submit`` and ``collect``.

    Raises:
        GraphError: It is not an engine of this bundle's deploy graph and profile.
        DependencyError: ``cuda-bindings`` is missing or too old.
        DeviceError: There is no GPU, or TensorRT does not run the engine on it.
    """
    need("cuda.bindings.runtime")
    try:
        from deploykit.runtime._tensorrt import TensorRTSession
    except ImportError as exc:
        raise DependencyError(
            f"The installed cuda-bindings {version('cuda-bindings')} is too old: {exc}",
            hint='Upgrade it: pip install --upgrade "cuda-bindings>=12.9.1"',
        ) from exc

    spec = SessionSpec(
        runtime=tensorrt.flavour,
        graph=name,
        precision=precision,
        device=need_gpu().name,
        input_size=preprocessing.input_size,
        classes=labels.logits,
        largest_batch=profile.max_batch,
    )
    return TensorRTSession(tensorrt, plan, spec, profile, cache, preprocessing.pixel_type)


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


def node_milliseconds(
    graph: Path | bytes, feeds: Mapping[str, npt.NDArray[Any]], *, runs: int = 3
) -> dict[str, float]:
    """How long each node of an ONNX graph takes on the CPU, by the nodes' names.

    See :func:`deploykit.runtime._onnxruntime.node_milliseconds`.
    """
    need("onnxruntime")
    from deploykit.runtime import _onnxruntime

    return _onnxruntime.node_milliseconds(graph, feeds, runs)


def open_server(
    url: str,
    protocol: ServerProtocol,
    *,
    name: str,
    precision: Precision,
    preprocessing: Preprocessing,
    labels: Labels,
    read_file: Callable[[str], bytes] | None,
) -> OpenServer:
    """Connect to a server that speaks KServe's protocol; see :mod:`deploykit.runtime._server`.

    Args:
        url: The server's address, which may name its model.
        protocol: What it speaks there.
        name: The model where the address names none.
        precision: What it computes in.
        preprocessing: The bundle's.
        labels: The bundle's.
        read_file: See :func:`deploykit.runtime._server.open_server`, as for the errors.

    Raises:
        UsageError: The address makes no sense.
    """
    from deploykit.runtime._server import open_server
    from deploykit.runtime._server_client import parse_address

    return open_server(
        parse_address(url, protocol, name),
        precision=precision,
        preprocessing=preprocessing,
        labels=labels,
        read_file=read_file,
    )


def open_probe(
    graph: Path | bytes, threads: int | None = None, *, cuda: Precision | None = None
) -> GraphProbe:
    """Open any ONNX graph on ONNX Runtime, with all its inputs and outputs.

    Args:
        graph: The graph's file, or what would be in it: 2 GB at most.
        threads: For computing on the CPU; None for one a core.
        cuda: The precision of the graph's arithmetic on GPU 0; None for the CPU.

    Raises:
        GraphError: ONNX Runtime cannot read the graph.
        DependencyError: ONNX Runtime is missing.
        DeviceError: There is no GPU, or ONNX Runtime cannot use it.
    """
    need("onnxruntime")
    from deploykit.runtime._onnxruntime import GraphProbe

    if cuda is not None:
        _cuda_device()
    return GraphProbe(graph, threads, cuda)
