"""ONNX Runtime, on the CPU and on an NVIDIA GPU."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from deploykit.errors import DeviceError, GraphError
from deploykit.gpu import need_gpu
from deploykit.runtime._base import BaseSession
from deploykit.session import ImageBatch, Logits, SessionSpec
from deploykit.specs import LABELS_KEY, PREPROCESSING_KEY, Labels, Precision, Preprocessing

#: All that ONNX Runtime raises of its own; its errors share no base but Exception.
_ORT_ERRORS = tuple(
    value
    for value in vars(ort_errors).values()
    if isinstance(value, type) and issubclass(value, Exception)
)
_SEVERITY_FATAL = 4
_CPU_HINT = "the CPU runs the same graph: --runtime onnxruntime-cpu"


class OnnxRuntimeSession(BaseSession):
    """A canonical or a deploy graph on ONNX Runtime.

    The canonical graph takes normalised float32: for it the normalisation happens here, with the
    same operations in the same order as torchvision's ToTensor and Normalize.
    """

    def __init__(
        self,
        graph: Path,
        *,
        name: str,
        cuda: bool,
        precision: Precision,
        preprocessing: Preprocessing,
        labels: Labels,
        threads: int | None,
    ) -> None:
        if cuda:
            _load_cuda()
        runtime = "onnxruntime-cuda" if cuda else "onnxruntime-cpu"
        super().__init__(
            SessionSpec(
                runtime=runtime,
                graph=name,
                precision=precision,
                device=need_gpu().name if cuda else "CPU",
                input_size=preprocessing.input_size,
                classes=len(labels),
            )
        )
        self._session: Any = _open(graph, cuda=cuda, threads=threads)
        self._input = self._session.get_inputs()[0].name
        self._normalised = _takes_normalised(self._session, self._spec)
        _check_meaning(self._session, name, labels, preprocessing)
        self._mean = np.array(preprocessing.mean, np.float32)
        self._std = np.array(preprocessing.std, np.float32)

    def _run(self, images: ImageBatch) -> Logits:
        if self._session is None:
            raise RuntimeError("the session is closed")
        feed = self._normalise(images) if self._normalised else images
        try:
            logits: Logits = self._session.run(None, {self._input: feed})[0]
        except _ORT_ERRORS as exc:
            error = DeviceError if self._spec.runtime == "onnxruntime-cuda" else GraphError
            raise error(
                f"{self._spec.graph} failed on {self._spec.runtime} "
                f"with a batch of {len(images)}: {exc}",
                hint="If its memory is full, a smaller --batch-size helps.",
            ) from exc
        return logits

    def close(self) -> None:
        """Free the session's memory, the device's too."""
        self._session = None

    def _normalise(self, images: ImageBatch) -> npt.NDArray[np.float32]:
        batch = images.astype(np.float32)
        batch /= 255
        batch -= self._mean
        batch /= self._std
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))  # (N, H, W, C) => (N, C, H, W)


def _open(graph: Path, *, cuda: bool, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _SEVERITY_FATAL  # errors come as exceptions; its log is on stderr
    if threads is not None:
        options.intra_op_num_threads = threads
    # Threads that spin between two runs take the cores from whoever decodes or compares meanwhile.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if cuda:
        # Full FP32: TensorFloat-32 keeps 10 bits of mantissa, which no FP32 tolerance allows.
        providers: list[Any] = [("CUDAExecutionProvider", {"use_tf32": "0"})]
    else:
        providers = ["CPUExecutionProvider"]
    try:
        # enable_fallback=0, or a failed run is repeated on the CPU and the session stays there.
        session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
    except _ORT_ERRORS as exc:
        if cuda:
            message = f"ONNX Runtime cannot open {graph.name} on the GPU: {exc}"
            raise DeviceError(message, hint=_CPU_HINT) from exc
        raise GraphError(f"ONNX Runtime cannot read {graph}: {exc}") from exc
    # Where CUDA does not start, ONNX Runtime takes the CPU and says so in its log only.
    if cuda and session.get_providers()[0] != "CUDAExecutionProvider":
        raise DeviceError(
            f"ONNX Runtime could not start CUDA; it would run on {session.get_providers()[0]}.",
            hint='Install what is missing: pip install "deploykit[cuda]"; ' + _CPU_HINT,
        )
    return session


def _load_cuda() -> None:
    """Find the driver and the CUDA libraries, or say which of them is missing."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise DeviceError(
            f"The installed ONNX Runtime {ort.__version__} has no CUDA provider.",
            hint='Install one that has: pip install "deploykit[cuda]"; ' + _CPU_HINT,
        )
    need_gpu()
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot find
        ort.preload_dlls()


def _takes_normalised(session: Any, spec: SessionSpec) -> bool:
    """Whether the graph is a canonical one; refuse what is neither that nor a deploy graph."""
    height, width = spec.input_size
    found = [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()]
    outputs = [(o.name, o.type, o.shape[1:]) for o in session.get_outputs()]
    canonical = [("input", "tensor(float)", [3, height, width])]
    deploy = [("images", "tensor(uint8)", [height, width, 3])]
    if found not in (canonical, deploy) or outputs != [("logits", "tensor(float)", [spec.classes])]:
        raise GraphError(
            f"{spec.graph} is not the graph that the manifest describes: "
            f"inputs {found}, outputs {outputs}.",
            hint="Export the bundle again.",
        )
    return found == canonical


def _check_meaning(session: Any, name: str, labels: Labels, preprocessing: Preprocessing) -> None:
    """Refuse a graph that tells other labels or preprocessing than its bundle's manifest."""
    told = session.get_modelmeta().custom_metadata_map
    expected = {
        LABELS_KEY: labels.to_metadata(),
        PREPROCESSING_KEY: preprocessing.to_metadata(),
    }
    for key, value in expected.items():
        if told.get(key, value) != value:
            raise GraphError(
                f"{name} was exported with {key} {told[key]}, but the manifest says {value}.",
                hint="One of the two was changed afterwards: export the bundle again.",
            )
