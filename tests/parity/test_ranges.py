import numpy as np
import pytest

from deploykit.parity.ranges import FP16_MAX, MAX_ROUNDING_LOSS, RangeScan

NORMAL = np.random.default_rng(0).standard_normal((3, 40, 5, 5)).astype(np.float32)


def range_of(*batches):
    scan = RangeScan()
    for batch in batches:
        scan.add({"t": np.asarray(batch, np.float32)})
    (found,) = scan.ranges()
    return found


def measured_loss(row):
    error = row.astype(np.float64) - row.astype(np.float16)
    return np.linalg.norm(error) / np.linalg.norm(row.astype(np.float64))


def test_range_scan_of_ordinary_values():
    found = range_of(NORMAL)
    assert (found.name, found.images) == ("t", 3)
    assert found.max_abs == np.abs(NORMAL).max()
    assert max(map(measured_loss, NORMAL)) <= found.rounding_loss <= 2**-10
    assert not found.overflows
    assert found.fits


@pytest.mark.parametrize("scale", [1e-3, 1e-5, 1e-6, 3e-7, 1e-7, 1e-8, 1e-30, 1e-42])
def test_range_scan_of_small_values(scale):
    tensor = NORMAL * np.float32(scale)
    expected = max(map(measured_loss, tensor))
    found = range_of(tensor)
    if expected > MAX_ROUNDING_LOSS:
        assert found.rounding_loss == pytest.approx(expected, rel=1e-6)
        assert not found.fits
    else:
        assert expected <= found.rounding_loss <= MAX_ROUNDING_LOSS
        assert found.fits
    assert found.fits is (scale >= 1e-5)
    assert not found.overflows


@pytest.mark.parametrize(
    ("value", "fits"),
    [(65504, True), (-65504, True), (65505, False), (-65505, False), (1e30, False)],
)
def test_range_scan_at_the_largest_fp16_number(value, fits):
    tensor = NORMAL.copy()
    tensor[1, 2, 3, 4] = value
    found = range_of(tensor)
    assert found.max_abs == pytest.approx(abs(value), rel=1e-7)
    assert found.fits is fits
    assert found.overflows is not fits
    assert np.isinf(found.rounding_loss) is not np.bool_(fits)
    assert np.float16(FP16_MAX) == np.finfo(np.float16).max


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_range_scan_of_non_finite_values(value):
    tensor = NORMAL.copy()
    tensor[2, 0, 0, 0] = value
    found = range_of(NORMAL, tensor, NORMAL)
    assert (found.max_abs, found.rounding_loss) == (np.inf, np.inf)
    assert not found.fits


def test_range_scan_of_zeros():
    found = range_of(np.zeros((2, 4)))
    assert (found.max_abs, found.rounding_loss, found.images) == (0, 0, 2)
    assert found.fits


def test_range_scan_takes_the_worst_image():
    small = NORMAL[:1] * np.float32(1e-7)
    together = range_of(np.concatenate([NORMAL, small]))
    assert together.rounding_loss == pytest.approx(measured_loss(small[0]), rel=1e-6)
    assert together == range_of(NORMAL, small)
    assert together == range_of(small, NORMAL)


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (2, 0), (1,)])
def test_range_scan_of_any_shape(shape):
    found = range_of(np.full(shape, 0.5))
    assert found.images == (shape[0] if shape and shape[0] else 1)
    assert found.max_abs == (0.5 if 0 not in shape else 0)
    assert found.fits


def test_range_scan_of_tensors_without_batch():
    """Its small values are small beside the others only together with them."""
    tensor = np.array([[1], [1e-7], [0]], np.float32)
    scans = {images: RangeScan() for images in (None, 2, 3)}
    for images, scan in scans.items():
        scan.add({"t": tensor}, images)
        scan.add({"t": tensor}, images)
    found = {images: scan.ranges()[0] for images, scan in scans.items()}
    assert (found[2].fits, found[2].images) == (True, 4)
    assert (found[3].fits, found[3].images) == (False, 6)
    assert found[None] == found[3]


def test_range_scan_keeps_order_of_tensors():
    scan = RangeScan()
    scan.add({"b": NORMAL, "a": NORMAL * 2})
    scan.add({"a": NORMAL, "b": NORMAL})
    assert [(found.name, found.images) for found in scan.ranges()] == [("b", 6), ("a", 6)]


def test_range_scan_leaves_its_input_unchanged():
    tensor = NORMAL * np.float32(1e-7)
    tensor.flags.writeable = False
    before = tensor.copy()
    range_of(tensor)
    assert np.array_equal(tensor, before)
