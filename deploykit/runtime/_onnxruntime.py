"""ONNX Runtime, on the CPU and on an NVIDIA GPU."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from deploykit.errors import DeviceError, GraphError, InputError
from deploykit.runtime._base import Answers, BaseSession, Tensors, check_graph, normalised
from deploykit.specs.embeddings import EMBEDDING_OUTPUT
from deploykit.specs.model import Labels, Precision
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import Closing, ImageBatch, Logits, NetworkInputs, SessionSpec

#: All that ONNX Runtime raises: errors of its own that share no base but Exception, RuntimeError
#: from what is bound to device memory, and what its Python part raises: ValueError for an input
#: that is missing, UnicodeDecodeError (a ValueError) for a name that is no UTF-8.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(RuntimeError, ValueError, TypeError, OverflowError, MemoryError),
    *(
        value
        for value in vars(ort_errors).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ),
)
_SEVERITY_FATAL = 4
_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
_CPU_HINT = "The CPU runs the same graph (--runtime onnxruntime-cpu)"
#: Those that change answers. The first rounds the FP32 bias of a Conv whose input and weight are
#: rounded to int32, and clips what is too large for it; TensorRT leaves biases as the graph has
#: them. The second makes the zeros of a Pad before a MaxPool the pool's own padding, which is
#: -infinity: where all of a window is negative, the zeros were the largest (1.31).
DISABLED_OPTIMIZERS = ["WeightBiasQuantization", "Pad_Fusion"]


def open_onnx(
    graph: Path | bytes,
    name: str,
    threads: int | None,
    *,
    cuda: Precision | None = None,
    tf32: bool = False,
) -> Any:
    """Open a graph with ONNX Runtime, on the CPU or on GPU 0.

    Args:
        graph: The graph's file, or what would be in it.
        name: What an error calls a graph that is no file.
        threads: For computing on the CPU; None for one a core.
        cuda: The precision of the graph's arithmetic on the GPU; None for the CPU, which computes
            what the graph leaves in FP32 in FP32.
        tf32: Whether the GPU may compute FP32 in TensorFloat-32.

    Raises:
        GraphError: ONNX Runtime cannot read the graph.
        DeviceError: ONNX Runtime cannot use the GPU.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _SEVERITY_FATAL  # errors come as exceptions; its log is on stderr
    if threads is not None:
        options.intra_op_num_threads = threads
    # Not what its first bytes say: ONNX Runtime's own format can name other files, too.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Within a run threads that wait for the next node spin, which is faster. After it they would
    # take the cores from whoever decodes or compares meanwhile.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    where = graph if isinstance(graph, Path) else name
    provider = "CPUExecutionProvider" if cuda is None else "CUDAExecutionProvider"
    provider_options = {}
    if cuda is not None:
        if provider not in ort.get_available_providers():
            raise DeviceError(
                f"The installed ONNX Runtime {ort.__version__} has no CUDA provider.",
                hint=_CPU_HINT + '; or install one that has: pip install "deploykit[cuda]"',
            )
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot find
            ort.preload_dlls()
        provider_options = {
            # TensorFloat-32 is on by default, and keeps 10 bits of mantissa.
            "use_tf32": "1" if tf32 else "0",
            # EXHAUSTIVE, the default, searches anew for each batch size, ragged ones too.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Tensor cores take FP16 channels-last; channels-first costs transposes at each Conv.
            "prefer_nhwc": "1" if cuda == "fp16" else "0",
        }
    try:
        session = ort.InferenceSession(
            graph,
            options,
            providers=[(provider, provider_options)],
            disabled_optimizers=DISABLED_OPTIMIZERS,
            # Or a failed run is repeated on the CPU, and the session stays there.
            enable_fallback=0,
        )
    except ORT_ERRORS as exc:
        if cuda is None:
            raise GraphError(f"ONNX Runtime cannot read {where}: {exc}") from exc
        message = f"ONNX Runtime cannot open {where} on the GPU: {exc}"
        raise DeviceError(message, hint=f"{_CPU_HINT}.") from exc
    # Where CUDA does not start, ONNX Runtime takes the CPU and says so in its log only.
    if (used := session.get_providers()[0]) != provider:
        raise DeviceError(
            f"ONNX Runtime could not start CUDA; it would run on {used}.",
            hint=_CPU_HINT + '; or install what is missing: pip install "deploykit[cuda]"',
        )
    return session


class OnnxRuntimeSession(BaseSession):
    """A canonical or a deploy graph on ONNX Runtime; on the CPU, several threads may run it."""

    def __init__(
        self,
        graph: Path | bytes,
        spec: SessionSpec,
        preprocessing: Preprocessing,
        labels: Labels,
        threads: int | None,
        embedding: int = 0,
    ) -> None:
        super().__init__(spec, embedding, preprocessing.pixel_type)
        cuda = spec.precision if spec.runtime == "onnxruntime-cuda" else None
        self._session = open_onnx(graph, spec.graph, threads, cuda=cuda, tf32=spec.tf32)
        tensors, metadata = _description(self._session, spec.graph)
        self._normalised = check_graph(spec, tensors, metadata, labels, preprocessing, embedding)
        self._preprocessing = preprocessing
        self._kept = threading.local()

    def run_normalised(self, inputs: NetworkInputs) -> Logits:
        """Compute the logits, of a canonical graph; see ``NormalisedSession`` in ``session``."""
        expected = (3, *self._spec.input_size)
        if not self._normalised or inputs.shape[1:] != expected:
            takes = f"float32 of shape (N, {', '.join(map(str, expected))})"
            raise InputError(
                f"{self._spec.graph} takes {takes if self._normalised else 'pixels'}; "
                f"got {inputs.dtype} of shape {inputs.shape}."
            )
        return self._logits(self._checked(self._answer(inputs), len(inputs)))

    def _run(self, images: ImageBatch) -> Answers:
        return self._answer(normalised(images, self._preprocessing) if self._normalised else images)

    def _answer(self, feed: npt.NDArray[Any]) -> Answers:
        # Both once, for another thread may close the session meanwhile.
        session, kept = self._session, self._kept
        if session is None:
            raise RuntimeError("the session is closed")
        try:
            memory: _BoundMemory | None = getattr(kept, "memory", None)
            if memory is None or memory.shape != feed.shape:
                memory = kept.memory = None  # frees the old first
                memory = kept.memory = _BoundMemory(
                    session, feed, self._spec, embedded=self._embedding > 0
                )
            return memory.run(feed)
        except ORT_ERRORS as exc:
            error = DeviceError if self._spec.runtime == "onnxruntime-cuda" else GraphError
            raise error(
                f"{self._spec.graph} failed on {self._spec.runtime} "
                f"with a batch of {len(feed)}: {exc}",
                hint="If its memory is full, a smaller --batch-size helps.",
            ) from exc

    def close(self) -> None:
        """Free the session's memory, the device's too."""
        self._kept = threading.local()
        self._session = None


def _description(session: Any, name: str) -> tuple[tuple[Tensors, Tensors], Mapping[str, str]]:
    """The inputs and outputs of an open graph, and what it carries along.

    Raises:
        GraphError: They cannot be read.
    """
    try:
        inputs, outputs = (
            [(each.name, _DTYPES.get(each.type, each.type), (*each.shape[1:],)) for each in tensors]
            for tensors in (session.get_inputs(), session.get_outputs())
        )
        return (inputs, outputs), session.get_modelmeta().custom_metadata_map
    except ORT_ERRORS as exc:
        raise GraphError(f"ONNX Runtime cannot read {name}: {exc}") from exc


class _BoundMemory:
    """A batch's input and output, kept on the session's device from one run to the next.

    Only one thread may use it. Without it ONNX Runtime allocates both for every run, and copies
    from memory that it allocated for that as well.

    Args:
        session: ONNX Runtime's.
        feed: A batch; the next ones must have its shape and type.
        spec: Of the session.
        embedded: Whether the graph gives embeddings, too.
    """

    def __init__(
        self, session: Any, feed: npt.NDArray[Any], spec: SessionSpec, *, embedded: bool
    ) -> None:
        device = "cuda" if spec.runtime == "onnxruntime-cuda" else "cpu"
        self._session = session
        self.shape = feed.shape
        self._input = ort.OrtValue.ortvalue_from_shape_and_type(
            feed.shape, feed.dtype.type, device, 0
        )
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, self._input)
        # Without a shape: the first run allocates what the graph gives, and the session judges it.
        for name in ("logits", EMBEDDING_OUTPUT) if embedded else ("logits",):
            self._binding.bind_output(name, device)

    def run(self, feed: npt.NDArray[Any]) -> Answers:
        """Compute the answers to a batch; the only call that waits for the device."""
        self._input.update_inplace(feed)
        self._session.run_with_iobinding(self._binding)
        # On the CPU ONNX Runtime hands out its own memory, and the answers are the caller's.
        logits, *others = self._binding.get_outputs()
        if others:
            return np.concatenate([each.numpy() for each in (logits, *others)], axis=1)
        return np.array(logits.numpy())


def node_milliseconds(
    graph: Path | bytes, feeds: Mapping[str, npt.NDArray[Any]], runs: int
) -> dict[str, float]:
    """How long each node of a graph takes, as it stands: nothing is fused, so each has its name.

    Args:
        graph: The graph's file, or what would be in it.
        feeds: The inputs by name.
        runs: How often to run it.

    Returns:
        By the names of the nodes the medians of their times.

    Raises:
        GraphError: ONNX Runtime cannot read or run the graph.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _SEVERITY_FATAL
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = ort.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            try:
                for _ in range(runs):
                    session.run(None, dict(feeds))
            finally:
                profile = session.end_profiling()  # or Windows could not remove what is open
        except ORT_ERRORS as exc:
            raise GraphError(f"ONNX Runtime does not run the graph: {exc}") from exc
        events = json.loads(Path(profile).read_text(encoding="utf-8"))
    microseconds: dict[str, list[float]] = {}
    for event in events:
        name, found, _ = event["name"].rpartition("_kernel_time")
        if found and event.get("cat") == "Node":
            microseconds.setdefault(name, []).append(event["dur"])
    return {name: float(np.median(each)) / 1000 for name, each in microseconds.items()}


class GraphProbe(Closing):
    """An open graph with any inputs and outputs: see ``open_probe`` in ``opener``."""

    def __init__(
        self, graph: Path | bytes, threads: int | None, cuda: Precision | None = None
    ) -> None:
        self._name = graph.name if isinstance(graph, Path) else "the graph"
        self._session = open_onnx(graph, self._name, threads, cuda=cuda)
        (inputs, outputs), _ = _description(self._session, self._name)
        self._of_floats = {name for name, dtype, _ in inputs if dtype == "float32"}
        self._outputs = [output for output, _, _ in outputs]

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Compute all outputs.

        Args:
            feeds: The inputs by name. Bytes are taken for an input of floats, too, as sessions do.

        Returns:
            The outputs by name, owned by the caller.

        Raises:
            GraphError: An input is missing, or does not fit, or the graph fails on it.
        """
        if self._session is None:
            raise RuntimeError("the probe is closed")
        try:
            values = self._session.run(
                None,
                {
                    name: array.astype(np.float32)
                    if array.dtype == np.uint8 and name in self._of_floats
                    else array
                    for name, array in feeds.items()
                },
            )
        except ORT_ERRORS as exc:
            given = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise GraphError(f"{self._name} failed on {given}: {exc}") from exc
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Free the graph's memory; closing twice is fine."""
        self._session = None
