"""TensorRT engines on an NVIDIA GPU, of either flavour.

Two batches can be in flight, each in a slot of its own: while the GPU computes one, the host fills
the other, which is made when it is first needed. Nothing waits for the device but
:meth:`TensorRTSession.collect`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from deploykit.errors import DeviceError, GraphError
from deploykit.runtime._base import PipelinedBase
from deploykit.runtime._cuda import CapturedGraph, DeviceBuffer, Event, PinnedBuffer, Stream
from deploykit.specs.engine import Log, Profile, TensorRT
from deploykit.specs.preprocessing import PixelType
from deploykit.specs.session import ImageBatch, Logits, SessionSpec
from deploykit.specs.tensors import IMAGES, LOGITS
from deploykit.system.files import read_file, replacing

#: How many batches can be in flight: one on the device, one on its way.
SLOTS = 2
_Answer = TypeVar("_Answer")


class TensorRTSession(PipelinedBase["tuple[Slot, int]"]):
    """An engine of a deploy graph. Use it from one thread.

    A batch smaller than the profile's smallest is filled up with its last image, and the surplus
    answers are dropped; any other runs at its true size.

    The arguments are those of :func:`deploykit.runtime.opener.open_engine`.

    Raises:
        GraphError: Its inputs, outputs or profile are not those of the deploy graph.
        DeviceError: There is no GPU, or TensorRT or CUDA fails on it.
    """

    def __init__(
        self,
        tensorrt: TensorRT,
        plan: bytes,
        spec: SessionSpec,
        profile: Profile,
        cache: Path | None,
        pixels: PixelType,
    ) -> None:
        super().__init__(spec, pixels=pixels)
        self._tensorrt, self._profile = tensorrt, profile
        log, trt = tensorrt.log, tensorrt.trt
        runtime = ask(log, "starting", trt.Runtime, log)
        # Each of TensorRT's objects keeps what it was made by: the contexts will keep the engine.
        engine: Any = ask(log, f"reading {spec.graph}", runtime.deserialize_cuda_engine, plan)
        _check_contract(engine, self._spec, profile, pixels)
        self._contexts = Contexts(tensorrt, engine, cache)
        with contextlib.ExitStack() as resources:
            resources.callback(self._contexts.close)
            self._idle = [resources.enter_context(self._new_slot())]
            self._resources = resources.pop_all()

    def _start(self, images: ImageBatch) -> tuple[Slot, int]:
        if len(self._in_flight) == SLOTS:
            raise RuntimeError(f"{SLOTS} batches are in flight: collect one first")
        if not self._idle:
            self._idle.append(self._resources.enter_context(self._new_slot()))
        slot = self._idle[-1]  # the one that was used last is warm
        slot.submit(images)
        self._idle.pop()
        return slot, len(images)

    def _finish(self, batch: tuple[Slot, int]) -> Logits:
        slot, images = batch
        self._idle.append(slot)
        return slot.collect(images)

    def _new_slot(self) -> contextlib.closing[Slot]:
        make_context = self._contexts.make
        slot = Slot(self._tensorrt, make_context, self._profile, self._spec, self._pixels.type)
        return contextlib.closing(slot)

    def close(self) -> None:
        """Free the device memory, once the device has finished; batches in flight are lost."""
        super().close()
        self._idle.clear()
        self._resources.close()


#: TensorRT's names of the types.
_DTYPES: dict[PixelType, str] = {"uint8": "UINT8", "float32": "FLOAT"}


def _check_contract(engine: Any, spec: SessionSpec, profile: Profile, pixels: PixelType) -> None:
    """Check that an engine takes and gives what a deploy graph does."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    found = {
        name: (
            engine.get_tensor_mode(name).name,
            engine.get_tensor_dtype(name).name,
            tuple(engine.get_tensor_shape(name))[1:],
        )
        for name in names
    }
    expected = {
        IMAGES: ("INPUT", _DTYPES[pixels], (*spec.input_size, 3)),
        LOGITS: ("OUTPUT", "FLOAT", (spec.classes,)),
    }
    if found != expected:
        raise GraphError(
            f"{spec.graph} is not an engine of this bundle: it has {found}, not {expected}.",
            hint="Build it again: deploykit build-trt",
        )
    batches = [shape[0] for shape in engine.get_tensor_profile_shape(IMAGES, 0)]
    promised = [profile.min_batch, profile.opt_batch, profile.max_batch]
    if batches != promised:
        raise GraphError(
            f"{spec.graph} was built for batches of {batches}, its passport says {promised}.",
            hint="Build it again: deploykit build-trt",
        )


class Contexts:
    """Makes the execution contexts of an engine.

    Close it after the contexts: they use its kernels.

    Args:
        tensorrt: The flavour that built the engine.
        engine: TensorRT's.
        cache: The file that keeps the compiled kernels, if it is TensorRT for RTX; None for none.
    """

    def __init__(self, tensorrt: TensorRT, engine: Any, cache: Path | None) -> None:
        self._log, self._trt = tensorrt.log, tensorrt.trt
        self._engine = engine
        self._config: Any = None
        self._kernels: Any = None
        self._cache = cache
        self._cached = b""

    def make(self) -> Any:
        """Make one more; CUDA has already been used by this thread.

        Raises:
            DeviceError: TensorRT fails.
        """
        create = self._engine.create_execution_context
        arguments = []
        if hasattr(self._trt, "CudaGraphStrategy"):
            if self._config is None:
                self._config = self._new_config()
            arguments = [self._config]
        return ask(self._log, "making an execution context", create, *arguments)

    def close(self) -> None:
        """Keep the kernels in the file, if there are new ones; closing twice is fine."""
        kernels, cache = self._kernels, self._cache
        self._engine = self._config = self._kernels = None
        if kernels is None or cache is None:
            return
        # It spares the next process the compilation; no result should fail for it.
        with contextlib.suppress(OSError, DeviceError):
            content = bytes(ask(self._log, "serializing the kernels", kernels.serialize))
            if content != self._cached:
                cache.parent.mkdir(parents=True, exist_ok=True)
                with replacing(cache, follow_link=False) as partial:
                    partial.write_bytes(content)

    def _new_config(self) -> Any:
        trt, log = self._trt, self._log
        config = ask(log, "making a runtime config", self._engine.create_runtime_config)
        whole = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # The default computes with other kernels until the right ones are compiled: what was proven
        # would not be what runs.
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER

        def choose() -> bool:
            config.cuda_graph_strategy = whole
            config.dynamic_shapes_kernel_specialization_strategy = eager
            # Python does not pass on that TensorRT rejected one.
            found = config.dynamic_shapes_kernel_specialization_strategy
            return bool(config.cuda_graph_strategy == whole and found == eager)

        ask(log, "choosing CUDA graphs and eager kernels", choose)
        kernels = ask(log, "making a runtime cache", config.create_runtime_cache)
        if self._cache is not None:
            # Not if the file is of another GPU or release, or damaged.
            with contextlib.suppress(OSError, DeviceError):
                content = read_file(self._cache)
                ask(log, f"reading {self._cache}", kernels.deserialize, content)
                self._cached = content
        ask(log, "setting the runtime cache", config.set_runtime_cache, kernels)
        self._kernels = kernels
        return config


class Slot:
    """One batch in flight: a stream, an execution context, and memory on both sides.

    Args:
        tensorrt: The flavour that built the engine.
        make_context: Makes an execution context of the engine.
        profile: The batch sizes that the engine was built for.
        spec: Of the session.
        pixels: The type of the images.

    Raises:
        DeviceError: TensorRT or CUDA fails.
    """

    def __init__(
        self,
        tensorrt: TensorRT,
        make_context: Callable[[], Any],
        profile: Profile,
        spec: SessionSpec,
        pixels: type[np.generic],
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
            self._images = keep(PinnedBuffer((batch, *self._image_shape), pixels))
            self._logits = keep(PinnedBuffer((batch, spec.classes), np.float32))
            self._device_images = keep(DeviceBuffer(self._images.array.nbytes))
            self._device_logits = keep(DeviceBuffer(self._logits.array.nbytes))
            self._done = keep(Event())
            self._context = make_context()
            resources.callback(self._drop_context)
            for name, buffer in ((IMAGES, self._device_images), (LOGITS, self._device_logits)):
                doing = f"binding {name} to device memory"
                ask(self._log, doing, self._context.set_tensor_address, name, buffer.address)
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
            # A graph only saves time: what cannot be captured can be enqueued, and a device that is
            # broken says so then.
            try:
                self._graph = self._stream.capture(self._enqueue)
            except DeviceError:
                self._captures = False
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
