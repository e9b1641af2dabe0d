import math

import numpy as np
import pytest

from deploykit.parity.layers import TensorError, answer_tolerance, layer_tolerance


def error_of(*pairs):
    error = TensorError()
    for found, reference in pairs:
        error.add(np.array(found, np.float32), np.array(reference, np.float32))
    return error


def test_tensor_error_adds_norms_over_images():
    error = error_of(([3.0, 0.0], [0.0, 0.0]), ([0.0, 8.0], [0.0, 12.0]))
    assert error.relative == pytest.approx(5 / 12)


def test_tensor_error_of_half_precision():
    error = TensorError()
    error.add(np.array([60000, 60000], np.float16), np.array([60000, 60000], np.float32))
    assert error.relative < 1e-3  # its squares overflow in FP16


def test_tensor_error_of_zeros():
    assert error_of(([0.0], [0.0])).relative == 0
    assert error_of(([1e-9], [0.0])).relative == 1


def test_tensor_error_counts_non_finite_values():
    error = error_of(([math.inf, math.nan, 1.0], [math.inf, 2.0, 1.0]))
    assert error.non_finite == 1
    assert error.relative == math.inf


def test_tensor_error_skips_non_finite_references():
    error = error_of(([math.inf, 5.0, 1.1], [math.inf, math.nan, 1.0]))
    assert (error.non_finite, error.reference_non_finite, error.compared) == (0, 2, 1)
    assert error.relative == pytest.approx(0.1)


def test_tensor_error_of_a_non_finite_reference():
    error = error_of(([math.nan, 1.0], [math.nan, math.inf]))
    assert error.nothing_to_compare
    assert error.relative == math.inf
    error.add(np.ones(2), np.ones(2))
    assert error.relative == 0


def test_tensor_error_of_an_empty_tensor():
    assert error_of(([], [])).relative == 0


def test_tensor_error_of_another_shape():
    error = error_of(([1.0, 2.0], [1.0]), ([1.0], [1.0]))
    assert error.relative == math.inf
    assert error.failure == "gives shape (2,) instead of (1,)"


def test_answer_tolerance_exceeds_layer_tolerance():
    assert 0 < layer_tolerance("fp32") < layer_tolerance("fp16")
    for precision in ("fp32", "fp16", "int8"):
        assert answer_tolerance(precision) > layer_tolerance(precision)
