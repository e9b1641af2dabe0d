"""A session for tests: any function of the images, no graph, no device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deploykit.runtime._base import BaseSession
from deploykit.specs.model import Precision
from deploykit.specs.preprocessing import Size
from deploykit.specs.session import ImageBatch, Logits, SessionSpec


class FakeSession(BaseSession):
    """A session whose logits a function computes.

    Args:
        answer: From (N, H, W, 3) uint8 to (N, K).
        classes: K.
        input_size: Height and width of the images.
        precision: What it pretends to compute in.
        largest_batch: The most images it takes; None for any number.

    Attributes:
        batch_sizes: The size of every batch that ran, in order.
        closed: Whether it was closed.
    """

    def __init__(
        self,
        answer: Callable[[ImageBatch], Logits],
        *,
        classes: int,
        input_size: Size = (8, 8),
        precision: Precision = "fp32",
        largest_batch: int | None = None,
    ) -> None:
        super().__init__(
            SessionSpec(
                runtime="fake",
                graph="fake",
                precision=precision,
                device="none",
                input_size=input_size,
                classes=classes,
                largest_batch=largest_batch,
            )
        )
        self._answer = answer
        self.batch_sizes: list[int] = []
        self.closed = False

    def _run(self, images: ImageBatch) -> Logits:
        self.batch_sizes.append(len(images))
        return np.asarray(self._answer(images), np.float32)

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True
