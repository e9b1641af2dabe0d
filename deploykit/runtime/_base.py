"""What sessions share: what they check of a batch, a graph and an answer; normalisation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deploykit.errors import GraphError, InputError
from deploykit.specs.model import LABELS_KEY, Labels, TensorSpec
from deploykit.specs.preprocessing import PREPROCESSING_KEY, Preprocessing
from deploykit.specs.session import Closing, ImageBatch, Logits, SessionSpec

if TYPE_CHECKING:
    pass


class BaseSession(Closing):
    """A session that knows its spec, checks its batches and answers, and closes itself."""

    def __init__(self, spec: SessionSpec) -> None:
        self._spec = spec

    @property
    def spec(self) -> SessionSpec:
        """What really runs."""
        return self._spec

    def run(self, images: ImageBatch) -> Logits:
        """Compute the logits of a batch; see :class:`deploykit.specs.session.Session`."""
        self._check_images(images)
        return self._checked(self._run(images), len(images))

    def _checked(self, logits: Logits, count: int) -> Logits:
        """The answers, if they are one row for each image."""
        if logits.shape != (count, self._spec.classes):
            raise GraphError(
                f"{self._spec.graph} on {self._spec.runtime} answers {count} images with "
                f"shape {logits.shape}, not ({count}, {self._spec.classes})."
            )
        return logits

    def _check_images(self, images: ImageBatch) -> None:
        """Check that a batch fits the spec."""
        expected = (*self._spec.input_size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise InputError(
                f"A batch must be uint8 of shape (N, {', '.join(map(str, expected))}); "
                f"got {images.dtype} of shape {images.shape}."
            )
        largest = self._spec.largest_batch
        if len(images) == 0 or (largest is not None and len(images) > largest):
            limit = "at least 1" if largest is None else f"1 to {largest}"
            raise InputError(f"A batch must have {limit} images; got {len(images)}.")

    @abstractmethod
    def _run(self, images: ImageBatch) -> Logits:
        """Compute the logits of a batch that fits the spec."""


#: The names of a graph's inputs and output, the canonical graph's and the deploy graphs'.
TENSORS = ("input", "images", "logits")
#: What a graph may tell of itself in its ``metadata_props``.
METADATA_KEYS = (LABELS_KEY, PREPROCESSING_KEY)
_EXPORT_AGAIN = "Export the bundle again."


def takes_normalised(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], spec: SessionSpec
) -> bool:
    """Whether a graph is a canonical one, which takes normalised images; else it takes bytes.

    Args:
        inputs: As the runtime tells them; the first dimension, the batch, may be anything.
        outputs: The same.
        spec: Of the session.

    Raises:
        GraphError: It is neither a canonical nor a deploy graph.
    """
    height, width = spec.input_size
    found, answers = (
        [(each.name, each.dtype, each.shape[1:]) for each in tensors]
        for tensors in (inputs, outputs)
    )
    canonical = [("input", "float32", (3, height, width))]
    deploy = [("images", "uint8", (height, width, 3))]
    if found not in (canonical, deploy) or answers != [("logits", "float32", (spec.classes,))]:
        raise GraphError(
            f"{spec.graph} is not the graph that the manifest describes: "
            f"inputs {found}, outputs {answers}.",
            hint=_EXPORT_AGAIN,
        )
    return found == canonical


def check_meaning(
    told: Mapping[str, str], name: str, labels: Labels, preprocessing: Preprocessing
) -> None:
    """Check that a graph tells the labels and the preprocessing of its bundle's manifest.

    Args:
        told: The graph's ``metadata_props``.
        name: What errors call the graph.
        labels: The manifest's.
        preprocessing: The manifest's.

    Raises:
        GraphError: It tells others.
    """
    expected = {
        LABELS_KEY: labels.to_metadata(),
        PREPROCESSING_KEY: preprocessing.to_metadata(),
    }
    for key, value in expected.items():
        if told.get(key, value) != value:
            raise GraphError(
                f"{name} was exported with {key} {told[key]}, but the manifest says {value}.",
                hint=f"One of the two was changed afterwards. {_EXPORT_AGAIN}",
            )


def normalised(images: ImageBatch, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Scale to 0..1 and normalise, in torchvision's order: ``ToTensor``, then ``Normalize``.

    In float32 it gives torch's numbers to the last bit.

    Args:
        images: (N, H, W, 3) uint8 RGB; only read.
        preprocessing: Gives mean and std.

    Returns:
        (N, 3, H, W) float32, contiguous.
    """
    batch = images.astype(np.float32)
    batch /= 255
    batch -= np.array(preprocessing.mean, np.float32)
    batch /= np.array(preprocessing.std, np.float32)
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))  # (N, H, W, C) => (N, C, H, W)
