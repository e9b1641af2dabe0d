"""What sessions share: what they check of a batch, a graph and an answer; normalisation."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from deploykit.bundle.onnx_file import check_meaning
from deploykit.errors import GraphError, InputError
from deploykit.specs.embeddings import EMBEDDING_OUTPUT
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing import PixelType, Preprocessing
from deploykit.specs.session import Closing, Embeddings, ImageBatch, Logits, SessionSpec, Ticket

_Batch = TypeVar("_Batch")
Answers: TypeAlias = npt.NDArray[np.float32]
"""(N, K) float32; of a graph with embeddings (N, K + E), these behind the logits."""


class BaseSession(Closing):
    """A session that knows its spec, checks its batches and answers, and closes itself.

    Args:
        spec: What really runs.
        embedding: E, of a graph with embeddings; else 0.
        pixels: The type of the images that it takes.
    """

    def __init__(self, spec: SessionSpec, embedding: int = 0, pixels: PixelType = "uint8") -> None:
        self._spec = spec
        self._pixels = np.dtype(pixels)
        self._embedding = embedding

    @property
    def spec(self) -> SessionSpec:
        """What really runs."""
        return self._spec

    def run(self, images: ImageBatch) -> Logits:
        """Compute the logits of a batch; see :class:`deploykit.specs.session.Session`."""
        return self._logits(self._computed(images))

    def run_embedded(self, images: ImageBatch) -> tuple[Logits, Embeddings]:
        """Compute a batch; see :class:`deploykit.specs.session.EmbeddingSession`."""
        answers = self._computed(images)
        return self._logits(answers), self._embeddings(answers)

    def _computed(self, images: ImageBatch) -> Answers:
        return self._checked(self._run(self._as_taken(images)), len(images))

    def _logits(self, answers: Answers) -> Logits:
        return np.ascontiguousarray(answers[:, : self._spec.classes])

    def _embeddings(self, answers: Answers) -> Embeddings:
        return np.ascontiguousarray(answers[:, self._spec.classes :])

    def _checked(self, answers: Answers, count: int) -> Answers:
        """The answers, if they are one row for each image."""
        columns = self._spec.classes + self._embedding
        if answers.shape != (count, columns):
            raise GraphError(
                f"{self._spec.graph} on {self._spec.runtime} answers {count} images with "
                f"shape {answers.shape}, not ({count}, {columns})."
            )
        return answers

    def _as_taken(self, images: ImageBatch) -> ImageBatch:
        """A batch as the graph takes it, if it fits the spec; bytes are floats without loss."""
        expected = (*self._spec.input_size, 3)
        if (
            images.dtype not in (np.uint8, self._pixels)
            or images.ndim != 4
            or images.shape[1:] != expected
        ):
            raise InputError(
                f"A batch must be {self._pixels} of shape (N, {', '.join(map(str, expected))}); "
                f"got {images.dtype} of shape {images.shape}."
            )
        largest = self._spec.largest_batch
        if len(images) == 0 or (largest is not None and len(images) > largest):
            limit = "at least 1" if largest is None else f"1 to {largest}"
            raise InputError(f"A batch must have {limit} images; got {len(images)}.")
        return images.astype(self._pixels, copy=False)

    @abstractmethod
    def _run(self, images: ImageBatch) -> Answers:
        """Compute the answers to a batch that fits the spec."""


class PipelinedBase(BaseSession, Generic[_Batch]):
    """A session that can have several batches in flight."""

    def __init__(self, spec: SessionSpec, embedding: int = 0, pixels: PixelType = "uint8") -> None:
        super().__init__(spec, embedding, pixels)
        self._is_closed = False
        self._in_flight: dict[Ticket, _Batch] = {}
        self._tickets = itertools.count()

    def submit(self, images: ImageBatch) -> Ticket:
        """Start a batch; see :class:`deploykit.specs.session.PipelinedSession`.

        Raises:
            InputError: The batch does not fit the spec.
            GraphError, DeviceError: The runtime fails.
            RuntimeError: The session is closed, or no more batches can be in flight.
        """
        images = self._as_taken(images)
        self._check_open()
        started = self._start(images)
        ticket = Ticket(next(self._tickets))
        self._in_flight[ticket] = started
        return ticket

    def collect(self, ticket: Ticket) -> Logits:
        """Wait for a batch; returns (N, K) float32, owned by the caller.

        Raises:
            GraphError, DeviceError: The runtime failed.
            RuntimeError: The batch is not in flight: it was collected, or the session is closed.
        """
        return self._logits(self._collected(ticket))

    def collect_embedded(self, ticket: Ticket) -> tuple[Logits, Embeddings]:
        """Wait for a batch; see :class:`deploykit.specs.session.PipelinedEmbeddingSession`."""
        answers = self._collected(ticket)
        return self._logits(answers), self._embeddings(answers)

    def _collected(self, ticket: Ticket) -> Answers:
        if ticket not in self._in_flight:
            raise RuntimeError("this batch is not in flight")
        return self._finish(self._in_flight.pop(ticket))

    def _run(self, images: ImageBatch) -> Answers:
        self._check_open()
        return self._finish(self._start(images))

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the session is closed")

    @abstractmethod
    def _start(self, images: ImageBatch) -> _Batch:
        """Start a batch that fits the spec."""

    @abstractmethod
    def _finish(self, batch: _Batch) -> Answers:
        """Wait for a batch that was started."""

    def close(self) -> None:
        """Take no more batches; those in flight are lost."""
        self._is_closed = True
        self._in_flight.clear()


Tensors: TypeAlias = list[tuple[str, str, tuple[object, ...]]]
"""A graph's inputs or outputs: name, NumPy's type, and shape without the batch."""


def check_graph(
    spec: SessionSpec,
    tensors: tuple[Tensors, Tensors],
    metadata: Mapping[str, str],
    labels: Labels,
    preprocessing: Preprocessing,
    embedding: int = 0,
) -> bool:
    """Check that a graph is the one that its bundle's manifest describes.

    Args:
        spec: Of the session.
        tensors: The graph's inputs and outputs, as the runtime gives them.
        metadata: The graph's ``metadata_props``, which may hold its labels and preprocessing.
        labels: The manifest's.
        preprocessing: The manifest's.
        embedding: E, of the graph with embeddings; 0 of all others, which have one output.

    Returns:
        Whether it is a canonical graph, which takes normalised images; else it takes pixels.

    Raises:
        GraphError: It is another graph.
    """
    hint = "Export the bundle again."
    height, width = spec.input_size
    canonical = [("input", "float32", (3, height, width))]
    deploy = [("images", preprocessing.pixel_type, (height, width, 3))]
    wanted_outputs = [("logits", "float32", (spec.classes,))]
    if embedding:
        wanted_outputs.append((EMBEDDING_OUTPUT, "float32", (embedding,)))
    inputs, outputs = tensors
    if inputs not in (canonical, deploy) or outputs != wanted_outputs:
        raise GraphError(
            f"{spec.graph} is not the graph that the manifest describes: "
            f"inputs {inputs}, outputs {outputs}.",
            hint=hint,
        )
    check_meaning(spec.graph, metadata.items(), labels, preprocessing)
    return inputs == canonical


def normalised(images: ImageBatch, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Scale to 0..1 and normalise, in torchvision's order: ``ToTensor``, then ``Normalize``.

    In float32 it gives torch's numbers to the last bit.

    Args:
        images: (N, H, W, 3) RGB, 0..255; only read.
        preprocessing: Gives mean and std.

    Returns:
        (N, 3, H, W) float32, contiguous.
    """
    batch = images.astype(np.float32)
    batch /= 255
    batch -= np.array(preprocessing.mean, np.float32)
    batch /= np.array(preprocessing.std, np.float32)
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))  # (N, H, W, C) => (N, C, H, W)
