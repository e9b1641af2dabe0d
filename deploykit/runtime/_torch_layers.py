"""A torch module, to look into it: what each module inside gives for a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deploykit.runtime.normalisation import network_input
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import ImageBatch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """One call of a module that has no modules inside, or of the whole.

    Attributes:
        path: The module's: ``layer1.0.conv1``; empty for the whole, whose call ends last.
        source: The number of the call whose output, unchanged, is the first input of this one;
            None for none.
        weight: The module's ``weight``; None without.
        output: What it gave, before anything changed it in place.
    """

    path: str
    source: int | None
    weight: npt.NDArray[np.float32] | None
    output: npt.NDArray[np.float32]


class ModuleProbe:
    """A module in eval mode on the CPU.

    Args:
        module: From (N, 3, H, W) float32, normalised, to (N, K) float32.
        preprocessing: The normalisation.
    """

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        self.module = module
        self._preprocessing = preprocessing

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """The module's float32 parameters and buffers by name, which it shares."""
        import torch

        return {
            name: tensor.detach().numpy()
            for name, tensor in self.module.state_dict().items()
            if tensor.dtype == torch.float32
        }

    def run(self, images: ImageBatch) -> tuple[ModuleCall, ...]:
        """Run a batch.

        Args:
            images: (N, H, W, 3) uint8 RGB.

        Returns:
            The calls in their order, of modules that give a float32 tensor; each output is the
            caller's.
        """
        import torch

        with torch.inference_mode(), _recording(self.module) as calls:
            self.module(network_input(images, self._preprocessing, torch.device("cpu")))
        return tuple(calls)


@contextmanager
def _recording(module: nn.Module) -> Iterator[list[ModuleCall]]:
    """Record the calls of the modules that have none inside, and of the whole."""
    import torch

    calls: list[ModuleCall] = []
    # The tensors are kept, because what is freed gives its id to another.
    givers: dict[int, tuple[Tensor, int]] = {}

    def record(path: str, called: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        if not isinstance(output, torch.Tensor) or output.dtype != torch.float32:
            return
        source = None
        if inputs and id(inputs[0]) in givers:
            tensor, number = givers[id(inputs[0])]
            unchanged = np.array_equal(tensor.numpy(), calls[number].output)
            source = number if unchanged else None
        weight = getattr(called, "weight", None)
        values = weight.detach().numpy() if isinstance(weight, torch.Tensor) else None
        givers[id(output)] = output, len(calls)
        calls.append(ModuleCall(path, source, values, np.array(output.numpy())))

    handles = [
        inner.register_forward_hook(
            lambda called, inputs, output, path=path: record(path, called, inputs, output)
        )
        for path, inner in module.named_modules()
        if not path or next(inner.children(), None) is None
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
