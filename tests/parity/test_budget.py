"""What a user allows a graph below FP32, and what is judged by it."""

import msgspec
import numpy as np
import pytest

from deploykit.errors import UsageError
from deploykit.parity.budget import Budget
from deploykit.parity.measures import measure
from deploykit.parity.tolerance import tolerance_for
from deploykit.specs.model import Labels

LABELS = Labels(names=("hen", "owl"), source="test")


@pytest.mark.parametrize(
    ("text", "rate"),
    [("1%", 0.01), ("1 %", 0.01), ("0.7%", 0.007), (" .5% ", 0.005), ("0.01", 0.01), (0.01, 0.01),
     ("0", 0), ("100%", 1), (0, 0), (0.00001, 0.00001), (1 / 3, 0.333333333333)],
)  # fmt: skip
def test_budget_parse_flips(text, rate):
    assert Budget.parse(text, None) == Budget(max_flip_rate=rate)


@pytest.mark.parametrize(
    "text",
    ["-1%", "-0.1", "101%", "1.5", "one", "", "%", "nan", "inf", "0,5%", "1%%", "1_0%", "1e9%",
     "\u0661%", -0.01, 2, float("nan"), float("inf"), True, "9" * 400 + "%"],
)  # fmt: skip
def test_budget_parse_bad_flips(text):
    with pytest.raises(UsageError) as caught:
        Budget.parse(text, None)
    assert "--max-flips 1%" in caught.value.hint


@pytest.mark.parametrize("text", ["1", "1.0", 1, 1.0])
def test_budget_parse_one_is_ambiguous(text):
    with pytest.raises(UsageError, match="every image, or 1 % of them"):
        Budget.parse(text, None)


@pytest.mark.parametrize(("text", "points"), [("1", 1), ("0.5", 0.5), (2, 2), ("0", 0)])
def test_budget_parse_accuracy_drop(text, points):
    assert Budget.parse(None, text) == Budget(max_accuracy_drop=points)


@pytest.mark.parametrize("text", ["-1", "101", "1%", "one", "", "nan", "inf", -0.5])
def test_budget_parse_bad_accuracy_drop(text):
    with pytest.raises(UsageError) as caught:
        Budget.parse(None, text)
    assert "--max-accuracy-drop 1" in caught.value.hint


def test_budget_parse_nothing():
    assert Budget.parse(None, None) is None
    with pytest.raises(UsageError):
        Budget()


@pytest.mark.parametrize("fields", [{"max_flip_rate": 1.1}, {"max_accuracy_drop": -1}, {}])
def test_budget_read_from_json_is_checked(fields):
    with pytest.raises((UsageError, msgspec.ValidationError)):
        msgspec.json.decode(msgspec.json.encode(fields), type=Budget)


def test_budget_words_and_options():
    budget = Budget.parse("0.7%", 1)
    assert str(budget) == (
        "at most 0.7 % of the decisions may change and the accuracy may fall by at most 1 point"
    )
    assert budget.options == ("--max-flips", "0.7%", "--max-accuracy-drop", "1")
    assert Budget.parse(budget.options[1], budget.options[3]) == budget


@pytest.mark.parametrize("rate", [0.000001, 0.0123456789, 0.07, 0.29])
def test_budget_options_say_the_same_number(rate):
    budget = Budget(max_flip_rate=rate, max_accuracy_drop=rate)
    assert Budget.parse(budget.options[1], budget.options[3]) == budget


def compared(flips, images=200, labelled=0, wrong=0):
    """The first images change, decidedly; of the labelled ones the last are wrong before."""
    reference = np.tile([[4.0, 0.0]], (images, 1))
    reference[images - wrong :] = [0, 4]
    candidate = reference.copy()
    candidate[:flips] = candidate[:flips, ::-1]
    paths = [f"{i}.jpg" for i in range(images)]
    return measure(
        reference,
        candidate,
        precision="int8",
        paths=paths,
        labels=LABELS,
        batch_sizes=(8,),
        expected=dict.fromkeys(paths[:labelled], ("hen",)),
    )


def reasons(found, budget, precision="int8"):
    return tolerance_for(precision, budget).reasons(found)


@pytest.mark.parametrize(("flips", "passes"), [(0, True), (10, True), (11, False)])
def test_tolerance_of_a_budget_of_flips(flips, passes):
    """5 % of 200 images; by how much probabilities change is not asked."""
    found = compared(flips)
    assert (reasons(found, Budget(max_flip_rate=0.05)) == ()) is passes
    assert (reasons(found, None) == ()) is (flips == 0)
    if not passes:
        assert reasons(found, Budget(max_flip_rate=0.05)) == (
            "11 of 200 images changed their class; at most 5% may",
        )


@pytest.mark.parametrize(("flips", "passes"), [(2, True), (3, False)])
def test_tolerance_of_a_budget_of_accuracy(flips, passes):
    budget = Budget(max_accuracy_drop=1)
    found = compared(flips, labelled=200)
    assert found.accuracy.drop == flips / 2
    assert (reasons(found, budget) == ()) is passes
    if not passes:
        assert reasons(found, budget) == (
            "the accuracy fell by 1.5 points on 200 labelled images; at most 1 is allowed",
        )


def test_tolerance_of_accuracy_without_labels_is_unproven():
    budget = Budget(max_accuracy_drop=1)
    rule = tolerance_for("int8", budget)
    found = compared(0)
    assert rule.exceeded(found) == ()
    assert rule.reasons(found) == (
        "its budget is a drop of accuracy, and the class is known of 0 images; 29 are the least",
    )


def test_tolerance_of_both_needs_both():
    both = Budget(max_flip_rate=0.01, max_accuracy_drop=5)
    assert len(reasons(compared(4, labelled=200), both)) == 1
    assert len(reasons(compared(20, labelled=200), both)) == 2
    assert reasons(compared(2, labelled=200), both) == ()


def test_tolerance_of_a_budget_is_not_for_fp32():
    assert tolerance_for("fp32", Budget(max_flip_rate=1)) == tolerance_for("fp32")


def test_tolerance_of_a_budget_never_passes_without_evidence():
    everything = Budget(max_flip_rate=1, max_accuracy_drop=100)
    found = compared(0, labelled=200)
    endless = msgspec.structs.replace(found, non_finite=1)
    assert reasons(endless, everything) == ("1 logit is NaN or infinite",)
    empty = msgspec.structs.replace(found, images=0)
    assert "no image was compared" in reasons(empty, everything)
    undecided = msgspec.structs.replace(found, undecidable=101)
    assert "the reference does not decide 101 of 200 images" in reasons(undecided, everything)[0]


def test_tolerance_part_is_of_every_limit():
    part = tolerance_for("int8", Budget(max_flip_rate=0.04, max_accuracy_drop=2)).part(0.5)
    assert (part.max_flip_rate, part.max_accuracy_drop, part.max_relative_error) == (0.02, 1, None)
    assert tolerance_for("int8").part(0.75).max_probability_change == pytest.approx(0.075)
