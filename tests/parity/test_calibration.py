"""Which values INT8 is to hold."""

import itertools

import numpy as np
import pytest

from deploykit.parity.calibration import CALIBRATION_METHODS, ValueRange, calibration_methods


def seen(*batches):
    found = ValueRange()
    for image in itertools.chain(*batches):
        found.add(np.asarray(image, np.float32))
    return found


def test_minmax_covers_every_image():
    found = seen([[1.0, -2.0], [0.5, 0.25]], [[7.0, 3.0]])
    assert found.interval("minmax") == (-2.0, 7.0)


def test_trimmed_skips_a_distant_image():
    photos = np.tile([-1.0, 2.0], (40, 1))
    photos[7] = -100.0, 200.0
    found = seen(photos[:20], photos[20:])
    assert found.interval("minmax") == (-100.0, 200.0)
    assert found.interval("trimmed") == (-1.0, 2.0)


@pytest.mark.parametrize(("photos", "left_out"), [(4, 0), (19, 0), (20, 1), (39, 1), (64, 3)])
def test_trimmed_skips_at_most_a_twentieth(photos, left_out):
    found = seen([[float(n), -2.0 * n] for n in range(1, photos + 1)])
    last = photos - left_out
    assert found.interval("trimmed") == (-2 * last, last)
    assert ("trimmed" in calibration_methods(photos)) == (left_out > 0)


@pytest.mark.parametrize("method", CALIBRATION_METHODS)
@pytest.mark.parametrize(("values", "interval"), [([[3.0, 4.0]], (0, 4)), ([[-5.0]], (-5, 0))])
def test_interval_includes_zero(method, values, interval):
    assert seen(values).interval(method) == interval


@pytest.mark.parametrize("method", CALIBRATION_METHODS)
@pytest.mark.parametrize("values", [[], [[0.0, 0.0]], [[]]])
def test_interval_of_zeros(method, values):
    assert seen(values).interval(method) == (0, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_value_range_skips_non_finite_images(value):
    found = seen([[1.0, 2.0]])
    assert found.is_finite
    for image in [value, 5.0], [3.0, 0.0]:
        found.add(np.array(image, np.float32))
    assert not found.is_finite
    assert found.interval("minmax") == (0, 3)
