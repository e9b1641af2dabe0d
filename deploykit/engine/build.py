"""Build: an ONNX deploy graph becomes a serialized TensorRT engine."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

from deploykit.bundle.onnx_file import MAX_GRAPH_BYTES
from deploykit.engine.flavour import make, quoting
from deploykit.engine.passport import CURRENT, PORTABLE, parse_targets
from deploykit.errors import DeploykitError, DeviceError, GraphError, UsageError
from deploykit.specs.engine import Profile, TensorRT
from deploykit.specs.model import TensorSpec
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
        targets: As :func:`~deploykit.engine.passport.parse_targets` gives them.
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
    try:
        data = read_file(graph, limit=MAX_GRAPH_BYTES)
    except OSError as exc:
        raise GraphError(
            f"{graph} cannot be read ({exc.strerror}).", hint="Export the bundle again."
        ) from exc
    start = time.perf_counter()
    builder = make(tensorrt, "builder", lambda: tensorrt.trt.Builder(tensorrt.log))
    network = network_from_onnx(tensorrt, builder, data, name=graph.name)
    inputs = tuple(_spec(network.get_input(index)) for index in range(network.num_inputs))
    outputs = tuple(_spec(network.get_output(index)) for index in range(network.num_outputs))
    config = _configure(tensorrt, builder, targets, workspace_bytes, inputs, profile)
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


def _configure(
    tensorrt: TensorRT,
    builder: Any,
    targets: tuple[str, ...],
    workspace_bytes: int | None,
    inputs: tuple[TensorSpec, ...],
    profile: Profile,
) -> Any:
    """Everything about the build but its graph."""
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
        config.num_compute_capabilities = len(targets)
        with tensorrt.log.capture() as lines:
            for index, target in enumerate(targets):
                capability = getattr(trt.ComputeCapability, target.upper(), None)
                if capability is None or not config.set_compute_capability(capability, index):
                    built = f"tensorrt_rtx {tensorrt.version} does not build for {target}"
                    raise UsageError(
                        quoting(built, lines),
                        hint='Update it: pip install --upgrade "deploykit[rtx]"',
                    )
    batches = (profile.min_batch, profile.opt_batch, profile.max_batch)
    optimization = make(tensorrt, "profile", builder.create_optimization_profile)
    with tensorrt.log.capture() as lines:
        for spec in inputs:
            optimization.set_shape(spec.name, *((batch, *spec.shape[1:]) for batch in batches))
        if config.add_optimization_profile(optimization) < 0:
            raise GraphError(
                quoting(f"TensorRT rejects the batch sizes {batches}", lines),
                hint="Set others with --min-batch, --opt-batch and --max-batch.",
            )
    return config


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
            hint="Close what else uses the GPU, lower --max-batch, or update the driver; "
            "see which one is here: deploykit doctor",
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


#: NumPy's names of the types that deploy graphs take and give.
_DTYPES = {"UINT8": "uint8", "FLOAT": "float32"}
_SHOWN_ERRORS = 5


def network_from_onnx(tensorrt: TensorRT, builder: Any, data: bytes, *, name: str) -> Any:
    """Parse a graph into a strongly typed network: its types are the ONNX graph's.

    Args:
        tensorrt: The flavour.
        builder: Its ``Builder``.
        data: What is in the ONNX file. A path would not do: TensorRT opens only those that the
            system's own code page can write.
        name: What errors call it.

    Returns:
        An ``INetworkDefinition``; it keeps its parser, which owns the weights, alive.

    Raises:
        GraphError: TensorRT cannot read the graph, or does not know one of its operators.
        DeviceError: TensorRT makes no network or parser at all.
    """
    trt = tensorrt.trt
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    with tensorrt.log.capture() as lines:
        network = make(tensorrt, "network", lambda: builder.create_network(strongly_typed))
        parser = make(tensorrt, "parser", lambda: trt.OnnxParser(network, tensorrt.log))
        if parser.parse(data):
            return network
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    reasons = [_describe(error) for error in errors[:_SHOWN_ERRORS]] or list(lines)
    if len(errors) > _SHOWN_ERRORS:
        reasons.append(f"and {len(errors) - _SHOWN_ERRORS} more")
    at_nodes = any(error.node_name() or error.node_operator() for error in errors)
    raise GraphError(
        quoting(f"TensorRT cannot read {name}", reasons),
        hint="Replace that operation in the network's forward by one that TensorRT knows, export "
        "again, or run the graph with --runtime onnxruntime-cuda."
        if at_nodes
        else "Export the bundle again.",
    )


def _describe(error: Any) -> str:
    """One line for a ``ParserError``: the node and what is wrong with it."""
    # What follows the first lines repeats the machine's state: no driver.
    reason = "; ".join(line for line in error.desc().splitlines() if "catchCudaError" not in line)
    if not error.node_operator():
        return reason
    return f"node {error.node_name() or error.node()} ({error.node_operator()}): {reason}"


def _spec(tensor: Any) -> TensorSpec:
    """The spec of an input or output.

    Raises:
        GraphError: Its batch is not dynamic, another dimension is, or its type is another.
    """
    shape = tuple(tensor.shape)
    if not shape or shape[0] != -1 or min(shape[1:], default=1) < 1:
        raise GraphError(
            f"{tensor.name} has shape {list(shape)} (-1 is dynamic): an engine needs a dynamic "
            "batch, which comes first, and nothing else that is dynamic.",
            hint="Export the bundle again: its graphs are like that.",
        )
    dtype = _DTYPES.get(tensor.dtype.name)
    if dtype is None:
        raise GraphError(
            f"{tensor.name} is {tensor.dtype.name}: an engine takes bytes and gives FP32.",
            hint="Export the bundle again: its graphs are like that.",
        )
    batch = tensor.get_dimension_name(0) or "N"
    return TensorSpec(name=tensor.name, dtype=dtype, shape=(batch, *shape[1:]))


_Result = TypeVar("_Result")
OnStep: TypeAlias = Callable[[str, int, int], None]
"""Called with the phase that a build is in, how many of the build's own steps are done, and how
many it has."""

#: Python delivers Ctrl-C between two waits: on Windows a wait cannot be interrupted.
_POLL_SECONDS = 0.1


class BuildMonitor:
    """Runs a build in a thread and hands its steps to the caller's.

    TensorRT calls its monitor from the building thread, where an exception would have to pass
    through C++. So the monitor only notes the step, and ``on_step`` is called, and may raise, in
    the thread that waits for the build: the main one, which is also where Ctrl-C arrives.

    Attributes:
        progress: The ``IProgressMonitor`` to give to TensorRT.
    """

    def __init__(self, trt: ModuleType) -> None:
        self._steps: queue.SimpleQueue[tuple[str, int, int] | None] = queue.SimpleQueue()
        self._cancelled = Event()
        self.progress: Any = _make_progress(trt, self._steps.put, self._cancelled)

    def run(
        self, build: Callable[[], _Result], on_step: OnStep, on_cancel: Callable[[], None]
    ) -> _Result:
        """Run a build and return what it returns.

        Whatever interrupts the wait, Ctrl-C or an exception of ``on_step``, stops the build at its
        next step and goes on when its thread has ended. ``on_cancel`` is called when that wait
        begins, and again at each further Ctrl-C, which does not end it: Python itself would wait
        for the thread when it exits, and in silence.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tensorrt-build") as threads:
            result = threads.submit(build)
            try:
                result.add_done_callback(lambda _: self._steps.put(None))
                while (step := self._next_step()) is not None:
                    on_step(*step)
            except BaseException:
                self._cancelled.set()
                # Not by joining the thread: where Ctrl-C interrupts that, Python 3.11 takes it for
                # ended.
                while not result.done():
                    with contextlib.suppress(KeyboardInterrupt):
                        on_cancel()
                        while not result.done():
                            wait([result], timeout=_POLL_SECONDS)
                raise
            return result.result()

    def _next_step(self) -> tuple[str, int, int] | None:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._steps.get(timeout=_POLL_SECONDS)


def _make_progress(trt: Any, put: Callable[[tuple[str, int, int]], None], cancelled: Event) -> Any:
    """Make the monitor, whose class cannot exist before TensorRT is imported."""

    class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._build = ""  # the phase that all others are parts of
            self._done, self._total = 0, 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._build, self._done, self._total = phase_name, 0, num_steps
            put((phase_name, self._done, self._total))

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._build:
                self._done = step + 1
            put((phase_name, self._done, self._total))
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            """Nothing to tell: its last step has said it."""

    return ProgressMonitor()
