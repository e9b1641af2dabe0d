import numpy as np
import pytest

from deploykit.parity.measures import measure
from deploykit.parity.mining import MarginMining, lost_margin, population_of
from deploykit.parity.tolerance import Population, tolerance_for
from deploykit.specs.heads import SingleLabel
from deploykit.specs.model import Labels

SINGLE = SingleLabel()
LABELS = Labels(names=("dark", "bright", "grey"), source="test")


def logits_with(margins, scale=10.0):
    """Two classes that are the margin apart, and a third without a chance: its logit is the scale.

    Their mean is 0, so that the scale is each image's own.
    """
    margins = np.asarray(margins, np.float32)
    best = np.full_like(margins, scale / 2)
    return np.stack([best, best - margins, margins - scale], axis=1)


def measured(reference, candidate, precision="fp16"):
    return measure(
        reference,
        candidate,
        precision=precision,
        paths=[f"{i}.jpg" for i in range(len(reference))],
        labels=LABELS,
        batch_sizes=[1],
    )


def mining(**changes):
    fields = {
        "compared": 20,
        "ranked": 225,
        "ranked_by": "deploy/fp32.onnx on onnxruntime-cpu",
        "ranking_error": 0.0,
        "smallest_skipped": 0.5,
        "lost": {"deploy/fp16.onnx on rehearsal": 0.01},
    }
    return MarginMining(**{**fields, **changes})


def test_lost_margin_by_difference_of_changes():
    reference = np.array([[3, 2, 1], [0, 0, 0]], np.float32)
    together = reference + np.array([[5], [-7]], np.float32)
    assert lost_margin(reference, together, SINGLE) == 0
    apart = reference + np.array([[-1, 2, 0], [0, 0, 0]], np.float32)
    assert lost_margin(reference, apart, SINGLE) == 3


def test_lost_margin_by_the_margin_is_a_flip():
    reference = logits_with([0.5])
    for change, flips in ((0.24, 0), (0.26, 1)):
        candidate = reference + np.array([[-change, change, 0]], np.float32)
        assert lost_margin(reference, candidate, SINGLE) == pytest.approx(2 * change, rel=1e-5)
        assert measured(reference, candidate).flips == flips


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_lost_margin_of_non_finite_logits(value):
    reference = logits_with([1, 1])
    broken = reference.copy()
    broken[1, 0] = value
    assert lost_margin(reference, broken, SINGLE) == np.inf
    assert lost_margin(broken, reference, SINGLE) == np.inf


def test_population_counts_all_ranked_images():
    # Of 100 photos four decide nothing in any precision, and two more in fp32 only.
    margins = np.array([0.0005] * 4 + [0.02] * 2 + [5.0] * 94)
    reference = logits_with(margins[:10])
    found = measured(reference, reference.copy())
    assert found.undecidable == 6
    assert tolerance_for("fp16").reasons(found) != ()
    ranked = SINGLE.relative_margins(logits_with(margins))[:, 0]
    among = population_of(ranked, "fp16", found, others_hold=True)
    assert among == Population(images=100, undecidable=6)
    assert population_of(ranked, "fp32", measured(*[reference] * 2, "fp32"), others_hold=True) == (
        Population(images=100, undecidable=4)
    )
    assert tolerance_for("fp16").reasons(found, among) == ()


@pytest.mark.parametrize(("flips", "passes"), [(1, True), (2, False)])
def test_population_limits_flips(flips, passes):
    """One of 300 is a third of a percent, of 10 it would be ten."""
    reference = logits_with([0.06] * 10)
    candidate = reference.copy()
    candidate[:flips, :2] = candidate[:flips, 1::-1]
    found = measured(reference, candidate)
    assert found.flips == flips
    assert tolerance_for("fp16").reasons(found)[0].startswith(f"{flips} of 10 images changed")
    reasons = tolerance_for("fp16").reasons(
        found,
        population_of(np.array([0.06] * 10 + [5.0] * 290), "fp16", found, others_hold=True),
    )
    assert [text for text in reasons if "changed their class" in text] == (
        [] if passes else ["2 of 300 images changed their class; at most 0.5% may"]
    )


@pytest.mark.parametrize("others_hold", [True, False])
def test_population_counts_flips_only_if_others_hold(others_hold):
    """Twenty of twenty changed, 10,000 were ranked: that is 0.2 %, or nobody knows how many."""
    reference = logits_with([0.06] * 20)
    found = measured(reference, reference + np.float32([-0.031, 0.031, 0]))
    ranked = np.array([0.06] * 20 + [5.0] * 9_980)
    among = population_of(ranked, "fp16", found, others_hold=others_hold)
    reasons = tolerance_for("fp16").reasons(found, among)
    assert reasons == tolerance_for("fp16").exceeded(found, among)
    assert reasons == (
        () if others_hold else ("20 of 20 images changed their class; at most 0.5% may",)
    )


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"lost": {"graph": 0.5}}, False),
        ({"lost": {"graph": 0.3}, "ranking_error": 0.2}, False),
        ({"lost": {"graph": 0.3}, "ranking_error": 0.19}, True),
        ({"lost": {"graph": np.inf}}, False),
        ({"lost": {"graph": np.inf}, "smallest_skipped": None}, True),
    ],
)
def test_others_hold_if_nothing_moves_as_far(changes, holds):
    found = mining(**{"lost": {"graph": 0.01}, **changes})
    assert found.others_hold("graph") is holds


def test_population_follows_undecidable_reference():
    reference = logits_with([0.0] * 10)
    found = measured(reference, reference.copy())
    among = population_of(np.full(20, 5.0), "fp16", found, others_hold=True)
    assert (among.decidable, among.undecidable) == (10, 10)
    assert tolerance_for("fp16").reasons(found, among) == ()
    among = population_of(np.full(19, 5.0), "fp16", found, others_hold=True)
    assert tolerance_for("fp16").reasons(found, among) != ()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_population_excuses_no_nan_or_error(precision):
    many = Population(images=10**6, undecidable=0)
    tolerance = tolerance_for(precision)
    reference = logits_with([1, 1])
    nothing = measured(reference[:0], reference[:0], precision)
    assert tolerance.reasons(nothing, many) == ("no image was compared",)
    broken = reference * np.float32(np.nan)
    found = measured(reference, broken, precision)
    assert tolerance.reasons(found, many) == ("6 logits are NaN or infinite",)
    moved = reference + np.array([[0, -1, 0]], np.float32)
    assert tolerance.reasons(measured(reference, moved, precision), many) != ()


def test_measure_with_least_scale():
    reference = logits_with([0.5], scale=2.0)
    found = measure(
        reference,
        reference + np.float32(0.1),
        precision="fp32",
        paths=["0.jpg"],
        labels=LABELS,
        batch_sizes=[1],
        least_scale=10.0,
    )
    assert found.scale == 10.0
    assert found.max_relative_error == pytest.approx(0.01, rel=1e-5)


def test_sentences_of_mining():
    ranked, bound, left_out, reach = mining().sentences
    assert "225 photos were ranked by the margins that deploy/fp32.onnx" in ranked
    assert "the 20 with the lowest were compared" in ranked
    assert "no bound" in bound
    assert "is no proof" in bound
    assert "of the 205 other photos is 0.5:" in left_out
    assert reach.endswith("took at most 0.01 off a margin: it would take 50 times that.")


@pytest.mark.parametrize(
    ("apart", "ranking_error", "words"),
    [
        (0.5, 0.0, "alone. Compare all photos, without --lowest-margins."),
        (
            float("inf"),
            0.0,
            "alone. Compare all photos, without --lowest-margins.",
        ),
        (0.2, 0.1, "it would take 2.0 times that."),
        (0.2, 0.4, "alone. Compare all photos, without --lowest-margins."),
        (0.0, 0.0, "nothing moved."),
    ],
)
def test_sentences_of_mining_claim_no_more_than_measured(apart, ranking_error, words):
    found = mining(lost={"graph on runtime": apart}, ranking_error=ranking_error)
    assert found.sentences[3].endswith(words)


def test_sentences_of_an_uncertain_ranking():
    assert "uncertain" in mining(ranking_error=0.6).sentences[-1]
    assert not any("uncertain" in sentence for sentence in mining(ranking_error=0.4).sentences)


def test_sentences_of_mining_that_compared_all():
    found = mining(compared=225, smallest_skipped=None)
    assert found.sentences[-1] == (
        "All were compared: without --lowest-margins the same photos give a bound."
    )
