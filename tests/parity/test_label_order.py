import numpy as np
import pytest

from deploykit.parity.label_order import (
    CASE_INSENSITIVE,
    IMAGE_FOLDER,
    NATURAL,
    clear_gain,
    order_name,
    reorderings,
)

NAMES = ("bird", "dog", "food", "vehicle")


def answered(truth, names):
    """The answers of a network that is always right, its labels being in this order."""
    return np.array([names.index(name) for name in truth])


@pytest.mark.parametrize(
    ("gained", "lost", "clear"),
    [(6, 0, True), (5, 0, False), (9, 3, True), (9, 4, False), (30, 11, False), (0, 0, False)],
)
def test_clear_gain(gained, lost, clear):
    assert clear_gain(gained, lost) is clear


def test_the_usual_orders():
    assert order_name(["class_1", "class_10", "class_2"]) == IMAGE_FOLDER
    assert order_name(["class_1", "class_2", "class_10"]) == NATURAL
    assert order_name(["apple", "Banana"]) == NATURAL
    assert order_name(["B2", "B10", "a"]) is None
    assert order_name(["a1b", "A2b", "a10b"]) == NATURAL
    assert order_name(["a10", "A2"]) == CASE_INSENSITIVE
    assert order_name(["1", "a", "10"]) is None


def test_right_labels_need_no_other_order():
    truth = [*NAMES] * 6
    assert reorderings(answered(truth, NAMES), truth, NAMES, NAMES) == []


def test_two_labels_exchanged():
    truth = [*NAMES] * 6
    trained = ("bird", "food", "dog", "vehicle")
    (found,) = reorderings(answered(truth, trained), truth, NAMES, NAMES)
    assert found.change == "dog and food exchanged"
    assert (found.names, found.correct) == (trained, 24)
    assert found.exchanges
    assert found.likely


def test_two_pairs_exchanged():
    truth = [*NAMES] * 10
    trained = ("vehicle", "food", "dog", "bird")
    found = reorderings(answered(truth, trained), truth, NAMES, NAMES)[0]
    assert found.names == trained
    assert found.change.count("exchanged") == 2


def test_a_few_images_make_no_exchange_likely():
    truth = [*NAMES] * 2  # four right ones gained
    answers = answered(truth, ("bird", "food", "dog", "vehicle"))
    (found,) = reorderings(answers, truth, NAMES, NAMES)
    assert (found.change, found.likely) == ("dog and food exchanged", False)


def test_a_label_is_exchanged_with_one_other_only():
    """Birds are called food and dogs; more of the food is called bird than of the dogs."""
    truth = ["bird"] * 40 + ["food"] * 30 + ["dog"] * 20
    answers = answered(
        ["food"] * 20 + ["dog"] * 20 + ["bird"] * 30 + ["bird"] * 12 + ["dog"] * 8, NAMES
    )
    (found,) = reorderings(answers, truth, NAMES, NAMES)
    assert found.change == "bird and food exchanged"


@pytest.mark.parametrize(
    ("answers", "truth"),
    [
        ([2] * 40, ["dog"] * 40),  # one class, all of it called food
        ([0] * 42, ["bird"] * 2 + ["dog"] * 40),  # one answer to everything
    ],
)
def test_one_class_or_one_answer_is_no_exchange(answers, truth):
    assert reorderings(np.array(answers), truth, NAMES, NAMES) == []


def test_one_class_alone_tells_no_order():
    """A network that answers the same to everything, on photos of one class."""
    folder = ("class_1", "class_10", "class_2", "class_3")
    recorded = ("class_1", "class_2", "class_3", "class_10")
    found = reorderings(np.ones(20, np.int64), ["class_10"] * 20, recorded, folder)[0]
    assert (found.correct, found.likely) == (20, False)


def test_a_natural_order_is_told_from_the_folder():
    folder = ("class_1", "class_10", "class_2", "class_3")
    recorded = ("class_1", "class_2", "class_3", "class_10")
    truth = [*folder] * 5
    found = reorderings(answered(truth, folder), truth, recorded, folder)[0]
    assert (found.change, found.names, found.correct) == (IMAGE_FOLDER, folder, 20)
    assert found.likely


def test_labels_that_are_not_the_folders():
    truth = [*NAMES] * 5
    recorded = tuple(f"class_{i}" for i in range(4))
    found = reorderings(answered(truth, NAMES), truth, recorded, NAMES)[0]
    assert (found.change, found.names, found.correct) == (IMAGE_FOLDER, NAMES, 20)
    assert found.likely


def test_a_usual_order_exchanges_nothing():
    """Whatever the classes are called, and though it is two that change places."""
    names, recorded = ("10", "2"), ("2", "10")
    truth = [*names] * 20
    found = {
        each.change: each for each in reorderings(answered(truth, names), truth, recorded, names)
    }
    assert not found[IMAGE_FOLDER].exchanges
    assert found["2 and 10 exchanged"].exchanges
