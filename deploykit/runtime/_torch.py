"""A torch module as a session: the reference that everything is compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from deploykit.runtime._base import BaseSession
from deploykit.session import ImageBatch, Logits, SessionSpec
from deploykit.specs import Preprocessing


class ModuleSession(BaseSession):
    """A module in eval mode on the CPU, in FP32."""

    def __init__(self, module: nn.Module, *, preprocessing: Preprocessing, classes: int) -> None:
        super().__init__(
            SessionSpec(
                runtime="torch",
                graph="checkpoint",
                precision="fp32",
                device="CPU",
                input_size=preprocessing.input_size,
                classes=classes,
            )
        )
        self._module: nn.Module | None = module
        self._mean = torch.tensor(preprocessing.mean).reshape(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std).reshape(1, 3, 1, 1)

    def _run(self, images: ImageBatch) -> Logits:
        if self._module is None:
            raise RuntimeError("the session is closed")
        with torch.inference_mode():
            # The same operations in the same order as torchvision's ToTensor and Normalize.
            batch = torch.tensor(images).permute(0, 3, 1, 2)  # (N, H, W, C) => (N, C, H, W)
            batch = batch.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
            logits: Logits = self._module(batch.sub_(self._mean).div_(self._std)).numpy()
        # A module may hand out a buffer of its own: the logits are the caller's.
        return np.array(logits, dtype=np.float32)

    def close(self) -> None:
        """Let go of the module."""
        self._module = None
