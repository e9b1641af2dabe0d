"""A session's input is torchvision's, in every bit."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from deploykit.runtime._base import normalised
from deploykit.specs.preprocessing import Preprocessing


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)])
def test_normalised_as_torchvision(mean):
    preprocessing = Preprocessing(mean=mean, std=(0.229, 0.224, 0.225))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    before = images.copy()
    steps = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(preprocessing.mean, preprocessing.std)]
    )
    expected = torch.stack([steps(Image.fromarray(image)) for image in images])
    found = torch.from_numpy(normalised(images, preprocessing))
    assert torch.equal(found, expected)
    assert found.is_contiguous()
    assert np.array_equal(images, before)
