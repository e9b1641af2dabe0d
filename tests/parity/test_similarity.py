import numpy as np
import pytest

from deploykit.parity.similarity import both_zero, cosine_similarities, similarity_of


def rows(*values):
    return np.array(values, np.float32)


def test_cosine_similarities_of_known_angles():
    right = rows([1, 0], [1, 0], [1, 0], [3, 4])
    found = rows([2, 0], [0, 5], [-1, 0], [6, 8])
    assert cosine_similarities(right, found) == pytest.approx([1, 0, -1, 1])


def test_cosine_similarities_of_zeros_and_of_no_numbers():
    right = rows([0, 0], [0, 0], [1, 1], [1, 1], [np.inf, 1])
    found = rows([0, 0], [0, 1], [0, 0], [np.nan, 1], [np.inf, 1])
    assert cosine_similarities(right, found).tolist() == [1, 0, 0, -1, -1]
    assert both_zero(right, found).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("scale", [1e-38, 1.0, 3e38])
def test_cosine_similarities_at_the_ends_of_float32(scale):
    right, found = rows([scale, scale]), rows([scale, 0])
    assert cosine_similarities(right, found) == pytest.approx([np.sqrt(0.5)])


def test_similarity_is_of_the_worst_image():
    found = similarity_of(["a", "b", "c"], np.array([1, 0.9998, 1]), np.zeros(3, bool))
    assert (found.images, found.smallest, found.path, found.passed) == (3, 0.9998, "b", False)
    assert similarity_of(["a"], np.array([0.99999]), np.zeros(1, bool)).passed


def test_similarity_of_zeros_alone_proves_nothing():
    assert not similarity_of(["a", "b"], np.ones(2), np.ones(2, bool)).passed
    assert similarity_of(["a", "b"], np.ones(2), np.array([True, False])).passed
    assert not similarity_of([], np.ones(0), np.ones(0, bool)).passed
