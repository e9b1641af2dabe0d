"""What every session checks and how it ends."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from deploykit.errors import GraphError, InputError
from deploykit.specs.session import ImageBatch, Logits, SessionSpec
from deploykit.system.closing import Closing


class BaseSession(Closing):
    """A session that knows its spec, refuses batches that do not fit it, and closes itself."""

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
        """Refuse answers that are not one row for each image."""
        if logits.shape != (count, self._spec.classes):
            raise GraphError(
                f"{self._spec.graph} on {self._spec.runtime} answers {count} images with "
                f"shape {logits.shape}, not ({count}, {self._spec.classes})."
            )
        return logits

    def _check_images(self, images: ImageBatch) -> None:
        """Refuse a batch that does not fit the spec."""
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
