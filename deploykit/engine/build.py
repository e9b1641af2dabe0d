"""Build: an ONNX deploy graph becomes a serialized TensorRT engine."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.engine._network import add_profile, inputs_of, network_from_onnx, outputs_of
from deploykit.engine._progress import BuildMonitor, OnStep
from deploykit.engine.flavour import TensorRT
from deploykit.engine.targets import CURRENT, PORTABLE, parse_targets
from deploykit.errors import DeploykitError, DeviceError, GraphError, UsageError
from deploykit.files import replacing
from deploykit.gpu import Gpu, need_gpu
from deploykit.specs import Profile, TensorSpec

#: Words in TensorRT's log that tell the machine's fault from the graph's.
_DEVICE_WORDS = ("cudaerror", "cuda runtime", "cuda initialization", "outofmemory", "out of memory")


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
) -> BuiltEngine:
    """Build an engine; nothing is written but the timing cache.

    The build stops at its next step on Ctrl-C, and nothing is left behind.

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

    Raises:
        UsageError: The targets are not for this flavour or version, or the workspace is too small.
        GraphError: TensorRT cannot read or build the graph, or its shapes are not a deploy graph's.
        DeviceError: The GPU that ``current`` needs is missing, or fails, or runs out of memory.
    """
    targets = parse_targets(targets, tensorrt.flavour)
    gpu = _current_gpu() if targets == (CURRENT,) else None
    data = _read(graph)
    start = time.perf_counter()
    builder = _open_builder(tensorrt)
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
        memory = monitor.run(lambda: builder.build_serialized_network(network, config), on_step)
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


def _current_gpu() -> Gpu:
    try:
        return need_gpu()
    except DeviceError as exc:
        raise DeviceError(
            exc.message,
            hint="What needs no GPU is an engine for one that you name: "
            "--flavour tensorrt_rtx --target sm89",
        ) from exc


def _read(graph: Path) -> bytes:
    try:
        return graph.read_bytes()
    except OSError as exc:
        raise GraphError(
            f"{graph} cannot be read ({exc.strerror}).", hint="Export the bundle again."
        ) from exc


def _open_builder(tensorrt: TensorRT) -> Any:
    with tensorrt.log.capture() as lines:
        try:
            return tensorrt.trt.Builder(tensorrt.log)
        except TypeError as exc:  # how the bindings say that the library gave a null pointer
            raise DeviceError(
                "\n".join([f"{tensorrt.flavour} {tensorrt.version} does not start:", *lines]),
                hint="`deploykit doctor` shows which driver it needs and which one is here.",
            ) from exc


def _configure(
    tensorrt: TensorRT, builder: Any, targets: tuple[str, ...], workspace_bytes: int | None
) -> Any:
    """Everything about the build but its batch sizes."""
    trt = tensorrt.trt
    config = builder.create_builder_config()
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
                    "\n".join(
                        [f"tensorrt_rtx {tensorrt.version} does not build for {target}.", *lines]
                    ),
                    hint='Update it: pip install --upgrade "deploykit[rtx]"',
                )


def _load_timing_cache(config: Any, path: Path) -> None:
    """Give the configuration the cache in a file, or an empty one to fill."""
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    cache = config.create_timing_cache(data)
    # A cache of another GPU or TensorRT, or a damaged one, only costs the time that it would save.
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _save_timing_cache(config: Any, path: Path) -> None:
    # The engine, which may have taken minutes, is worth more than a cache that cannot be kept.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            cache = config.get_timing_cache()
            partial.write_bytes(bytes(cache.serialize()))


def _failure(graph: Path, lines: Sequence[str], workspace_bytes: int | None) -> DeploykitError:
    """The error for a build that gave nothing, from what TensorRT said meanwhile."""
    message = "\n".join([f"TensorRT could not build {graph.name}:", *lines])
    said = message.lower()
    if any(word in said for word in _DEVICE_WORDS):
        return DeviceError(
            message,
            hint="Close what else uses the GPU, lower --max-batch or --workspace, or update the "
            "driver (`deploykit doctor`).",
        )
    if workspace_bytes is not None and "workspace" in said:
        return UsageError(
            message,
            hint=f"--workspace allows {workspace_bytes:,} bytes: allow more, or leave it out.",
        )
    return GraphError(
        message,
        hint="Build from another precision (--precision fp32), or run the graph with "
        "--runtime onnxruntime-cuda.",
    )
