"""What several sessions answered to the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deploykit.specs.session import Logits


@dataclass(frozen=True, eq=False)
class Answers:
    """The logits of a reference and of candidates, image by image.

    Attributes:
        paths: The N images' names.
        batch_sizes: The sizes of the batches that they were run in, in order.
        reference: (N, K) float32.
        candidates: One (N, K) float32 for each candidate.
    """

    paths: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    reference: Logits
    candidates: tuple[Logits, ...]

    def known(self, expected: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Those classes, by the images' names, that are of these images."""
        return {path: expected[path] for path in self.paths if path in expected}
