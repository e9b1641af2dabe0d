"""TensorRT engines on an NVIDIA GPU, of either flavour.

Two batches can be in flight, each in a slot of its own: while the GPU computes one, the host fills
the other, which is made when it is first needed. Nothing waits for the device but
:meth:`TensorRTSession.collect`.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

from deploykit.errors import GraphError
from deploykit.runtime._base import BaseSession
from deploykit.runtime._tensorrt_contexts import Contexts
from deploykit.runtime._tensorrt_slot import IMAGES, LOGITS, Slot, TensorRT, ask
from deploykit.specs.engine import Profile
from deploykit.specs.precision import Precision
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import ImageBatch, Logits, SessionSpec, Ticket
from deploykit.system.gpu import need_gpu

#: How many batches can be in flight: one on the device, one on its way.
SLOTS = 2


class TensorRTSession(BaseSession):
    """An engine of a deploy graph. Use it from one thread.

    A batch smaller than the profile's smallest is filled up with its last image, and the surplus
    answers are dropped; any other runs at its true size.

    Args:
        tensorrt: The flavour that built the engine.
        plan: The serialized engine.
        name: What reports call it, ``engines/....engine``.
        precision: The precision of the graph that it was built from.
        profile: The batch sizes that it was built for.
        preprocessing: The image size.
        classes: K.
        cache: The file that keeps the kernels that TensorRT for RTX compiles; None for none.

    Raises:
        GraphError: Its inputs, outputs or profile are not those of the deploy graph.
        DeviceError: There is no GPU, or TensorRT or CUDA fails on it.
    """

    def __init__(
        self,
        tensorrt: TensorRT,
        plan: bytes,
        *,
        name: str,
        precision: Precision,
        profile: Profile,
        preprocessing: Preprocessing,
        classes: int,
        cache: Path | None = None,
    ) -> None:
        super().__init__(
            SessionSpec(
                runtime=tensorrt.flavour,
                graph=name,
                precision=precision,
                device=need_gpu().name,
                input_size=preprocessing.input_size,
                classes=classes,
                largest_batch=profile.max_batch,
            )
        )
        self._tensorrt, self._profile = tensorrt, profile
        log, trt = tensorrt.log, tensorrt.trt
        runtime = ask(log, "starting", trt.Runtime, log)
        # Each of TensorRT's objects keeps what it was made by: the contexts will keep the engine.
        engine: Any = ask(log, f"reading {name}", runtime.deserialize_cuda_engine, plan)
        _check_contract(engine, self._spec, profile)
        self._contexts = Contexts(tensorrt, engine, cache)
        with contextlib.ExitStack() as resources:
            resources.callback(self._contexts.close)
            self._idle = [resources.enter_context(self._new_slot())]
            self._resources = resources.pop_all()
        self._is_closed = False
        self._in_flight: dict[Ticket, tuple[Slot, int]] = {}
        self._tickets = itertools.count()

    def submit(self, images: ImageBatch) -> Ticket:
        """Start a batch, without waiting for the device.

        Args:
            images: (N, H, W, 3) uint8 RGB; free for other use when this returns.

        Returns:
            What :meth:`collect` takes.

        Raises:
            InputError: The batch does not fit the spec.
            DeviceError: TensorRT or CUDA fails.
            RuntimeError: The session is closed, or :data:`SLOTS` batches are in flight.
        """
        self._check_images(images)
        if self._is_closed:
            raise RuntimeError("the session is closed")
        if len(self._in_flight) == SLOTS:
            raise RuntimeError(f"{SLOTS} batches are in flight: collect one first")
        if not self._idle:
            self._idle.append(self._resources.enter_context(self._new_slot()))
        slot = self._idle[-1]  # the one that was used last is warm
        slot.submit(images)
        self._idle.pop()
        ticket = Ticket(next(self._tickets))
        self._in_flight[ticket] = slot, len(images)
        return ticket

    def collect(self, ticket: Ticket) -> Logits:
        """Wait for a batch.

        Returns:
            (N, K) float32, owned by the caller.

        Raises:
            DeviceError: Something failed on the device.
            RuntimeError: The batch is not in flight: it was collected, or the session is closed.
        """
        if ticket not in self._in_flight:
            raise RuntimeError("this batch is not in flight")
        slot, images = self._in_flight.pop(ticket)
        self._idle.append(slot)
        return slot.collect(images)

    def _new_slot(self) -> contextlib.closing[Slot]:
        slot = Slot(self._tensorrt, self._contexts.make, self._profile, self._spec)
        return contextlib.closing(slot)

    def _run(self, images: ImageBatch) -> Logits:
        return self.collect(self.submit(images))

    def close(self) -> None:
        """Free the device memory, once the device has finished; batches in flight are lost."""
        self._is_closed = True
        self._idle.clear()
        self._in_flight.clear()
        self._resources.close()


def _check_contract(engine: Any, spec: SessionSpec, profile: Profile) -> None:
    """Refuse an engine that takes or gives something else than a deploy graph does."""
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
        IMAGES: ("INPUT", "UINT8", (*spec.input_size, 3)),
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
