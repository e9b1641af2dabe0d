"""ONNX Runtime, on the CPU and on an NVIDIA GPU."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from deploykit.errors import DeviceError, GraphError, InputError
from deploykit.runtime._base import BaseSession
from deploykit.runtime._contract import check_meaning, takes_normalised
from deploykit.runtime._onnxruntime_open import (
    DISABLED_OPTIMIZERS,
    ORT_ERRORS,
    open_on_cpu,
    session_options,
)
from deploykit.runtime.normalisation import normalised
from deploykit.specs.labels import Labels
from deploykit.specs.precision import Precision
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import ImageBatch, Logits, NetworkInputs, SessionSpec
from deploykit.specs.tensors import TensorSpec
from deploykit.system.cpu import cpu_device
from deploykit.system.gpu import Gpu, need_gpu

_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
_CPU_HINT = "the CPU runs the same graph: --runtime onnxruntime-cpu"


class OnnxRuntimeSession(BaseSession):
    """A canonical or a deploy graph on ONNX Runtime; on the CPU, several threads may run it.

    The canonical graph takes normalised float32: for it the normalisation happens here, with the
    same operations in the same order as torchvision's ToTensor and Normalize.
    """

    def __init__(
        self,
        graph: Path | bytes,
        *,
        name: str,
        runtime: str,
        precision: Precision,
        preprocessing: Preprocessing,
        labels: Labels,
        threads: int | None,
        tf32: bool,
    ) -> None:
        self._session: Any
        cuda = runtime == "onnxruntime-cuda"
        if cuda:
            device, self._session = open_on_cuda(graph, name, precision, tf32=tf32, threads=threads)
        else:
            device, self._session = cpu_device(precision), open_on_cpu(graph, name, threads)
        super().__init__(
            SessionSpec(
                runtime=runtime,
                graph=name,
                precision=precision,
                device=device,
                input_size=preprocessing.input_size,
                classes=len(labels),
                tf32=tf32,
                concurrent=not cuda,
            )
        )
        session = self._session
        self._normalised = takes_normalised(
            _tensors(session.get_inputs()), _tensors(session.get_outputs()), self._spec
        )
        told = session.get_modelmeta().custom_metadata_map
        check_meaning(told, name, labels, preprocessing)
        self._preprocessing = preprocessing
        self._kept = threading.local()

    def run_normalised(self, inputs: NetworkInputs) -> Logits:
        """Compute the logits, of a canonical graph; see ``NormalisedSession`` in ``session``."""
        expected = (3, *self._spec.input_size)
        if not self._normalised or inputs.shape[1:] != expected:
            takes = f"float32 of shape (N, {', '.join(map(str, expected))})"
            raise InputError(
                f"{self._spec.graph} takes {takes if self._normalised else 'bytes'}; "
                f"got {inputs.dtype} of shape {inputs.shape}."
            )
        return self._checked(self._answer(inputs), len(inputs))

    def _run(self, images: ImageBatch) -> Logits:
        return self._answer(normalised(images, self._preprocessing) if self._normalised else images)

    def _answer(self, feed: npt.NDArray[Any]) -> Logits:
        # Both once, for another thread may close the session meanwhile.
        session, kept = self._session, self._kept
        if session is None:
            raise RuntimeError("the session is closed")
        try:
            memory: _BoundMemory | None = getattr(kept, "memory", None)
            if memory is None or not memory.fits(feed):
                memory = kept.memory = None  # frees the old first
                memory = kept.memory = _BoundMemory(session, feed, self._spec)
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


class _BoundMemory:
    """A batch's input and output, kept on the session's device from one run to the next.

    Only one thread may use it. Without it ONNX Runtime allocates both for every run, and copies
    from memory that it allocated for that as well.

    Args:
        session: ONNX Runtime's.
        feed: A batch; the next ones must have its shape and type.
        spec: Of the session.
    """

    def __init__(self, session: Any, feed: npt.NDArray[Any], spec: SessionSpec) -> None:
        device = "cuda" if spec.runtime == "onnxruntime-cuda" else "cpu"
        self._session = session
        self._shape = feed.shape
        self._input = ort.OrtValue.ortvalue_from_shape_and_type(
            feed.shape, feed.dtype.type, device, 0
        )
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, self._input)
        # Without a shape: the first run allocates what the graph gives, and the session judges it.
        self._binding.bind_output("logits", device)

    def fits(self, feed: npt.NDArray[Any]) -> bool:
        """Whether a batch has the shape that the memory is for."""
        return feed.shape == self._shape

    def run(self, feed: npt.NDArray[Any]) -> Logits:
        """Compute the logits of a batch; the only call that waits for the device."""
        self._input.update_inplace(feed)
        self._session.run_with_iobinding(self._binding)
        # On the CPU ONNX Runtime hands out its own memory, and the logits are the caller's.
        (logits,) = self._binding.get_outputs()
        return np.array(logits.numpy())


def open_on_cuda(
    graph: Path | bytes, name: str, precision: Precision, *, tf32: bool, threads: int | None
) -> tuple[str, Any]:
    """Open a graph on GPU 0.

    Args:
        graph: The graph's file, or what would be in it.
        name: What an error calls it.
        precision: The precision of the graph's arithmetic.
        tf32: Whether FP32 may be computed in TensorFloat-32.
        threads: For what stays on the CPU; None for one a core.

    Returns:
        The GPU's name, and ONNX Runtime's session.

    Raises:
        DeviceError: There is no GPU, or ONNX Runtime cannot use it.
    """
    gpu = _load_cuda()
    return gpu.name, _open_on_gpu(graph, name, _cuda_options(precision, tf32=tf32), threads)


def _cuda_options(precision: Precision, *, tf32: bool) -> dict[str, str]:
    """Options of the CUDA execution provider, from its documentation."""
    return {
        # TensorFloat-32 is on by default, and keeps 10 bits of mantissa.
        "use_tf32": "1" if tf32 else "0",
        # EXHAUSTIVE, the default, searches anew for each batch size, ragged ones too.
        "cudnn_conv_algo_search": "HEURISTIC",
        # Tensor cores take FP16 channels-last; channels-first costs transposes around each Conv.
        "prefer_nhwc": "1" if precision == "fp16" else "0",
    }


def _open_on_gpu(
    graph: Path | bytes, name: str, options: dict[str, str], threads: int | None
) -> Any:
    try:
        session = ort.InferenceSession(
            graph,
            session_options(threads),
            providers=[("CUDAExecutionProvider", options)],
            disabled_optimizers=DISABLED_OPTIMIZERS,
            enable_fallback=0,
        )
    except ORT_ERRORS as exc:
        message = f"ONNX Runtime cannot open {name} on the GPU: {exc}"
        raise DeviceError(message, hint=_CPU_HINT) from exc
    # Where CUDA does not start, ONNX Runtime takes the CPU and says so in its log only.
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise DeviceError(
            f"ONNX Runtime could not start CUDA; it would run on {session.get_providers()[0]}.",
            hint='Install what is missing: pip install "deploykit[cuda]"; ' + _CPU_HINT,
        )
    return session


def _load_cuda() -> Gpu:
    """Find the GPU and the CUDA libraries, or say which of them is missing."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise DeviceError(
            f"The installed ONNX Runtime {ort.__version__} has no CUDA provider.",
            hint='Install one that has: pip install "deploykit[cuda]"; ' + _CPU_HINT,
        )
    try:
        gpu = need_gpu()
    except DeviceError as exc:
        raise DeviceError(exc.message, hint=_CPU_HINT) from exc
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot find
        ort.preload_dlls()
    return gpu


def _tensors(arguments: Iterable[Any]) -> list[TensorSpec]:
    return [
        TensorSpec(
            name=each.name,
            dtype=_DTYPES.get(each.type, each.type),
            shape=tuple("?" if side is None else side for side in each.shape),
        )
        for each in arguments
    ]
