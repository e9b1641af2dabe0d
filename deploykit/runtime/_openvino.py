"""OpenVINO, on the CPU: FP32, BF16 by a hint on the FP32 graph, and INT8 from a QDQ graph.

OpenVINO gets the graph for one image, and a batch is as many requests, which wait in its queue for
a thread. Measured on two cores, that gave 1.2 to 1.8 times the images/s of one request a batch: no
thread waits for another inside a layer. Nor has any batch size to be compiled, and an image has the
same answer in a batch of any size.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from openvino import frontend

from deploykit.errors import DeviceError, GraphError
from deploykit.runtime._base import Answers, PipelinedBase, Tensors, check_graph, normalised
from deploykit.specs.embeddings import EMBEDDING_OUTPUT
from deploykit.specs.model import HEAD_KEY, LABELS_KEY, Labels, Precision
from deploykit.specs.preprocessing import PREPROCESSING_KEY, Preprocessing
from deploykit.specs.session import ImageBatch, SessionSpec
from deploykit.system.threads import usable_cpus

#: All that OpenVINO raises: RuntimeError, from reading a graph errors of its own that share no
#: base but Exception, and what its Python part raises: UnicodeDecodeError (a ValueError) for a name
#: that is no UTF-8.
OPENVINO_ERRORS: tuple[type[Exception], ...] = (
    *(RuntimeError, ValueError, TypeError, OverflowError, MemoryError),
    frontend.GeneralFailure,
    frontend.InitializationFailure,
    frontend.NotImplementedFailure,
    frontend.OpConversionFailure,
    frontend.OpValidationFailure,
)
#: The layers in which the precision shows. The others may be in FP32 at any precision.
_WORKING_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
#: What the inputs and the outputs of a canonical and of a deploy graph are called.
_TENSORS = ("input", "images", "logits", EMBEDDING_OUTPUT)
_DTYPES = {"f32": "float32", "u8": "uint8"}
#: Of the largest logit, between INT8 graphs of the same integers.
_LARGEST_CHANGE = 1e-3
_MOST_COMPILED = 5
#: All of this process, 26 KiB each, which end with it, the last one first. OpenVINO 2026.4 gives
#: the thread that makes a core a stack for signals where the CPU has AMX, and the one before when
#: the core ends. If that one was freed meanwhile, the next signal (Ctrl+C, a child's end) is a
#: segmentation fault.
_CORES: list[Any] = []
_FP32_HINT = "every CPU computes in FP32: --runtime openvino --precision fp32"


class _Arithmetic(NamedTuple):
    """How a precision is asked for, and OpenVINO's names of it."""

    hint: str  # without one OpenVINO takes BF16 wherever the CPU has it
    capability: str
    layers: frozenset[str]


_ARITHMETIC: dict[Precision, _Arithmetic] = {
    "fp32": _Arithmetic("f32", "FP32", frozenset({"f32"})),
    "bf16": _Arithmetic("bf16", "BF16", frozenset({"bf16"})),
    "int8": _Arithmetic("f32", "INT8", frozenset({"i8", "u8"})),  # what is not quantized is FP32
}


class OpenVinoSession(PipelinedBase["tuple[_Requests, list[Any]]"]):
    """A canonical or a deploy graph on the CPU; any number of batches may be in flight.

    The arguments are those of :func:`deploykit.runtime.opener.open_graph`. Pipelined, each image is
    computed by one thread even when there are fewer images than threads in a run.

    Raises:
        GraphError: OpenVINO cannot read or compile the graph, or it is not the one it should be.
        DeviceError: OpenVINO would compute in another precision on this CPU, or does not start.
    """

    def __init__(
        self,
        graph: Path | bytes,
        spec: SessionSpec,
        preprocessing: Preprocessing,
        labels: Labels,
        threads: int | None,
        *,
        pipelined: bool,
        embedding: int = 0,
    ) -> None:
        super().__init__(spec, embedding, preprocessing.pixel_type)
        self._core = _start_on_cpu(spec.precision)
        self._model = _read(graph, spec.graph)
        try:
            metadata = _metadata(self._model)
            tensors = _tensors(self._model.inputs), _tensors(self._model.outputs)
        except OPENVINO_ERRORS as exc:
            raise GraphError(f"OpenVINO cannot read {spec.graph}: {exc}") from exc
        self._normalised = check_graph(spec, tensors, metadata, labels, preprocessing, embedding)
        self._preprocessing = preprocessing
        self._threads = threads or usable_cpus()
        self._pipelined = pipelined
        self._requests: dict[int, _Requests] = {}
        self._requests_for(self._at_once(1))

    def _run(self, images: ImageBatch) -> Answers:
        self._check_open()
        return self._finish(self._start(images, self._at_once(len(images))))

    def _at_once(self, images: int) -> int:
        """How many images of a run are computed at once, each on its part of the threads.

        A layer of one image does not keep all threads busy, but where fewer than half of them
        would have an image, sharing the layers is faster still.
        """
        return self._threads if self._pipelined or 2 * images > self._threads else 1

    def _start(self, images: ImageBatch, at_once: int | None = None) -> tuple[_Requests, list[Any]]:
        return self._started(self._requests_for(at_once or self._threads), images)

    def _started(self, requests: _Requests, images: ImageBatch) -> tuple[_Requests, list[Any]]:
        feed = normalised(images, self._preprocessing) if self._normalised else images
        try:
            return requests, [requests.start(image) for image in feed]
        except OPENVINO_ERRORS as exc:
            raise self._failure(len(images), exc) from exc

    def _finish(self, batch: tuple[_Requests, list[Any]]) -> Answers:
        requests, started = batch
        try:
            return requests.finish(started)
        except OPENVINO_ERRORS as exc:
            raise self._failure(len(started), exc) from exc

    def _requests_for(self, at_once: int) -> _Requests:
        """Compile the graph for so many images at once, when they first come."""
        if at_once not in self._requests:
            shared = at_once > 1 and self._spec.precision == "int8"
            self._requests[at_once] = self._sound(at_once) if shared else self._compiled(at_once)
        return self._requests[at_once]

    def _sound(self, at_once: int) -> _Requests:
        """Compile an INT8 graph until it answers as it does for one image at a time.

        Where its streams share their weights, OpenVINO 2026.4 now and then takes other weights than
        the graph's, on cores that are kept, too. With AMX that was so in 11 of 76 openings of a
        DPN-92, with AVX2 alone in 4 of 24, in processes that had compiled other graphs before;
        never with one stream. What fails so each time gets one stream: slower, and right.
        """
        shape = (2 * at_once, *self._spec.input_size, 3)
        noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        # Not kept where a run never asks for it: it holds the weights once more.
        alone = self._requests.get(1) or self._compiled(1)
        wanted = self._finish(self._started(alone, noise))
        for _ in range(_MOST_COMPILED):
            requests = self._compiled(at_once)
            found = self._finish(self._started(requests, noise))
            if np.abs(found - wanted).max() <= _LARGEST_CHANGE * np.abs(wanted).max():
                return requests
        return alone

    def _compiled(self, at_once: int) -> _Requests:
        options = {
            "INFERENCE_PRECISION_HINT": _ARITHMETIC[self._spec.precision].hint,
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": at_once,
            # Threads that are bound to cores make no way for those that decode beside them.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            self._model.reshape([1, *self._model.input().partial_shape[1:]])
            compiled = self._core.compile_model(self._model, "CPU", options)
        except OPENVINO_ERRORS as exc:
            raise GraphError(
                f"OpenVINO cannot compile {self._spec.graph} for one image: {exc}",
                hint="ONNX Runtime is always there: --runtime onnxruntime-cpu",
            ) from exc
        _check_precision(compiled, self._spec)
        return _Requests(compiled)

    def _failure(self, images: int, exc: Exception) -> GraphError:
        return GraphError(
            f"{self._spec.graph} failed on openvino with a batch of {images}: {exc}",
            hint="If its memory is full, a smaller --batch-size helps.",
        )

    def close(self) -> None:
        """Free the graph's memory, once what is in flight is computed; its answers are lost."""
        super().close()
        self._requests.clear()
        self._model = self._core = None


class _Requests:
    """A graph compiled for one image, and the requests that are made of it as they are needed."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: list[Any] = []

    def start(self, image: np.ndarray[Any, Any]) -> Any:
        """Copy an image, and let it wait for a thread."""
        request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        request.get_input_tensor().data[...] = image
        request.start_async()
        return request

    def finish(self, requests: list[Any]) -> Answers:
        """Wait for images: (N, K + E), copied, because the requests will be used again."""
        for request in requests:
            request.wait()
        outputs = [
            np.concatenate([each.get_output_tensor(output).data for each in requests])
            for output in range(len(self._compiled.outputs))
        ]
        self._idle += requests  # not those that failed: others of their batch may be under way
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=1)


def _start_on_cpu(precision: Precision) -> Any:
    """OpenVINO, if it computes in a precision on this CPU."""
    try:
        _CORES.append(core := ov.Core())
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except OPENVINO_ERRORS as exc:
        raise DeviceError(
            f"OpenVINO does not start on this CPU: {exc}",
            hint="Install it again: pip install --force-reinstall --no-deps openvino",
        ) from exc
    if _ARITHMETIC[precision].capability not in capabilities:
        raise DeviceError(
            f"OpenVINO does not compute in {precision} on this CPU; "
            f"it does in {', '.join(sorted(capabilities))}.",
            hint=_FP32_HINT,
        )
    return core


def _read(graph: Path | bytes, name: str) -> Any:
    """Read a graph.

    The ONNX reader is asked by name: the core asks all readers in turn, and those of other formats
    print what they cannot make of the file.
    """
    source = str(graph) if isinstance(graph, Path) else io.BytesIO(graph)
    where = graph if isinstance(graph, Path) else name
    try:
        reader = frontend.FrontEndManager().load_by_framework("onnx")
        return reader.convert(reader.load(source))
    except OPENVINO_ERRORS as exc:
        raise GraphError(f"OpenVINO cannot read {where}: {exc}") from exc


def _metadata(model: Any) -> dict[str, str]:
    """What a graph carries along of labels and preprocessing."""
    paths = [["framework", key] for key in (LABELS_KEY, HEAD_KEY, PREPROCESSING_KEY)]
    return {
        path[1]: model.get_rt_info(path).astype(str) for path in paths if model.has_rt_info(path)
    }


def _tensors(ports: Iterable[Any]) -> Tensors:
    return [
        (
            # An operator that passes its input on leaves the tensor with the names of both.
            next((name for name in _TENSORS if name in port.names), port.any_name),
            _DTYPES.get(port.element_type.get_type_name(), str(port.element_type)),
            tuple(
                side.get_length() if side.is_static else "?"
                for side in (() if port.partial_shape.rank.is_dynamic else port.partial_shape)
            )[1:],
        )
        for port in ports
    ]


def _check_precision(compiled: Any, spec: SessionSpec) -> None:
    """Check that OpenVINO computes in the precision that was asked for."""
    found = {
        layer["runtimePrecision"].astype(str)
        for layer in (op.get_rt_info() for op in compiled.get_runtime_model().get_ops())
        if layer["layerType"].astype(str) in _WORKING_LAYERS
    }
    wanted = _ARITHMETIC[spec.precision].layers
    if found <= wanted if spec.precision == "fp32" else found & wanted:
        return
    told = f"in {', '.join(sorted(found))}" if found else "not by any layer that tells"
    raise DeviceError(
        f"OpenVINO would not compute {spec.graph} in {spec.precision} on this CPU, but {told}.",
        hint=None if spec.precision == "fp32" else _FP32_HINT,
    )
