"""One batch on its way through a TensorRT engine: a stream, an execution context, and memory.

The memory, the stream and the graphs are CUDA's, through :mod:`deploykit.runtime._cuda`; no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np

from deploykit.errors import DeviceError
from deploykit.runtime._cuda import CapturedGraph, DeviceBuffer, Event, PinnedBuffer, Stream
from deploykit.specs.engine import Flavour, Profile
from deploykit.specs.session import ImageBatch, Logits, SessionSpec

#: The deploy graph's input and output.
IMAGES, LOGITS = "images", "logits"
_Answer = TypeVar("_Answer")


class Log(Protocol):
    """The logger that TensorRT was given."""

    def capture(self) -> AbstractContextManager[Iterable[str]]:
        """Collect what TensorRT logs while the block runs."""
        ...


class TensorRT(Protocol):
    """What a session needs of an open flavour of TensorRT."""

    @property
    def flavour(self) -> Flavour:
        """Which one."""
        ...

    @property
    def trt(self) -> Any:
        """The Python module."""
        ...

    @property
    def log(self) -> Log:
        """The logger of this process, which is TensorRT's own kind of object too."""
        ...


class Slot:
    """One batch in flight: a stream, an execution context, and memory on both sides.

    Args:
        tensorrt: The flavour that built the engine.
        make_context: Makes an execution context of the engine.
        profile: The batch sizes that the engine was built for.
        spec: Of the session.

    Raises:
        DeviceError: TensorRT or CUDA fails.
    """

    def __init__(
        self,
        tensorrt: TensorRT,
        make_context: Callable[[], Any],
        profile: Profile,
        spec: SessionSpec,
    ) -> None:
        self._log = tensorrt.log
        # TensorRT for RTX captures by itself, once the kernels for a batch size are compiled.
        self._captures = tensorrt.flavour == "tensorrt"
        self._profile = profile
        self._image_shape = (*spec.input_size, 3)
        self._batch: int | None = None
        self._is_warm = False
        self._graph: CapturedGraph | None = None
        batch = profile.max_batch
        with contextlib.ExitStack() as resources:
            keep = resources.enter_context
            self._images = keep(PinnedBuffer((batch, *self._image_shape), np.uint8))
            self._logits = keep(PinnedBuffer((batch, spec.classes), np.float32))
            self._device_images = keep(DeviceBuffer(self._images.array.nbytes))
            self._device_logits = keep(DeviceBuffer(self._logits.array.nbytes))
            self._done = keep(Event())
            self._context = make_context()
            resources.callback(self._drop_context)
            self._bind(IMAGES, self._device_images)
            self._bind(LOGITS, self._device_logits)
            # Closed first: it waits for whatever uses the rest.
            self._stream = keep(Stream())
            self._resources = resources.pop_all()

    def submit(self, images: ImageBatch) -> None:
        """Start a batch; the slot is not at work."""
        batch = max(len(images), self._profile.min_batch)
        self._images.array[: len(images)] = images
        self._images.array[len(images) : batch] = images[-1]
        if batch != self._batch:
            self._set_batch(batch)
        elif self._captures and self._graph is None and self._is_warm:
            # Only now, because a ragged batch comes once.
            self._capture()
        if self._graph is None:
            self._enqueue()
        else:
            self._stream.replay(self._graph)
        self._is_warm = True
        self._done.record(self._stream)

    def collect(self, images: int) -> Logits:
        """Wait for the batch, of so many images."""
        self._done.wait(f"running a batch of {self._batch}")
        logits: Logits = self._logits.array[:images].copy()
        return logits

    def close(self) -> None:
        """Free everything, once the device has finished."""
        self._resources.close()

    def _set_batch(self, batch: int) -> None:
        # A graph is only good for the context as it was captured.
        self._drop_graph()
        self._batch, self._is_warm = None, False
        shape, doing = (batch, *self._image_shape), f"preparing a batch of {batch}"
        ask(self._log, doing, self._context.set_input_shape, IMAGES, shape)
        missing = ask(self._log, doing, self._context.infer_shapes)
        if missing:
            raise _failure(doing, [f"the shape of {', '.join(missing)} is unknown"])
        self._batch = batch

    def _enqueue(self) -> None:
        """Give the stream a whole batch: the images in, the network, the logits out."""
        self._stream.copy_in(
            self._device_images, self._images, self._images.array[: self._batch].nbytes
        )
        doing = f"starting a batch of {self._batch}"
        ask(self._log, doing, self._context.execute_async_v3, self._stream.address)
        self._stream.copy_out(
            self._logits, self._device_logits, self._logits.array[: self._batch].nbytes
        )

    def _capture(self) -> None:
        try:
            self._graph = self._stream.capture(self._enqueue)
        except DeviceError:
            # A graph only saves time: what cannot be captured can be enqueued, and a device that
            # is broken says so then.
            self._captures = False

    def _bind(self, tensor: str, buffer: DeviceBuffer) -> None:
        doing = f"binding {tensor} to device memory"
        ask(self._log, doing, self._context.set_tensor_address, tensor, buffer.address)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            graph.close()

    def _drop_context(self) -> None:
        # A graph uses the context's memory.
        try:
            self._drop_graph()
        finally:
            self._context = None


def ask(log: Log, doing: str, call: Callable[..., _Answer], *arguments: object) -> _Answer:
    """Call TensorRT, whose way to fail is to answer None or False, and to log the reason.

    Raises:
        DeviceError: It did, or it raised an error.
    """
    with log.capture() as lines:
        try:
            answer = call(*arguments)
        except (RuntimeError, TypeError) as exc:  # TypeError: the library gave a null pointer
            raise _failure(doing, [*lines, str(exc)]) from exc
    if answer is None or answer is False:
        raise _failure(doing, lines)
    return answer


def _failure(doing: str, lines: Iterable[str]) -> DeviceError:
    reason = "; ".join(lines) or "it does not say why"
    return DeviceError(
        f"TensorRT failed while {doing}: {reason}",
        hint="If the GPU's memory is full, a smaller --max-batch helps; else build the engine "
        "again on this machine: deploykit build-trt",
    )
