"""The numbers of training are torchvision's and torch's, so that runs can be compared."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import random_split
from torchvision import transforms

from deploykit.commands.train.photos import split_photos
from deploykit.errors import ImagesError
from deploykit.runtime.normalisation import network_input
from deploykit.specs.preprocessing import Preprocessing


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)])
def test_normalises_as_torchvision_does(mean):
    preprocessing = Preprocessing(mean=mean, std=(0.229, 0.224, 0.225))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    before = images.copy()
    steps = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(preprocessing.mean, preprocessing.std)]
    )
    expected = torch.stack([steps(Image.fromarray(image)) for image in images])
    found = network_input(images, preprocessing, torch.device("cpu"))
    assert torch.equal(found, expected)
    assert found.is_contiguous()
    assert np.array_equal(images, before)


@pytest.mark.parametrize(("count", "fraction"), [(565, 0.2), (10, 0.3), (7, 0.5)])
def test_splits_as_random_split_does(count, fraction):
    train_count = int((1 - fraction) * count)
    generator = torch.Generator().manual_seed(7)
    parts = random_split(range(count), [train_count, count - train_count], generator)
    train, test = split_photos(count, fraction, seed=7)
    assert (train.tolist(), test.tolist()) == tuple(list(part.indices) for part in parts)


def test_a_product_just_below_a_whole_number_means_it():
    train, test = split_photos(20, 0.9, seed=0)  # 20 * (1 - 0.9) is 1.9999999999999996
    assert (len(train), len(test)) == (2, 18)


@pytest.mark.parametrize(("count", "fraction"), [(2, 0.2), (3, 0.9), (1000, 1e-12)])
def test_refuses_a_split_that_leaves_a_part_empty(count, fraction):
    with pytest.raises(ImagesError, match="too few"):
        split_photos(count, fraction, seed=0)
