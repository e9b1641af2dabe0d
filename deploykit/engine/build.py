"""Build: an ONNX deploy graph becomes a serialized TensorRT engine."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.engine._network import add_profile, inputs_of, network_from_onnx, outputs_of
from deploykit.engine._progress import BuildMonitor, OnStep
from deploykit.engine.flavour import TensorRT, make, quoting
from deploykit.engine.targets import CURRENT, PORTABLE, parse_targets
from deploykit.errors import DeploykitError, DeviceError, GraphError, UsageError
from deploykit.specs.engine import Profile
from deploykit.specs.tensors import TensorSpec
from deploykit.system.files import read_file, replacing
from deploykit.system.gpu import Gpu, need_gpu

#: Words in TensorRT's log that tell the machine's fault from the graph's.
_DEVICE_WORDS = ("cudaerror", "cuda runtime", "cuda initialization")
#: Words for what Turing, compute capability 7.5, is without.
_TURING_WORDS = ("for turing", "sm75")
#: Words for a lack of memory, which without an error of CUDA's may be the limit that the user set.
_MEMORY_WORDS = ("outofmemory", "out of memory", "insufficient memory", "workspace")


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine and what is known of it, which an engine does not tell without a GPU.

    Attributes:
        plan: The engine.
        graph_sha256: Of the very graph that it was built from.
        inputs: Of the network; the batch comes first and is dynamic.
        outputs: Likewise.
        gpu: The GPU that it was built on and for; None for an engine for named targets.
        seconds: How long parsing and building took.
    """

    plan: bytes
    graph_sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    gpu: Gpu | None
    seconds: float


def engine_from_onnx(
    tensorrt: TensorRT,
    graph: Path,
    *,
    profile: Profile,
    targets: Sequence[str],
    workspace_bytes: int | None = None,
    timing_cache: Path | None = None,
    on_step: OnStep = lambda _phase, _done, _total: None,
    on_cancel: Callable[[], None] = lambda: None,
) -> BuiltEngine:
    """Build an engine; nothing is written but the timing cache.

    The build stops at its next step on Ctrl-C, and nothing is left behind. There is no faster way:
    further Ctrl-Cs change nothing.

    Args:
        tensorrt: The flavour that builds.
        graph: An ONNX deploy graph, which decides the precision of every layer.
        profile: The batch sizes that the engine takes.
        targets: As :func:`~deploykit.engine.targets.parse_targets` gives them.
        workspace_bytes: The most device memory that a layer may use for itself; None for all.
        timing_cache: Where TensorRT keeps how fast its kernels were on this GPU; a file that does
            not fit is replaced. TensorRT for RTX measures nothing and leaves it alone.
        on_step: Told at each step, in the calling thread, the phase that the build is in, and how
            many of its own steps are done of how many. TensorRT may be silent for most of a build.
        on_cancel: Called, in the calling thread, at each Ctrl-C: the build stops at TensorRT's next
            step, which may be minutes away.

    Raises:
        UsageError: The targets are not for this flavour or version, or the workspace is too small.
        GraphError: TensorRT cannot read or build the graph, or its shapes are not a deploy graph's.
        DeviceError: The GPU that ``current`` needs is missing, or fails, or runs out of memory; or
            TensorRT does not start.
    """
    targets = parse_targets(targets, tensorrt.flavour)
    gpu = current_gpu() if targets == (CURRENT,) else None
    data = _read(graph)
    start = time.perf_counter()
    builder = make(tensorrt, "builder", lambda: tensorrt.trt.Builder(tensorrt.log))
    network = network_from_onnx(tensorrt, builder, data, name=graph.name)
    inputs, outputs = inputs_of(network), outputs_of(network)
    config = _configure(tensorrt, builder, targets, workspace_bytes)
    add_profile(tensorrt, builder, config, inputs, profile)
    if tensorrt.flavour == "tensorrt_rtx":
        timing_cache = None
    if timing_cache is not None:
        _load_timing_cache(config, timing_cache)
    monitor = BuildMonitor(tensorrt.trt)
    config.progress_monitor = monitor.progress
    with tensorrt.log.capture() as lines:
        memory = monitor.run(
            lambda: builder.build_serialized_network(network, config), on_step, on_cancel
        )
    if memory is None:
        raise _failure(graph, lines, workspace_bytes)
    if timing_cache is not None:
        _save_timing_cache(config, timing_cache)
    return BuiltEngine(
        plan=bytes(memory),
        graph_sha256=hashlib.sha256(data).hexdigest(),
        inputs=inputs,
        outputs=outputs,
        gpu=gpu,
        seconds=time.perf_counter() - start,
    )


def current_gpu() -> Gpu:
    """The GPU that the target ``current`` means.

    Raises:
        DeviceError: There is none, or it cannot be used.
    """
    try:
        return need_gpu()
    except DeviceError as exc:
        raise DeviceError(
            exc.message,
            hint="Build for a GPU that you name, which needs none here: "
            f"--flavour tensorrt_rtx --target sm89. {exc.hint}",
        ) from exc


def _read(graph: Path) -> bytes:
    try:
        return graph.read_bytes()
    except OSError as exc:
        raise GraphError(
            f"{graph} cannot be read ({exc.strerror}).", hint="Export the bundle again."
        ) from exc


def _configure(
    tensorrt: TensorRT, builder: Any, targets: tuple[str, ...], workspace_bytes: int | None
) -> Any:
    """Everything about the build but its batch sizes."""
    trt = tensorrt.trt
    config = make(tensorrt, "configuration", builder.create_builder_config)
    # What stays in FP32 does so for its accuracy, and was proven in FP32: TF32 has the mantissa of
    # FP16.
    config.clear_flag(trt.BuilderFlag.TF32)
    # So that the audit can ask the engine for its layers' types.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    if tensorrt.flavour == "tensorrt_rtx" and targets != (PORTABLE,):
        _set_targets(tensorrt, config, targets)
    return config


def _set_targets(tensorrt: TensorRT, config: Any, targets: tuple[str, ...]) -> None:
    config.num_compute_capabilities = len(targets)
    with tensorrt.log.capture() as lines:
        for index, target in enumerate(targets):
            capability = getattr(tensorrt.trt.ComputeCapability, target.upper(), None)
            if capability is None or not config.set_compute_capability(capability, index):
                raise UsageError(
                    quoting(f"tensorrt_rtx {tensorrt.version} does not build for {target}", lines),
                    hint='Update it: pip install --upgrade "deploykit[rtx]"',
                )


def _load_timing_cache(config: Any, path: Path) -> None:
    """Give the configuration the cache in a file, or an empty one to fill, if it takes any."""
    try:
        data = read_file(path)
    except OSError:
        data = b""
    # A cache of another GPU or TensorRT, or a damaged one, only costs the time that it would save.
    for content in (data, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return


def _save_timing_cache(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    memory = None if cache is None else cache.serialize()
    if memory is None:
        return
    # The engine, which may have taken minutes, is worth more than a cache that cannot be kept.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, follow_link=False) as partial:
            partial.write_bytes(bytes(memory))


def _failure(graph: Path, lines: Sequence[str], workspace_bytes: int | None) -> DeploykitError:
    """The error for a build that gave nothing, from what TensorRT said meanwhile."""
    message = quoting(f"TensorRT could not build {graph.name}", lines)
    said = " ".join(lines).lower()
    of_device = any(word in said for word in _DEVICE_WORDS)
    of_memory = any(word in said for word in _MEMORY_WORDS)
    if of_memory and workspace_bytes is not None and not of_device:
        return UsageError(
            message,
            hint=f"--workspace allows {workspace_bytes:,} bytes: allow more, or leave it out.",
        )
    if of_device or of_memory:
        return DeviceError(
            message,
            hint="Close what else uses the GPU, lower --max-batch, or update the driver "
            "(`deploykit doctor`).",
        )
    if any(word in said for word in _TURING_WORDS):
        return GraphError(
            message,
            hint="TensorRT for RTX has no FP32 product of matrices for Turing, which graphs in "
            "FP32 and INT8 may need. Build in FP16 (--precision fp16), or for newer GPUs (another "
            "--target), or run deploy/fp32.onnx there with --runtime onnxruntime-cuda.",
        )
    return GraphError(
        message,
        hint="Build in another precision than this one (--precision fp16, fp32 or int8), or run "
        "deploy/fp32.onnx with --runtime onnxruntime-cuda.",
    )
