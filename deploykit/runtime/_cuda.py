"""The little of CUDA that a session needs: memory, a stream, captured graphs, and waiting.

Everything is on device 0. Each object owns one CUDA resource; whoever makes it closes it. Every
status is checked: one that is no success becomes a :class:`~deploykit.errors.DeviceError` with
CUDA's name for it, what was being done, and the sizes. The calls are those of the CUDA Runtime API
reference, through ``cuda.bindings``, which answers with the status first and the results after it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import runtime as cudart
from cuda.bindings.utils import get_cuda_native_handle

from deploykit.errors import DeviceError
from deploykit.specs.session import Closing

_HINTS = {
    "cudaErrorMemoryAllocation": "Close what else uses the GPU, or build an engine for smaller "
    "batches: deploykit build-trt --max-batch N",
    "cudaErrorInsufficientDriver": "Update the NVIDIA driver.",
    "cudaErrorNoDevice": "See what this machine has: deploykit doctor",
}


def _check(answer: tuple[Any, ...], doing: str) -> Any:
    """The result of a CUDA call.

    Args:
        answer: The status, and the result if the call has one.
        doing: What the call was for, ``allocating 12 bytes on the GPU``.

    Raises:
        DeviceError: The status is no success.
    """
    status, *results = answer
    if status != cudart.cudaError_t.cudaSuccess:
        _, description = cudart.cudaGetErrorString(status)
        raise DeviceError(
            f"CUDA failed while {doing}: {status.name}, {description.decode()}.",
            hint=_HINTS.get(
                status.name, "Run it again; or see what is amiss here: deploykit doctor"
            ),
        )
    return results[0] if results else None


class Resource(Closing):
    """Something that CUDA gave and wants back.

    Args:
        answer: What the call that made it answered.
        doing: What that call was for.
        free: The call that frees it.

    Attributes:
        handle: CUDA's handle or address of it; None once it is closed.
    """

    def __init__(
        self, answer: tuple[Any, ...], doing: str, free: Callable[[Any], tuple[Any, ...]]
    ) -> None:
        self.handle = _check(answer, doing)
        self._free = free

    @property
    def address(self) -> int:
        """Where memory begins."""
        return int(self.handle)

    def close(self) -> None:
        """Give it back; closing twice is fine.

        Raises:
            DeviceError: CUDA failed, unless another error is on its way: after a first failure a
                device fails every later call too, and the first one is what the user must see.
        """
        if self.handle is None:
            return
        handle, self.handle = self.handle, None
        answer = self._free(handle)
        if sys.exc_info()[0] is None:
            _check(answer, f"closing a {type(self).__name__}")


class DeviceBuffer(Resource):
    """Memory on the GPU.

    Args:
        size_bytes: How much.
    """

    def __init__(self, size_bytes: int) -> None:
        doing = f"allocating {size_bytes} bytes on the GPU"
        super().__init__(cudart.cudaMalloc(size_bytes), doing, cudart.cudaFree)


class PinnedBuffer(Resource):
    """Memory on the host that the GPU copies from and to while the CPU does other work.

    Args:
        shape: Of the array in it.
        dtype: Of the array's elements.

    Attributes:
        array: The memory as NumPy sees it; not to be used once the buffer is closed.
    """

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        answer = cudart.cudaHostAlloc(size_bytes, cudart.cudaHostAllocDefault)
        doing = f"allocating {size_bytes} bytes of pinned memory"
        super().__init__(answer, doing, cudart.cudaFreeHost)
        memory = (ctypes.c_ubyte * size_bytes).from_address(self.address)
        self.array: npt.NDArray[Any] = np.ndarray(shape, dtype, memoryview(memory))


class Event(Resource):
    """A mark in a stream that a thread can wait for, asleep, so that decoding has the core."""

    def __init__(self) -> None:
        flags = cudart.cudaEventBlockingSync | cudart.cudaEventDisableTiming
        answer = cudart.cudaEventCreateWithFlags(flags)
        super().__init__(answer, "making an event", cudart.cudaEventDestroy)

    def record(self, stream: Stream) -> None:
        """Set the mark behind what a stream has to do."""
        _check(cudart.cudaEventRecord(self.handle, stream.handle), "recording an event")

    def wait(self, doing: str) -> None:
        """Sleep until the stream has come to the mark.

        Args:
            doing: What is waited for, for the error.

        Raises:
            DeviceError: Something that the stream had to do failed.
        """
        _check(cudart.cudaEventSynchronize(self.handle), doing)


class Stream(Resource):
    """Work that the GPU does in order, beside other streams and without the default one.

    Closing it waits for the work, which may use what is closed after it.
    """

    def __init__(self) -> None:
        answer = cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking)
        super().__init__(answer, "making a stream", _wait_and_destroy)

    @property
    def address(self) -> int:
        """The stream as other libraries take it."""
        return int(get_cuda_native_handle(self.handle))

    def copy_in(self, target: DeviceBuffer, source: PinnedBuffer, size_bytes: int) -> None:
        """Copy the first bytes of a host buffer to the device, when the stream comes to it."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(target.address, source.address, size_bytes, kind, "to the GPU")

    def copy_out(self, target: PinnedBuffer, source: DeviceBuffer, size_bytes: int) -> None:
        """Copy the first bytes of a device buffer to the host, when the stream comes to it."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(target.address, source.address, size_bytes, kind, "from the GPU")

    def capture(self, enqueue: Callable[[], None]) -> CapturedGraph:
        """Record what a function gives the stream to do, instead of doing it.

        Raises:
            DeviceError: CUDA failed, or something in it cannot be captured.
        """
        try:
            with self._record(enqueue) as recording, contextlib.ExitStack() as on_failure:
                answer = cudart.cudaGraphInstantiate(recording.handle, 0)
                doing, free = "instantiating a CUDA graph", cudart.cudaGraphExecDestroy
                graph = on_failure.enter_context(CapturedGraph(answer, doing, free))
                recording.close()
                on_failure.pop_all()
                return graph
        except DeviceError:
            # CUDA keeps the error for whoever asks next, and TensorRT asks after each launch.
            cudart.cudaGetLastError()
            raise

    def replay(self, graph: CapturedGraph) -> None:
        """Do what a graph recorded, when the stream comes to it."""
        _check(cudart.cudaGraphLaunch(graph.handle, self.handle), "launching a CUDA graph")

    def _record(self, enqueue: Callable[[], None]) -> Recording:
        # Thread-local, or CUDA calls of other threads would spoil the capture.
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _check(cudart.cudaStreamBeginCapture(self.handle, mode), "starting a capture")
        try:
            enqueue()
        except BaseException:
            # A stream that goes on capturing can do nothing else.
            _, unfinished = cudart.cudaStreamEndCapture(self.handle)
            if unfinished is not None:
                cudart.cudaGraphDestroy(unfinished)
            raise
        ended = cudart.cudaStreamEndCapture(self.handle)
        return Recording(ended, "capturing a CUDA graph", cudart.cudaGraphDestroy)

    def _copy(self, target: int, source: int, size_bytes: int, kind: Any, where: str) -> None:
        answer = cudart.cudaMemcpyAsync(target, source, size_bytes, kind, self.handle)
        _check(answer, f"copying {size_bytes} bytes {where}")


def _wait_and_destroy(stream: Any) -> Any:
    waited = cudart.cudaStreamSynchronize(stream)
    destroyed = cudart.cudaStreamDestroy(stream)
    return destroyed if waited[0] == cudart.cudaError_t.cudaSuccess else waited


class Recording(Resource):
    """What a stream was asked to do while it captured."""


class CapturedGraph(Resource):
    """Work of a stream that one call repeats, as :meth:`Stream.capture` made it."""
