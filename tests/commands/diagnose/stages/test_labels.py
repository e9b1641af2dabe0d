import itertools

import numpy as np
import pytest

from deploykit.commands.diagnose.stages.labels import (
    CASE_INSENSITIVE,
    IMAGE_FOLDER,
    NATURAL,
    LabelledAnswers,
    is_clear_gain,
    order_name,
    other_orders,
)
from deploykit.specs.heads import Binary, MultiLabel
from deploykit.specs.model import Labels

NAMES = ("bird", "dog", "food", "vehicle")


def answered(truth, names):
    """The answers of a network that is always right, its labels being in this order."""
    return np.array([names.index(name) for name in truth])


def orders(answers, truth, recorded, folder):
    logits = np.eye(len(recorded), dtype=np.float32)[answers]
    logits[np.array(answers) < 0] = np.nan
    labels = Labels(names=tuple(recorded), source="test")
    return other_orders(LabelledAnswers(logits, [(name,) for name in truth], labels), folder)


@pytest.mark.parametrize(
    ("gained", "lost", "clear"),
    [(6, 0, True), (5, 0, False), (9, 3, True), (9, 4, False), (30, 11, False), (0, 0, False)],
)
def test_is_clear_gain(gained, lost, clear):
    before = np.array([False] * gained + [True] * lost, bool)
    truth = np.array(["bird", "dog"] * 25)[: gained + lost]
    assert is_clear_gain(before, ~before, truth) is clear
    assert not is_clear_gain(before, ~before, np.full_like(truth, "bird"))


def test_order_name_of_usual_orders():
    assert order_name(["class_1", "class_10", "class_2"]) == IMAGE_FOLDER
    assert order_name(["class_1", "class_2", "class_10"]) == NATURAL
    assert order_name(["apple", "Banana"]) == NATURAL
    assert order_name(["B2", "B10", "a"]) is None
    assert order_name(["a1b", "A2b", "a10b"]) == NATURAL
    assert order_name(["a10", "A2"]) == CASE_INSENSITIVE
    assert order_name(["1", "a", "10"]) is None


def test_other_orders_of_right_labels():
    truth = [*NAMES] * 6
    assert orders(answered(truth, NAMES), truth, NAMES, NAMES) == []


def test_other_orders_of_two_exchanged_labels():
    truth = [*NAMES] * 6
    trained = ("bird", "food", "dog", "vehicle")
    (found,) = orders(answered(truth, trained), truth, NAMES, NAMES)
    assert found.change == "dog and food exchanged"
    assert (found.names, found.right.sum()) == (trained, 24)
    assert found.exchanges


def test_other_orders_of_two_exchanged_pairs():
    truth = [*NAMES] * 10
    trained = ("vehicle", "food", "dog", "bird")
    found = orders(answered(truth, trained), truth, NAMES, NAMES)[0]
    assert found.names == trained
    assert found.change.count("exchanged") == 2


def test_other_orders_of_few_images():
    truth = [*NAMES] * 2  # four right ones gained
    assert orders(answered(truth, ("bird", "food", "dog", "vehicle")), truth, NAMES, NAMES) == []


def test_other_orders_exchange_a_label_once():
    """Birds are called food and dogs; more of the food is called bird than of the dogs."""
    truth = ["bird"] * 40 + ["food"] * 30 + ["dog"] * 20
    answers = answered(
        ["food"] * 20 + ["dog"] * 20 + ["bird"] * 30 + ["bird"] * 12 + ["dog"] * 8, NAMES
    )
    (found,) = orders(answers, truth, NAMES, NAMES)
    assert found.change == "bird and food exchanged"


@pytest.mark.parametrize(
    ("answers", "truth"),
    [
        ([2] * 40, ["dog"] * 40),  # one class, all of it called food
        ([0] * 42, ["bird"] * 2 + ["dog"] * 40),  # one answer to everything
    ],
)
def test_other_orders_of_one_class_or_answer(answers, truth):
    assert orders(answers, truth, NAMES, NAMES) == []


def test_other_orders_find_image_folder_order():
    folder = ("class_1", "class_10", "class_2", "class_3")
    recorded = ("class_1", "class_2", "class_3", "class_10")
    truth = [*folder] * 5
    found = orders(answered(truth, folder), truth, recorded, folder)[0]
    assert (found.change, found.names, found.right.sum()) == (IMAGE_FOLDER, folder, 20)


def test_other_orders_of_made_up_labels():
    truth = [*NAMES] * 5
    recorded = tuple(f"class_{i}" for i in range(4))
    found = orders(answered(truth, NAMES), truth, recorded, NAMES)[0]
    assert (found.change, found.names, found.right.sum()) == (IMAGE_FOLDER, NAMES, 20)


def test_other_orders_usual_order_is_no_exchange():
    """Whatever the classes are called, and though it is two that change places."""
    names, recorded = ("10", "2"), ("2", "10")
    truth = [*names] * 20
    found = {each.change: each for each in orders(answered(truth, names), truth, recorded, names)}
    assert not found[IMAGE_FOLDER].exchanges
    assert found["2 and 10 exchanged"].exchanges


def several(names=NAMES, thresholds=(0.5,) * 4):
    return Labels(names=names, source="test", head=MultiLabel(thresholds=thresholds))


def with_two_each(count):
    """Photos with two of the classes each, every pair as often; and the logits of training."""
    pairs = [*itertools.combinations(NAMES, 2)] * count
    truth = [tuple(sorted(pair)) for pair in pairs]
    right = np.array([[name in pair for name in NAMES] for pair in pairs])
    return truth, np.where(right, 3, -3).astype(np.float32)


def test_other_orders_of_several_labels_and_their_exchange():
    truth, logits = with_two_each(4)
    recorded = ("bird", "food", "dog", "vehicle")  # food and dog exchanged
    found = other_orders(LabelledAnswers(logits, truth, several(recorded)), recorded)
    assert {each.names for each in found} == {NAMES}
    assert found[0].right.all()
    assert found[0].hits.sum() == 48
    answers = LabelledAnswers(logits, truth, several(recorded))
    # Of the six pairs, those with one of both are wrong.
    assert (answers.right(recorded).sum(), answers.hits(recorded).sum()) == (8, 32)


def test_other_orders_move_thresholds_with_their_labels():
    truth, logits = with_two_each(4)
    logits[logits < 0] = 0.2  # which is above 0.5, and below 0.7
    answers = LabelledAnswers(logits, truth, several(NAMES[::-1], (0.5, 0.7, 0.7, 0.7)))
    # vehicle has the threshold 0.5, wherever it stands: it is given to every photo.
    assert answers.given(NAMES).all(axis=0).tolist() == [False, False, False, True]
    assert answers.right(NAMES).sum() == 12


def test_other_orders_of_right_labels_that_are_given_too_often():
    truth, logits = with_two_each(4)
    logits[:, 0] = 3
    assert other_orders(LabelledAnswers(logits, truth, several()), NAMES) == []


def test_other_orders_begin_with_a_tables_columns():
    truth, logits = with_two_each(4)
    recorded = ("bird", "food", "dog", "vehicle")
    columns = ("vehicle", "bird", "dog", "food")
    turned = logits[:, [NAMES.index(name) for name in columns]]
    found = other_orders(
        LabelledAnswers(turned, truth, several(recorded)), recorded, columns=columns, table="t.csv"
    )
    assert found[0].names == columns
    assert found[0].change == "in the order of the columns of t.csv"
    assert found[0].right.all()
    assert not found[0].exchanges


def test_other_orders_of_one_logit():
    labels = Labels(names=("dog", "cat"), source="test", head=Binary(thresholds=(0.3,)))
    logits = np.array([[-2], [3]] * 10, np.float32)
    truth = [("cat",), ("dog",)] * 10
    answers = LabelledAnswers(logits, truth, labels)
    assert answers.right(labels.names).sum() == 0
    assert {each.names for each in other_orders(answers, labels.names)} == {("cat", "dog")}
    logits[:2] = np.nan
    assert answers.right(("cat", "dog")).sum() == 18
