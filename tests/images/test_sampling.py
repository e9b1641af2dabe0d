"""Resizing without antialiasing is torch's, of bytes and of floats."""

import numpy as np
import pytest
import torch

from deploykit.images.sampling import resize_without_antialias
from deploykit.specs.preprocessing import FILTERS_WITHOUT_ANTIALIAS


@pytest.mark.parametrize("interpolation", FILTERS_WITHOUT_ANTIALIAS)
@pytest.mark.parametrize("size", [(7, 9), (16, 16), (50, 33), (30, 40)])
def test_resize_without_antialias_as_torch(interpolation, size):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    expected = torch_resize(pixels, size, interpolation)
    found = resize_without_antialias(pixels, size, interpolation)
    assert found.shape == (*size, 3)
    assert np.abs(found - expected.clip(0, 255)).max() <= 0.51  # bytes


@pytest.mark.parametrize("interpolation", FILTERS_WITHOUT_ANTIALIAS)
@pytest.mark.parametrize("size", [(7, 9), (50, 33), (1, 224)])
def test_resize_without_antialias_of_floats(interpolation, size):
    # Wide enough for double precision to take other weights.
    pixels = np.random.default_rng(0).integers(0, 256, (30, 2401, 3), dtype=np.uint8)
    found = resize_without_antialias(pixels, size, interpolation, rounded=False)
    assert found.dtype == np.float32
    expected = torch_resize(pixels, size, interpolation)
    limit = 1e-3 if interpolation == "bicubic" else 1e-4  # of a grey level
    assert np.abs(found - expected).max() <= limit


def torch_resize(pixels, size, interpolation):
    channels_first = torch.tensor(pixels).permute(2, 0, 1)[None].float()
    corners = {} if interpolation == "nearest" else {"align_corners": False}
    expected = torch.nn.functional.interpolate(
        channels_first, size=size, mode=interpolation, **corners
    )
    return expected[0].permute(1, 2, 0).numpy()
