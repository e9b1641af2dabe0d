import numpy as np
import pytest

from deploykit.parity.label_order import (
    CASE_INSENSITIVE,
    IMAGE_FOLDER,
    NATURAL,
    doubtful_exchanges,
    order_name,
    reorderings,
)
from deploykit.parity.significance import SIGNIFICANT, several, sign_test

NAMES = ("bird", "dog", "food", "vehicle")


def answered(truth, names):
    """The answers of a network that is always right, its labels being in this order."""
    return np.array([names.index(name) for name in truth])


def test_the_sign_test():
    assert sign_test(10, 0) == pytest.approx(2**-10)
    assert sign_test(10, 0, hypotheses=6) == pytest.approx(6 * 2**-10)
    assert sign_test(3, 1) == pytest.approx(5 / 16)
    assert sign_test(0, 0) == 1.0
    assert sign_test(0, 9, hypotheses=100) == 1.0
    assert sign_test(2000, 0) < 1e-300


def test_several_classes():
    assert several(["dog", "dog", "bird"])
    assert not several(["dog"] * 40)
    assert not several([])


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
    assert found.exchanges
    assert found.names == trained
    assert (found.correct, found.significant) == (24, True)
    assert found.chance == pytest.approx(6 / 2**12)


def test_two_pairs_exchanged():
    truth = [*NAMES] * 10
    trained = ("vehicle", "food", "dog", "bird")
    found = reorderings(answered(truth, trained), truth, NAMES, NAMES)[0]
    assert found.names == trained
    assert found.change.count("exchanged") == 2


def test_a_few_errors_are_no_exchange():
    truth = [*NAMES] * 3
    answers = answered(truth, ("bird", "food", "dog", "vehicle"))
    assert reorderings(answers, truth, NAMES, NAMES) == []  # six right ones gained are chance
    assert doubtful_exchanges(answers, truth, NAMES) == ["dog and food"]


def test_what_is_sure_is_not_in_doubt():
    truth = [*NAMES] * 6
    answers = answered(truth, ("bird", "food", "dog", "vehicle"))
    assert doubtful_exchanges(answers, truth, NAMES) == []
    assert doubtful_exchanges(answered(truth, NAMES), truth, NAMES) == []


@pytest.mark.parametrize(("classes", "found"), [(4, True), (30, False)])
def test_the_more_pairs_there_are_the_more_images_an_exchange_takes(classes, found):
    """Ten images of two classes that are exchanged: chance is 1/1024 for one pair, not for 435."""
    names = tuple(f"class {i:02}" for i in range(classes))
    truth = ["class 00", "class 01"] * 5
    answers = np.array([1, 0] * 5)
    exchanges = reorderings(answers, truth, names, names)
    assert bool(exchanges) is found
    for each in exchanges:
        assert each.chance == pytest.approx(6 / 2**10)
    in_doubt = [] if found else ["class 00 and class 01"]
    assert doubtful_exchanges(answers, truth, names) == in_doubt


def test_a_label_is_exchanged_with_one_other_only():
    """Birds are called food and dogs; more of the food is called bird than of the dogs."""
    truth = ["bird"] * 40 + ["food"] * 30 + ["dog"] * 20
    answers = answered(
        ["food"] * 20 + ["dog"] * 20 + ["bird"] * 30 + ["bird"] * 12 + ["dog"] * 8, NAMES
    )
    (found,) = reorderings(answers, truth, NAMES, NAMES)
    assert found.change == "bird and food exchanged"


def test_images_of_one_class_are_no_exchange():
    truth = ["dog"] * 40
    answers = answered(["food"] * 40, NAMES)
    assert reorderings(answers, truth, NAMES, NAMES) == []
    assert doubtful_exchanges(answers, truth, NAMES) == []


def test_one_answer_to_everything_is_no_exchange():
    truth = ["bird"] * 2 + ["dog"] * 40
    assert reorderings(np.zeros(42, np.int64), truth, NAMES, NAMES) == []


def test_one_class_alone_tells_no_order():
    """A network that answers the same to everything, on photos of one class."""
    folder = ("class_1", "class_10", "class_2", "class_3")
    recorded = ("class_1", "class_2", "class_3", "class_10")
    found = reorderings(np.ones(20, np.int64), ["class_10"] * 20, recorded, folder)[0]
    assert (found.correct, found.significant) == (20, False)


def test_a_natural_order_is_told_from_the_folder():
    folder = ("class_1", "class_10", "class_2", "class_3")
    recorded = ("class_1", "class_2", "class_3", "class_10")
    truth = [*folder] * 5
    found = reorderings(answered(truth, folder), truth, recorded, folder)[0]
    assert (found.change, found.names, found.correct) == (IMAGE_FOLDER, folder, 20)
    assert found.significant


def test_labels_that_are_not_the_folders():
    truth = [*NAMES] * 5
    recorded = tuple(f"class_{i}" for i in range(4))
    found = reorderings(answered(truth, NAMES), truth, recorded, NAMES)[0]
    assert (found.change, found.names, found.correct) == (IMAGE_FOLDER, NAMES, 20)
    assert found.chance < SIGNIFICANT


def test_a_usual_order_exchanges_nothing():
    """Whatever the classes are called, and though it is two that change places."""
    names, recorded = ("10", "2"), ("2", "10")
    truth = [*names] * 20
    found = {
        each.change: each for each in reorderings(answered(truth, names), truth, recorded, names)
    }
    assert not found[IMAGE_FOLDER].exchanges
    assert found["2 and 10 exchanged"].exchanges
