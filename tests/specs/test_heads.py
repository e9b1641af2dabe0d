"""What logits mean, head by head, on numbers worked out by hand."""

import msgspec
import numpy as np
import pytest

from deploykit.errors import UsageError
from deploykit.parity.measures import decides, measure
from deploykit.specs.heads import Binary, Head, MultiLabel, SingleLabel, sigmoid
from deploykit.specs.model import Labels

NAMES = ("cat", "dog", "owl")
MANY = MultiLabel(thresholds=(0.5, 0.3, 0.9))
ONE = Binary(thresholds=(0.3,))


def test_single_label_of_equal_logits_takes_the_first():
    head = SingleLabel()
    assert head.names_of(head.decide([[1, 2, 2]])[0], NAMES) == ("dog",)


def test_multi_label_decides_by_each_threshold():
    logits = [[0.1, -0.8, 2.0], [-0.1, -0.9, 2.3], [-9, -9, -9]]
    decisions = MANY.decide(logits)
    assert [MANY.names_of(row, NAMES) for row in decisions] == [("cat", "dog"), ("owl",), ()]
    labels = Labels(names=NAMES, source="test", head=MANY)
    assert [labels.title_of(row) for row in decisions] == ["cat, dog", "owl", "none"]
    assert MANY.probabilities([[0, np.log(3), -800]])[0] == pytest.approx([0.5, 0.75, 0])
    # logit(0.3) = -0.8473, logit(0.9) = 2.1972
    assert MANY.margins([[1, -0.8, 2.0]]) == pytest.approx([0.0473], abs=1e-4)
    assert MANY.margins([[np.nan, 0, 0]]).tolist() == [0]


def test_binary_decides_for_the_second_class_above_its_threshold():
    labels = Labels(names=("cat", "dog"), source="test", head=ONE)
    assert labels.logits == 1
    decisions = ONE.decide([[-0.8], [-0.9]])
    assert [labels.title_of(row) for row in decisions] == ["dog", "cat"]
    probabilities = ONE.probabilities([[-0.8], [-0.9]])
    assert probabilities.sum(axis=1) == pytest.approx([1, 1])
    assert ONE.headline(probabilities) == pytest.approx(sigmoid([-0.8, -0.9]))
    # The class that is decided for comes first, however small its probability.
    assert ONE.scores([[-0.8], [-0.9]]).argmax(axis=1).tolist() == [1, 0]
    assert ONE.margins([[-0.8473 + 2]]) == pytest.approx([2], abs=1e-4)


@pytest.mark.parametrize(
    ("head", "logits"), [(SingleLabel(), np.eye(3)), (MANY, 9 * np.eye(3) - 4), (ONE, [[-2], [2]])]
)
def test_decisions_for_classes_are_those_of_logits(head, logits):
    decisions = head.decide(logits)
    chosen = head.chosen(decisions, 2 if head == ONE else 3)
    assert head.decisions(chosen).tolist() == decisions.tolist()


def test_sigmoid_is_exact_where_it_is_small():
    assert sigmoid([-40.0]) == pytest.approx([4.248354e-18], rel=1e-6)
    assert sigmoid([-800.0, 800.0]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("logits", "fp32", "fp16"),
    [
        ([5, -5, -5], True, True),
        ([0.004, -5, -5], True, False),  # within half a percent of the scale
        ([0.0004, -5, -5], False, False),
        ([0.004, -0.3, 0.5], True, False),  # small logits: the scale is 1
        ([1e-7, -0.3, 0.5], False, False),
        ([np.inf, -5, -5], False, False),
    ],
)
def test_multi_label_is_undecidable_near_a_threshold(logits, fp32, fp16):
    head = MultiLabel(thresholds=(0.5, 0.5, 0.5))
    for precision, right in (("fp32", fp32), ("fp16", fp16), ("int8", fp16)):
        assert decides([logits], head, precision).tolist() == [right]


def measured(reference, candidate, head, precision="fp16"):
    names = NAMES[: max(2, np.shape(reference)[1])]
    return measure(
        np.array(reference, np.float32),
        np.array(candidate, np.float32),
        precision=precision,
        paths=[f"{i}.jpg" for i in range(len(reference))],
        labels=Labels(names=names, source="test", head=head),
        batch_sizes=[1],
    )


def test_measure_of_multi_label_counts_changed_sets():
    head = MultiLabel(thresholds=(0.5, 0.5, 0.5))
    reference = [[3, 1, -4], [3, 1, -4], [3, 1, 0.001], [3, 1, 0.001], [3, 0.001, -4]]
    candidate = [[3, 1, -4], [3, -1, -4], [3, 1, -0.001], [3, -1, 0.001], [3, -0.001, -4]]
    found = measured(reference, candidate, head)
    # The fourth has a threshold that is too near, but what changed was clear.
    assert (found.flips, found.undecidable, found.undecidable_flips) == (2, 2, 2)
    assert [(flip.reference, flip.candidate) for flip in found.flipped if flip.decidable] == [
        ("cat, dog", "cat"),
        ("cat, dog, owl", "cat, owl"),
    ]
    assert found.max_probability_change == pytest.approx(sigmoid(1.0) - sigmoid(-1.0))
    assert found.classes == 2


def test_measure_of_binary_answers():
    found = measured(
        [[2.0], [-2.0], [0.001]], [[-0.1], [-2.0], [-0.001]], Binary(thresholds=(0.5,))
    )
    assert (found.flips, found.undecidable_flips) == (1, 1)
    assert (found.flipped[0].reference, found.flipped[0].candidate) == ("dog", "cat")


@pytest.mark.parametrize("head", [SingleLabel(), MANY, ONE])
def test_head_loses_no_more_margin_than_it_says(head):
    rng = np.random.default_rng(0)
    width = head.logits_for(3)
    logits = rng.normal(size=(200, width))
    changes = rng.normal(size=(200, width)) * 0.2
    lost = head.lost_margins(changes)
    same = (head.decide(logits) == head.decide(logits + changes)).all(axis=1)
    assert same[head.margins(logits) > lost].all()
    assert not same.all()
    assert (lost <= head.reach * np.abs(changes).max(axis=1) + 1e-12).all()
    assert (head.margins(logits) - head.margins(logits + changes) <= lost + 1e-12)[same].all()


def test_heads_in_another_order_of_the_classes():
    turned = MANY.reordered([2, 0, 1])
    assert turned.thresholds == (0.9, 0.5, 0.3)
    logits = np.array([[0.1, -0.8, 2.0]])
    assert turned.decide(logits[:, [2, 0, 1]]).tolist() == [[0, 1, 1]]
    assert ONE.reordered([1, 0]) == ONE
    assert SingleLabel().reordered([1, 0]) == SingleLabel()


def test_heads_name_the_class_that_shows_how_clear_a_decision_is():
    assert MANY.nearest([[3, -0.8, 9]]).tolist() == [1]
    assert SingleLabel().nearest([[3, -0.8, 9]]).tolist() == [2]
    assert ONE.nearest([[-5], [5]]).tolist() == [0, 1]


def test_heads_are_read_and_checked():
    data = msgspec.json.encode(MANY)
    assert msgspec.json.decode(data, type=Head) == MANY
    with pytest.raises(UsageError, match="3 thresholds do not fit 2 classes"):
        Labels(names=("cat", "dog"), source="test", head=MANY)
    with pytest.raises(UsageError, match="two classes"):
        Labels(names=NAMES, source="test", head=ONE)
    for threshold in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="above 0 and below 1"):
            Binary(thresholds=(threshold,))
