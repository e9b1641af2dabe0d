"""Answers that were recorded earlier, as a session: what a bundle without its checkpoint has."""

from __future__ import annotations

from deploykit.errors import InputError
from deploykit.runtime._base import BaseSession
from deploykit.specs.preprocessing import Size
from deploykit.specs.session import ImageBatch, Logits, SessionSpec


class RecordedSession(BaseSession):
    """Replays the logits of images that come in the order in which they were recorded.

    Args:
        logits: (N, K), one row an image.
        name: What reports call it, ``golden.npz``.
        input_size: Height and width of the images.
    """

    def __init__(self, logits: Logits, *, name: str, input_size: Size) -> None:
        super().__init__(
            SessionSpec(
                runtime="recorded",
                graph=name,
                precision="fp32",
                device="none",
                input_size=input_size,
                classes=logits.shape[1],
            )
        )
        self._logits = logits
        self._position = 0

    def _run(self, images: ImageBatch) -> Logits:
        start, self._position = self._position, self._position + len(images)
        if self._position > len(self._logits):
            raise InputError(
                f"{self._spec.graph} has answers for {len(self._logits)} images, not for more."
            )
        return self._logits[start : self._position].copy()

    def close(self) -> None:
        """Nothing to free."""
