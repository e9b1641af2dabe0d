"""A torch module as a session: the reference that everything is compared with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from deploykit.errors import InputError, ModelError
from deploykit.runtime._base import BaseSession, normalised
from deploykit.specs.embeddings import Tap, as_embeddings
from deploykit.specs.preprocessing import Preprocessing, format_size
from deploykit.specs.session import (
    Embeddings,
    ImageBatch,
    Logits,
    NetworkInputs,
    SessionSpec,
)
from deploykit.system.code_lines import failure_text

#: What takes the last tensor before the logits, and gives them by a product with its weights.
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
            ),
            pixels=preprocessing.pixel_type,
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

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        if self._module is None:
            raise RuntimeError("the session is closed")
        return self._module

    def has_tap(self, tap: Tap) -> bool:
        """Whether a tensor is what one of the module's own modules takes or gives."""
        found = dict(self.module.named_modules()).get(tap.module) if tap.module else None
        if found is None or (tap.side == "input" and not isinstance(found, _LAYERS)):
            return False
        # A forward may use a module's weights without calling it.
        _, tensor = self._tapped(np.zeros((1, *self._spec.input_size, 3), np.uint8), tap)
        return tensor is not None and tap.fits(tensor.shape)

    def run_tapped(self, images: ImageBatch, tap: Tap) -> tuple[Logits, Embeddings]:
        """Compute the logits of a batch, and what one of the module's own modules takes or gives.

        Args:
            images: See ``run``.
            tap: Such that :meth:`has_tap` says yes.

        Returns:
            (N, K) and (N, E) float32, owned by the caller.

        Raises:
            InputError: The forward does not call that module for these images.
        """
        logits, tensor = self._tapped(images, tap)
        if tensor is None or len(tensor) != len(images) or not tap.fits(tensor.shape):
            shape = None if tensor is None else tensor.shape
            raise InputError(
                f"In the torch module {tap.describe()} has shape {shape} for {len(images)} images.",
                hint="Take another tensor: --tap NAME",
            )
        return logits, as_embeddings(tensor, tap)

    def _tapped(
        self, images: ImageBatch, tap: Tap
    ) -> tuple[Logits, npt.NDArray[np.floating] | None]:
        """The logits, and the tensor of the last call of the tap's module; None without any."""
        taken: list[torch.Tensor] = []

        def take(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            del module
            tensor = inputs[0] if tap.side == "input" and inputs else output
            if isinstance(tensor, torch.Tensor):
                taken.append(tensor.detach().clone())  # a later operation may change it in place

        hook = self.module.get_submodule(tap.module).register_forward_hook(take)
        try:
            logits = self.run(images)
        finally:
            hook.remove()
        return logits, taken[-1].numpy() if taken else None

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
