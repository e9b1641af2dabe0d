"""Embeddings: the tensor before a network's last layer, one row of numbers for each image."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from deploykit.specs.session import Embeddings
from deploykit.specs.value import Value

#: The second output of a graph with embeddings: float32 [N, E].
EMBEDDING_OUTPUT = "embedding"


class Tap(Value, frozen=True):
    """Which tensor of a network is the embedding.

    Attributes:
        tensor: Its name in the canonical graph.
        module: The path of the ``nn.Module`` that takes or gives it, ``fc``; empty where none is
            known.
        side: Whether it is that module's input or its output.
        pooled: Whether it is a map, (N, E, H, W), that is averaged over its places.
        size: E, the number of values an image.
    """

    tensor: str
    module: str
    side: Literal["input", "output"]
    pooled: bool
    size: int

    def describe(self) -> str:
        """``the input of fc``, with what is done to it."""
        what = f"the {self.side} of {self.module}" if self.module else f"the tensor {self.tensor}"
        return f"{what}, averaged over its map" if self.pooled else what

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape, (N, E) or (N, E, H, W), can be it."""
        return (
            len(shape) in (2, 4) and shape[1] == self.size and (self.pooled or prod(shape[2:]) == 1)
        )


def as_embeddings(tensor: npt.NDArray[np.floating], tap: Tap) -> Embeddings:
    """(N, E) float32 of a tensor that fits a tap, averaged over its map if it is one."""
    if tap.pooled and tensor.ndim == 4:
        tensor = tensor.mean(axis=(2, 3), dtype=np.float64)
    return tensor.reshape(len(tensor), tap.size).astype(np.float32)
