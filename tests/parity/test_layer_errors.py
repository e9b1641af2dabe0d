import math

import numpy as np
import pytest

from deploykit.parity.layers import TensorError, answer_tolerance, layer_tolerance


def error_of(*pairs):
    error = TensorError()
    for found, reference in pairs:
        error.add(np.array(found, np.float32), np.array(reference, np.float32))
    return error


def test_the_norms_are_added_up_over_images():
    error = error_of(([3.0, 0.0], [0.0, 0.0]), ([0.0, 8.0], [0.0, 12.0]))
    assert error.relative == pytest.approx(5 / 12)


def test_half_precision_is_compared_in_full():
    error = TensorError()
    error.add(np.array([60000, 60000], np.float16), np.array([60000, 60000], np.float32))
    assert error.relative < 1e-3  # its squares overflow in FP16


def test_what_should_be_zero():
    assert error_of(([0.0], [0.0])).relative == 0
    assert error_of(([1e-9], [0.0])).relative == 1


def test_a_value_that_is_not_finite_counts_where_the_reference_is():
    error = error_of(([math.inf, math.nan, 1.0], [math.inf, 2.0, 1.0]))
    assert error.non_finite == 1
    assert error.relative == math.inf


def test_where_the_reference_is_not_finite_nothing_is_compared():
    error = error_of(([math.inf, 5.0, 1.1], [math.inf, math.nan, 1.0]))
    assert (error.non_finite, error.reference_non_finite, error.compared) == (0, 2, 1)
    assert error.relative == pytest.approx(0.1)


def test_a_reference_without_a_finite_value_shows_nothing():
    error = error_of(([math.nan, 1.0], [math.nan, math.inf]))
    assert error.nothing_to_compare
    assert error.relative == math.inf
    error.add(np.ones(2), np.ones(2))
    assert error.relative == 0


def test_an_empty_tensor_lacks_nothing():
    assert error_of(([], [])).relative == 0


def test_another_shape():
    error = error_of(([1.0, 2.0], [1.0]), ([1.0], [1.0]))
    assert error.relative == math.inf
    assert error.failure == "gives shape (2,) instead of (1,)"


def test_a_whole_network_may_be_further_off_than_a_node():
    assert 0 < layer_tolerance("fp32") < layer_tolerance("fp16")
    for precision in ("fp32", "fp16", "int8"):
        assert answer_tolerance(precision) > layer_tolerance(precision)
