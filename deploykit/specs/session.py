"""The protocol of an open runtime: a batch of images in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NewType, Protocol, Self, TypeAlias, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from deploykit.specs.model import Precision
from deploykit.specs.preprocessing import Size
from deploykit.specs.value import Value

ImageBatch: TypeAlias = npt.NDArray[np.uint8 | np.float32]
"""(N, H, W, 3), RGB, 0..255: uint8, or float32 where training does not round resized pixels."""
Logits: TypeAlias = npt.NDArray[np.float32]
"""(N, K) float32."""
Embeddings: TypeAlias = npt.NDArray[np.float32]
"""(N, E) float32: what the network's last layer takes of each image."""
NetworkInputs: TypeAlias = npt.NDArray[np.float32]
"""(N, 3, H, W) float32, normalised: what a network takes."""

Ticket = NewType("Ticket", int)
"""Stands for a batch in flight."""

ServerProtocol: TypeAlias = Literal["http", "grpc"]
SERVER_PROTOCOLS: tuple[ServerProtocol, ...] = get_args(ServerProtocol)
Place: TypeAlias = Literal["here", "server", "table"]
Given: TypeAlias = Literal["logits", "probabilities", "headline", "decisions"]


class SessionSpec(Value, frozen=True):
    """What really runs, which need not be what was asked for.

    Attributes:
        runtime: What executes: ``onnxruntime-cpu``, ``onnxruntime-cuda``, ``torch``, a server's
            name and protocol, ...
        graph: What it executes: ``model.onnx``, ``deploy/fp32.onnx``, ``checkpoint``; of a server
            its model and the input.
        precision: The precision of the arithmetic between input and logits.
        device: The device's name for people: ``CPU``, ``NVIDIA GeForce RTX 4070``; of a server
            its address.
        input_size: Height and width of the images it takes.
        classes: K, the number of logits an image.
        largest_batch: The most images that one run takes; None when any number goes.
        tf32: Whether FP32 arithmetic may round to TensorFloat-32: what was measured with it shows
            nothing about plain FP32.
        concurrent: Whether several threads may run it at once, each on a core of its own.
        place: What answers: this machine, a ``server``, or the ``table`` of another tool.
        gives: What of the answers is known. Of ``probabilities`` the logits are those that give
            them; of a ``headline`` only that of what was decided for is right, and of ``decisions``
            none: these two stand in logits for what was decided, and for nothing else.
    """

    runtime: str
    graph: str
    precision: Precision
    device: str
    input_size: Size
    classes: int
    largest_batch: int | None = None
    tf32: bool = False
    concurrent: bool = False
    place: Place = "here"
    gives: Given = "logits"

    @property
    def title(self) -> str:
        """What a report calls it: ``deploy/fp32.onnx in bf16 on openvino``."""
        if self.place == "table":
            return self.graph
        # A graph's file is named after its precision, unless the runtime computes in another.
        named = self.precision == "fp32" or self.precision in self.graph
        hint = "" if named else f" in {self.precision}"
        return f"{self.graph}{hint} on {self.runtime}"


class Session(Protocol):
    """An open runtime. Use it as a context manager: it may own device memory."""

    @property
    def spec(self) -> SessionSpec:
        """What really runs."""
        ...

    def run(self, images: ImageBatch) -> Logits:
        """Compute the logits of a batch.

        Args:
            images: (N, H, W, 3) RGB, N at least 1; only read. A session of float32 pixels takes
                uint8, too.

        Returns:
            (N, K) float32, owned by the caller.

        Raises:
            InputError: The batch's shape or type is not what ``spec`` says.
        """
        ...

    def close(self) -> None:
        """Free what the session holds; closing twice is fine."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


@runtime_checkable
class NamedSession(Session, Protocol):
    """A session that answers to the images' names, as a table does and who is sent the files."""

    def run_named(self, names: Sequence[str], images: ImageBatch) -> Logits:
        """Give the logits of images that have these names.

        Args:
            names: The N images'.
            images: (N, H, W, 3), preprocessed as recorded.

        Returns:
            (N, K) float32, owned by the caller.
        """
        ...


@runtime_checkable
class PipelinedSession(Session, Protocol):
    """A session that can have two batches in flight on its device."""

    def submit(self, images: ImageBatch) -> Ticket:
        """Start a batch, without waiting for the device; ``images`` is free when this returns.

        Returns:
            A ticket for :meth:`collect`.
        """
        ...

    def collect(self, ticket: Ticket) -> Logits:
        """Wait for a batch; returns (N, K) float32, owned by the caller."""
        ...


class EmbeddingSession(Session, Protocol):
    """A session of a graph with two outputs: one run gives logits and embeddings."""

    def run_embedded(self, images: ImageBatch) -> tuple[Logits, Embeddings]:
        """Compute a batch, as ``run`` does.

        Returns:
            (N, K) and (N, E) float32, owned by the caller.
        """
        ...


class PipelinedEmbeddingSession(PipelinedSession, EmbeddingSession, Protocol):
    """The same, with two batches in flight."""

    def collect_embedded(self, ticket: Ticket) -> tuple[Logits, Embeddings]:
        """Wait for a batch; returns (N, K) and (N, E) float32, owned by the caller."""
        ...


@runtime_checkable
class NormalisedSession(Session, Protocol):
    """A session that can also be given what normalisation by anyone else has made of the images."""

    def run_normalised(self, inputs: NetworkInputs) -> Logits:
        """Compute the logits of a batch.

        Args:
            inputs: (N, 3, H, W), H and W being the session's, or others that its network takes.

        Returns:
            (N, K) float32, owned by the caller.

        Raises:
            InputError: The network does not take images of this size.
        """
        ...


class Closing(ABC):
    """A context manager that closes itself."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it owns; closing twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
