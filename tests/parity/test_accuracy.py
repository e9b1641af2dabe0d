import msgspec
import numpy as np
import pytest
from sklearn import metrics

from deploykit.parity.accuracy import accuracies, accuracy_change, accuracy_of, class_changes
from deploykit.parity.answers import Answers
from deploykit.parity.measurement import AccuracyChange
from deploykit.specs.heads import Binary, MultiLabel
from deploykit.specs.model import Labels
from deploykit.specs.value import decode_json

LABELS = Labels(names=("bird", "dog", "food"), source="test")
PATHS = ("dog/0.jpg", "dog/1.jpg", "bird/0.jpg", "other/0.jpg")
EXPECTED = {"dog/0.jpg": ("dog",), "dog/1.jpg": ("dog",), "bird/0.jpg": ("bird",)}
LOGITS = np.array([[0, 2, 1], [3, 2, 1], [2, 0, 1], [0, 0, 1]], np.float32)


def test_accuracy_of_labelled_images():
    found = accuracy_of(LOGITS, PATHS, EXPECTED, LABELS)
    assert (found.images, found.correct) == (3, 2)
    assert found.rate == pytest.approx(2 / 3)
    bird, dog = found.classes
    assert (bird.label, bird.images, bird.correct, bird.rate) == ("bird", 1, 1, 1.0)
    assert (dog.label, dog.images, dog.correct, dog.rate) == ("dog", 2, 1, 0.5)


def test_accuracy_of_error_rate_bounds():
    found = accuracy_of(LOGITS, PATHS, EXPECTED, LABELS)
    # Clopper-Pearson: of one trial without an error 1 - 0.05; of 2 with 1 sqrt(1 - 0.05); of 3 with
    # 1 the root of (1 - p)^3 + 3 p (1 - p)^2 = 0.05.
    assert found.classes[0].error_rate_bound == pytest.approx(0.95)
    assert found.classes[1].error_rate_bound == pytest.approx(0.95**0.5)
    p = found.error_rate_bound
    assert (1 - p) ** 3 + 3 * p * (1 - p) ** 2 == pytest.approx(0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_accuracy_of_non_finite_answers(value):
    """Although its arg max would be the right class."""
    logits = LOGITS.copy()
    logits[0, 1] = value
    assert accuracy_of(logits, PATHS, EXPECTED, LABELS).correct == 1


def test_accuracy_of_no_right_answer():
    found = accuracy_of(-LOGITS, PATHS, EXPECTED, LABELS)
    assert found.correct == 0
    assert found.error_rate_bound == 1.0


def test_accuracy_of_unlabelled_images():
    assert accuracy_of(LOGITS, PATHS, {}, LABELS) is None
    assert accuracy_of(LOGITS, PATHS, {"elsewhere.jpg": ("dog",)}, LABELS) is None


def test_accuracy_change_counts_the_same_images():
    """Of 4 labelled images one is lost, one is won, and one that is not finite is lost as well."""
    labels = Labels(names=("bird", "dog", "food"), source="test")
    right = np.array([0, 1, 1, 2, 0])
    reference = np.eye(3, dtype=np.float32)[[0, 1, 0, 2, 0]]
    candidate = np.eye(3, dtype=np.float32)[[1, 1, 1, 2, 1]]
    candidate[3, 2] = np.nan
    paths = [f"{i}.jpg" for i in range(5)]
    expected = {path: (labels.names[i],) for path, i in zip(paths[:4], right, strict=False)}
    found = accuracy_change(reference, candidate, paths, expected, labels)
    assert (found.name, found.images, found.correct) == ("accuracy", 4, 3)
    assert (found.lost, found.won, found.drop) == (2, 1, 25.0)
    assert accuracy_change(reference, candidate, paths, {}, labels) is None


@pytest.mark.parametrize(
    "counts", [(0, 0, 0, 0), (10, 11, 0, 0), (10, 5, 6, 0), (10, 5, 0, 6), (10, 5, -1, 0)]
)
def test_accuracy_change_of_impossible_counts_is_refused(counts):
    """A manifest may come from anybody."""
    fields = dict(zip(("images", "correct", "lost", "won"), counts, strict=True))
    data = msgspec.json.encode({"name": "accuracy", **fields})
    with pytest.raises(ValueError, match="lost and"):
        decode_json(data, AccuracyChange)


def test_class_changes_of_labelled_images():
    changes = class_changes(
        LOGITS[:, [0, 1, 2]], LOGITS[[0, 1, 1, 3]] * [1, 0.2, 1], PATHS, EXPECTED, LABELS, "int8"
    )
    # The candidate takes dog/0 for food; bird/0 stays.
    told = [(each.label, each.images, each.reference, each.candidate) for each in changes]
    assert told == [("dog", 2, 1, 0), ("bird", 1, 1, 1)]
    assert [each.lost for each in changes] == [1, 0]


def test_class_changes_without_labels_are_of_clear_decisions():
    reference = np.array([[4, 0, 0], [4, 0, 0], [4, 3.99, 0], [0, 4, 0], [0, np.nan, 0]])
    candidate = np.array([[4, 0, 0], [0, 4, 0], [0, 4, 0], [0, 4, 0], [0, 4, 0]])
    found = class_changes(reference, candidate, [*"abcde"], {}, LABELS, "int8")
    told = [(each.label, each.images, each.reference, each.candidate) for each in found]
    assert told == [("bird", 2, 2, 1), ("dog", 1, 1, 1)]


def test_class_changes_of_several_labels():
    labels = Labels(names=("a", "b"), source="test", head=MultiLabel(thresholds=(0.5, 0.5)))
    reference = np.array([[3, 3], [3, -3], [-3, 3]], np.float32)
    candidate = np.array([[3, -3], [3, -3], [-3, 3]], np.float32)
    found = class_changes(reference, candidate, [*"xyz"], {}, labels, "fp16")
    assert [(each.label, each.images, each.lost) for each in found] == [("b", 2, 1), ("a", 2, 0)]
    expected = {"x": ("a",), "y": ("a",), "z": ("b",)}
    change = accuracy_change(reference, candidate, [*"xyz"], expected, labels)
    assert (change.name, change.lost, change.won, change.drop) == ("exact match", 0, 1, -100 / 3)


def test_accuracies_of_reference_and_candidates():
    answers = Answers(PATHS, (4,), LOGITS, (LOGITS[::-1].copy(), -LOGITS))
    found = accuracies(answers, EXPECTED, LABELS)
    assert [each.correct for each in found] == [2, 1, 0]
    assert accuracies(answers, {}, LABELS) == ()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("seed", range(8))
def test_accuracy_of_several_labels_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    names = ("cat", "dog", "owl", "emu")
    labels = Labels(names=names, source="test", head=MultiLabel(thresholds=(0.5, 0.3, 0.9, 0.5)))
    logits = rng.normal(size=(60, 4)).round(seed % 2 + 1).astype(np.float32)  # with equal ones
    truth = rng.random((60, 4)) < 0.4
    paths = [f"{i}.jpg" for i in range(60)]
    expected = {
        path: tuple(name for name, flag in zip(names, row, strict=True) if flag)
        for path, row in zip(paths, truth, strict=True)
    }
    found = accuracy_of(logits, paths, expected, labels)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    decided = probabilities > np.array([0.5, 0.3, 0.9, 0.5])
    assert found.rate == metrics.accuracy_score(truth, decided)
    precision, recall, _, support = metrics.precision_recall_fscore_support(
        truth, decided, zero_division=0
    )
    assert [each.precision for each in found.classes] == pytest.approx(precision)
    assert [each.rate for each in found.classes] == pytest.approx(recall)
    assert [each.images for each in found.classes] == support.tolist()
    each = metrics.average_precision_score(truth, probabilities, average=None)
    assert [one.average_precision for one in found.classes] == pytest.approx(each)
    assert found.mean_average_precision == pytest.approx(
        metrics.average_precision_score(truth, probabilities, average="macro")
    )


def test_accuracy_of_binary_answers():
    labels = Labels(names=("cat", "dog"), source="test", head=Binary(thresholds=(0.5,)))
    expected = {"a": ("cat",), "b": ("dog",), "c": ("dog",)}
    logits = np.array([[-1], [2], [-3]], np.float32)
    found = accuracy_of(logits, ["a", "b", "c"], expected, labels)
    assert found.correct == 2
    cat, dog = found.classes
    assert (cat.precision, cat.rate, dog.precision, dog.rate) == (0.5, 1, 1, 0.5)
