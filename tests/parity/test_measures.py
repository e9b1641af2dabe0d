import msgspec
import numpy as np
import pytest

from deploykit.parity.measurement import Measurement
from deploykit.parity.measures import decides, measure
from deploykit.parity.tolerance import tolerance_for
from deploykit.specs.heads import SingleLabel, softmax
from deploykit.specs.model import Labels
from deploykit.specs.value import decode_json

SINGLE = SingleLabel()
LABELS = Labels(names=("bird", "dog", "food"), source="test")
REFERENCE = np.array([[4, 1, 0], [0, 2, 1], [1, 1.5, 3], [2, 0, 1.9]], np.float32)


def measured(candidate, reference=REFERENCE, precision="fp32"):
    return measure(
        reference,
        candidate,
        precision=precision,
        paths=[f"{i}.jpg" for i in range(len(reference))],
        labels=Labels(names=LABELS.names[: reference.shape[1]], source="test"),
        batch_sizes=[2, 1, 1],
    )


def reasons(measurement, precision="fp32"):
    return tolerance_for(precision).reasons(measurement)


def test_measure_of_equal_logits():
    found = measured(REFERENCE.copy())
    assert (found.images, found.batch_sizes, found.scale) == (4, (1, 2), 4.0)
    assert (found.max_abs_error, found.p99_probability_change) == (0, 0)
    assert (found.flips, found.undecidable, found.flipped, found.non_finite) == (0, 0, (), 0)
    assert found.flip_rate_bound == pytest.approx(1 - 0.05**0.25)
    assert reasons(found) == ()


def test_measure_of_errors_relative_to_scale():
    candidate = REFERENCE.copy()
    candidate[1, 2] += 0.002
    found = measured(candidate)
    assert found.max_abs_error == pytest.approx(0.002, rel=1e-3)
    assert found.max_relative_error == pytest.approx(0.0005, rel=1e-3)
    assert "5.0e-04 of the scale" in reasons(found)[0]
    assert reasons(found, "fp16") == ()


def test_measure_of_a_flip():
    candidate = REFERENCE.copy()
    candidate[3] = [1.9, 0, 2]
    found = measured(candidate)
    assert (found.flips, found.undecidable) == (1, 0)
    (flip,) = found.flipped
    assert (flip.path, flip.reference, flip.candidate) == ("3.jpg", "bird", "food")
    assert flip.margin == pytest.approx(0.1, rel=1e-3)
    assert flip.decidable
    assert any("1 of 4 images changed their class" in text for text in reasons(found))


def test_measure_of_an_undecidable_flip():
    reference = np.tile(REFERENCE, (10, 1))
    reference[0] = [1.0001, 1.0, -2]
    candidate = reference.copy()
    candidate[0] = [1.0, 1.0001, -2]
    found = measured(candidate, reference)
    assert (found.flips, found.undecidable, found.decidable) == (0, 1, 39)
    assert not found.flipped[0].decidable
    assert reasons(found) == ()


def test_measure_undecidable_below_fp32():
    reference = np.array([[4, 0, 0], [1.01, 1, -2]], np.float32)
    assert measured(reference, reference, "fp32").undecidable == 0
    assert measured(reference, reference, "fp16").undecidable == 1


@pytest.mark.parametrize(
    ("row", "fp32", "fp16"),
    [
        ([1.0001, 1, -2], False, False),
        ([1.0003, 1, -2], True, False),
        ([1.009, 1, -2], True, False),
        ([1.011, 1, -2], True, True),
        # What is added to all of an image's logits, or multiplies them, changes nothing.
        ([1001.011, 1001, 998], True, True),
        ([1.011e6, 1e6, -2e6], True, True),
        ([1.009e6, 1e6, -2e6], True, False),
        # Beyond FP16, and at the end of FP32.
        ([70_000, 60_000, -65_504], True, True),
        ([3e38, -3e38, -3e38], True, True),
        # Two classes are as far from their mean as they can be: only probabilities tell.
        ([0.0001, 0], True, True),
        ([100.0001, 100], True, True),
        ([1e-6, 0], False, False),
        # Each has a third of the probability: an untrained network, however it is scaled.
        ([5e-14, 0, -3e-14], False, False),
        ([2.9e-6, 0, 0], False, False),
        ([3.1e-6, 0, 0], True, True),
        # Nothing to decide.
        ([2, 2, 0], False, False),
        ([7, 7, 7], False, False),
        ([0, 0, 0], False, False),
        ([5], False, False),
        ([np.nan, 1, 0], False, False),
        ([np.inf, 1, 0], False, False),
    ],
)
def test_decides_by_the_images_own_logits(row, fp32, fp16):
    for precision, right in (("fp32", fp32), ("fp16", fp16), ("bf16", fp16), ("int8", fp16)):
        assert decides(np.array([row]), SINGLE, precision).tolist() == [right]
    loud = np.array([row, 30 * np.array(row)])
    assert decides(loud, SINGLE, "fp16")[0] == fp16


def test_relative_margins_of_no_row():
    assert SINGLE.relative_margins(np.zeros((0, 3))).tolist() == []
    assert SINGLE.relative_margins([[4, 1, 1], [2, 2, 0]]).tolist() == [[1.5], [0]]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_measure_of_one_loud_image_hides_no_flips(precision):
    """Nine of 200 decisions change; one image's logits are 30 times as large as the others'."""
    rng = np.random.default_rng(0)
    reference = rng.normal(0, 0.1, (200, 3))
    reference[np.arange(200), np.arange(200) % 3] += 3
    reference[:9, 1:] = [2.95, -3]  # within 5e-3 of 30 times the scale
    reference[:9, 0] = 3
    reference[199] *= 30
    candidate = reference.copy()
    candidate[:9, :2] = candidate[:9, 1::-1]
    found = measured(candidate.astype(np.float32), reference.astype(np.float32), precision)
    assert (found.flips, found.undecidable_flips, found.undecidable) == (9, 0, 0)
    assert reasons(found, precision)[0].startswith("9 of 200 images changed their class")
    assert tolerance_for(precision).exceeded(found)


def test_measure_of_a_common_offset_hides_no_flips():
    reference = np.tile(REFERENCE, (10, 1))
    candidate = reference.copy()
    candidate[3] = [1.9, 0, 2]
    for offset in (0, 1000):
        found = measured(candidate + np.float32(offset), reference + np.float32(offset), "int8")
        assert (found.flips, found.undecidable) == (1, 0)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_measure_of_constant_logits_does_not_pass(precision):
    constant = np.ones((40, 3), np.float32)
    found = measured(constant.copy(), constant, precision)
    assert (found.flips, found.undecidable, found.flip_rate_bound) == (0, 40, None)
    assert reasons(found, precision) == (
        "the reference does not decide 40 of 40 images, whose margins are within rounding; it must "
        "decide at least 50%",
    )
    assert tolerance_for(precision).exceeded(found) == ()  # which speaks against no candidate


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_measure_of_one_class_does_not_pass(precision):
    one = np.linspace(-3, 3, 40, dtype=np.float32)[:, None]
    assert "does not decide 40 of 40 images" in reasons(measured(one, one, precision), precision)[0]


def clear_and_close(close, images=40):
    """Images; in the last few, ``close``, the margin decides in fp32 only."""
    reference = np.tile(REFERENCE[:1], (images, 1))
    reference[images - close :] = [1.01, 1, -2]
    return reference


@pytest.mark.parametrize(("close", "passes"), [(20, True), (21, False)])
def test_measure_of_close_images_in_fp16(close, passes):
    reference = clear_and_close(close)
    found = measured(reference.copy(), reference, "fp16")
    assert (found.undecidable, found.undecidable_flips) == (close, 0)
    assert (reasons(found, "fp16") == ()) is passes


@pytest.mark.parametrize(("images", "allowed"), [(24, 1), (199, 1), (200, 2), (1000, 10)])
def test_measure_of_undecidable_flips_at_a_rate_of_their_own(images, allowed):
    """One may turn by rounding, or 1 % of the images: a half of the photos is not excused."""
    reference = clear_and_close(12, images)
    for flipped in (allowed, allowed + 1):
        candidate = reference.copy()
        candidate[images - flipped :] = [1, 1.01, -2]
        found = measured(candidate, reference, "fp16")
        assert (found.flips, found.undecidable_flips) == (0, flipped)
        exceeded = tolerance_for("fp16").exceeded(found)
        assert (exceeded == ()) is (flipped == allowed)
        assert reasons(found, "fp16") == exceeded
    assert exceeded[0] == (
        f"{flipped} of {images:,} images changed their class with a margin too small to decide; "
        "at most 1% may"
    )


def test_measure_of_zero_logits_does_not_pass():
    zeros = np.zeros((40, 3), np.float32)
    assert reasons(measured(zeros.copy(), zeros)) != ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_measure_of_non_finite_logits_does_not_pass(value, side, precision):
    sides = {"reference": REFERENCE.copy(), "candidate": REFERENCE.copy()}
    sides[side][2, 1] = value
    found = measured(sides["candidate"], sides["reference"], precision)
    assert found.non_finite == 1
    assert (found.max_abs_error, found.max_relative_error) == (0, np.inf)
    assert found.max_probability_change == 1
    assert decode_json(msgspec.json.encode(found), Measurement) == found
    assert reasons(found, precision) == ("1 logit is NaN or infinite",)


def test_measure_of_all_logits_non_finite():
    found = measured(np.full_like(REFERENCE, np.nan))
    assert (found.non_finite, found.undecidable) == (12, 4)
    assert reasons(found) != ()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_measure_of_no_image_does_not_pass(precision):
    found = measured(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), precision)
    assert reasons(found, precision) == ("no image was compared",)


def test_measure_refuses_unequal_shapes():
    with pytest.raises(ValueError, match="do not fit"):
        measured(REFERENCE[:2])


@pytest.mark.parametrize(
    ("precision", "change", "passes"),
    [("fp16", 0.019, True), ("fp16", 0.021, False), ("int8", 0.09, True), ("int8", 0.11, False)],
)
def test_tolerance_of_probability_changes(precision, change, passes):
    reference = np.log(np.array([[0.7, 0.3]]))
    candidate = np.log(np.array([[0.7 - change, 0.3 + change]]))
    found = measured(candidate.astype(np.float32), reference.astype(np.float32), precision)
    assert found.max_probability_change == pytest.approx(change, abs=1e-6)
    assert (reasons(found, precision) == ()) is passes


@pytest.mark.parametrize(
    ("images", "far", "judged", "passes"),
    [(99, 1, 0.2, False), (100, 1, 0.01, True), (100, 2, 0.2, False), (300, 3, 0.01, True),
     (300, 4, 0.2, False), (700, 7, 0.01, True)],
)  # fmt: skip
def test_tolerance_of_probability_changes_is_of_their_99th_percentile(images, far, judged, passes):
    changes = np.full((images, 1), 0.01)
    changes[:far] = 0.2
    reference = np.tile([[0.1, 0.9]], (images, 1))
    candidate = reference + np.hstack([changes, -changes])
    found = measured(np.log(candidate), np.log(reference), "int8")
    assert found.p99_probability_change == pytest.approx(judged)
    assert found.max_probability_change == pytest.approx(0.2)
    assert (reasons(found, "int8") == ()) is passes
    if not passes:
        assert reasons(found, "int8") == (
            "the 99th percentile of the changes of probability is 0.2000 (the largest 0.2000); "
            "at most 0.1 is allowed",
        )


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 0), ("fp16", 2), ("int8", 4)])
def test_tolerance_of_flips(precision, allowed):
    # Two classes with probabilities near a half: a flip that changes no probability by 0.02.
    reference = np.tile(np.array([[0.515, 0.485]]), (400, 1))
    for flips in (allowed, allowed + 1):
        candidate = reference.copy()
        candidate[:flips] = [[0.497, 0.503]]
        found = measured(
            np.log(candidate).astype(np.float32), np.log(reference).astype(np.float32), precision
        )
        assert found.flips == flips
        failed = any("changed their class" in text for text in reasons(found, precision))
        assert failed is (flips > allowed)


def test_measure_lists_flips_by_margin():
    candidate = REFERENCE[:, [1, 2, 0]]
    margins_found = [flip.margin for flip in measured(candidate).flipped]
    assert margins_found == sorted(margins_found, reverse=True)
    assert len(margins_found) == 4


def test_softmax_and_margins_of_huge_logits():
    logits = np.array([[1000.0, 999.0], [-1000.0, -1000.0]])
    assert softmax(logits)[0] == pytest.approx([0.731059, 0.268941], abs=1e-6)
    assert softmax(logits)[1] == pytest.approx([0.5, 0.5])
    assert SINGLE.margins(logits).tolist() == [1.0, 0.0]


def test_margins_of_what_decides_nothing_are_zero():
    logits = np.array([[1, 4, 0], [np.nan, 1, 0], [2, 2, 0], [np.inf, 1, 0]], np.float32)
    assert SINGLE.margins(logits).tolist() == [3, 0, 0, 0]
    assert SINGLE.margins(logits[:, :1]).tolist() == [0, 0, 0, 0]
    assert SINGLE.margins(np.zeros((0, 3))).tolist() == []
