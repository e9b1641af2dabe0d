"""A torch module as a session: the reference that everything is compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from deploykit.runtime._base import BaseSession
from deploykit.runtime.normalisation import network_input
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
        self._preprocessing = preprocessing

    def _run(self, images: ImageBatch) -> Logits:
        if self._module is None:
            raise RuntimeError("the session is closed")
        with torch.inference_mode():
            batch = network_input(images, self._preprocessing, torch.device("cpu"))
            logits: Logits = self._module(batch).numpy()
        # A module may hand out a buffer of its own: the logits are the caller's.
        return np.array(logits, dtype=np.float32)

    def close(self) -> None:
        """Let go of the module."""
        self._module = None
