"""Resizing without antialiasing is torch's."""

import numpy as np
import pytest
import torch

from deploykit.images.sampling import resize_without_antialias
from deploykit.specs.preprocessing import FILTERS_WITHOUT_ANTIALIAS


@pytest.mark.parametrize("interpolation", FILTERS_WITHOUT_ANTIALIAS)
@pytest.mark.parametrize("size", [(7, 9), (16, 16), (50, 33), (30, 40)])
def test_resize_without_antialias_as_torch(interpolation, size):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    channels_first = torch.tensor(pixels).permute(2, 0, 1)[None].float()
    corners = {} if interpolation == "nearest" else {"align_corners": False}
    expected = torch.nn.functional.interpolate(
        channels_first, size=size, mode=interpolation, **corners
    )
    expected = expected[0].permute(1, 2, 0).clamp(0, 255).numpy()
    found = resize_without_antialias(pixels, size, interpolation)
    assert found.shape == (*size, 3)
    assert np.abs(found - expected).max() <= 0.51  # bytes
