"""From the bytes of a batch to the input of a network, in a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import ImageBatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def network_input(images: ImageBatch, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Scale to 0..1 and normalise, in torchvision's order: ``ToTensor``, then ``Normalize``.

    Args:
        images: (N, H, W, 3) uint8 RGB; only read.
        preprocessing: Gives mean and std.
        device: Where the result is computed and stays.

    Returns:
        (N, 3, H, W) float32, contiguous.
    """
    import torch

    # Copied, because torch warns of an array that may not be written to.
    # (N, H, W, C) => (N, C, H, W), still one byte a value on its way to the device
    channels_first = torch.tensor(images).to(device).permute(0, 3, 1, 2)
    scaled = channels_first.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return scaled.sub_(mean).div_(std)


def normalised(images: ImageBatch, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """The same without torch, for a canonical graph.

    Args:
        images: (N, H, W, 3) uint8 RGB; only read.
        preprocessing: Gives mean and std.

    Returns:
        (N, 3, H, W) float32, contiguous.
    """
    batch = images.astype(np.float32)
    batch /= 255
    batch -= np.array(preprocessing.mean, np.float32)
    batch /= np.array(preprocessing.std, np.float32)
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))  # (N, H, W, C) => (N, C, H, W)
