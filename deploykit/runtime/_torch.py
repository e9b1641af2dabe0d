"""A torch module as a session: the reference that everything is compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from deploykit.errors import InputError, ModelError
from deploykit.runtime._base import BaseSession, normalised
from deploykit.specs.preprocessing import Preprocessing, format_size
from deploykit.specs.session import ImageBatch, Logits, NetworkInputs, SessionSpec
from deploykit.system.code_lines import failure_text


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

    def run_normalised(self, inputs: NetworkInputs) -> Logits:
        """Compute the logits; see :class:`deploykit.specs.session.NormalisedSession`."""
        try:
            logits = self._answer(torch.tensor(inputs))
        except ModelError as exc:
            _, _, height, width = inputs.shape
            raise InputError(
                f"The network does not take images of {height}x{width}: {exc.message}",
                hint="It was trained on images of another size; the recorded one is "
                f"{format_size(self._spec.input_size)}.",
            ) from exc
        return self._checked(logits, len(inputs))

    def _run(self, images: ImageBatch) -> Logits:
        return self._answer(torch.from_numpy(normalised(images, self._preprocessing)))

    def _answer(self, batch: torch.Tensor) -> Logits:
        if self._module is None:
            raise RuntimeError("the session is closed")
        try:
            with torch.inference_mode():
                logits: Logits = self._module(batch).numpy()
            # A module may hand out a buffer of its own: the logits are the caller's.
            return np.array(logits, dtype=np.float32)
        except (Exception, SystemExit) as exc:  # the module may be the user's code
            raise ModelError(
                f"The network fails on a batch of {len(batch)} images: {failure_text(exc)}",
                hint="Its forward must take any number of images (N, 3, H, W), and answer each "
                "with one float32 number a class.",
            ) from exc

    def close(self) -> None:
        """Let go of the module."""
        self._module = None
