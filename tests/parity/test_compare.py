import itertools

import numpy as np
import pytest
from fake_session import FakeSession

from deploykit.parity.compare import ask_sessions, batch_sizes, measure_answers, regroup
from deploykit.parity.tolerance import tolerance_for
from deploykit.specs.model import Labels

LABELS = Labels(names=("dark", "bright"), source="test")


def images_with_values(values):
    return np.stack([np.full((8, 8, 3), value, np.uint8) for value in values])


def brightness(images):
    mean = images.mean((1, 2, 3), dtype=np.float32)
    return np.stack([128 - mean, mean - 128], axis=1)


@pytest.mark.parametrize(
    ("images", "sizes"),
    [
        (0, []),
        (1, [1]),
        (2, [1, 1]),
        (8, [1, 2, 5]),
        (16, [1, 2, 5, 8]),
        (17, [1, 2, 5, 8, 1]),
        (24, [1, 2, 5, 8, 7, 1]),
        (25, [1, 2, 5, 8, 8, 1]),
        (48, [1, 2, 5, 32, 8]),
        (225, [1, 2, 5, 32, *[8] * 23, 1]),
    ],
)
def test_batch_sizes_split(images, sizes):
    assert list(batch_sizes(images)) == sizes


@pytest.mark.parametrize(
    ("images", "largest", "sizes"),
    [
        (40, 1, [1] * 40),
        (24, 4, [1, 2, 4, 4, 4, 4, 4, 1]),
        (15, 2, [1, 2, 2, 2, 2, 2, 2, 1, 1]),
        (80, 64, [1, 2, 5, 64, 8]),
    ],
)
def test_batch_sizes_up_to_the_largest(images, largest, sizes):
    assert list(batch_sizes(images, largest)) == sizes


def test_batch_sizes_sum_to_the_images():
    for images in range(1, 120):
        sizes = list(batch_sizes(images))
        assert (sum(sizes), min(sizes)) == (images, 1)


def test_regroup_keeps_order_and_copies_buffers():
    buffer = np.zeros((3, 8, 8, 3), np.uint8)

    def stream():
        for start in (0, 3, 6):
            buffer[:] = images_with_values(range(start, start + 3))
            yield [f"{i}.png" for i in range(start, start + 3)], buffer

    groups = list(regroup(stream(), [1, 2, 5, 8]))
    assert [len(names) for names, _ in groups] == [1, 2, 5, 1]
    names = list(itertools.chain.from_iterable(names for names, _ in groups))
    values = [int(image[0, 0, 0]) for _, images in groups for image in images]
    assert names == [f"{i}.png" for i in range(9)]
    assert values == list(range(9))


def test_regroup_of_nothing():
    assert list(regroup([], [1, 2])) == []


def asked(candidates, images, *, reference=None, on_batch=lambda done, changed: None):
    """What sessions answer to images, in batches of the usual sizes."""
    batches = [([f"{i}.png" for i in range(len(images))], images)] if len(images) else []
    groups = regroup(batches, batch_sizes(len(images)))
    return ask_sessions(
        reference or FakeSession(brightness, classes=2), candidates, groups, LABELS, on_batch
    )


def measured(candidates, images):
    specs = [candidate.spec for candidate in candidates]
    return measure_answers(asked(candidates, images), specs, LABELS)


def test_ask_sessions_in_the_same_batches():
    images = images_with_values(range(0, 250, 10))
    reference = FakeSession(brightness, classes=2)
    same = FakeSession(brightness, classes=2)
    inverted = FakeSession(lambda batch: -brightness(batch), classes=2)
    done = []
    answers = asked(
        [same, inverted], images, reference=reference, on_batch=lambda *event: done.append(event)
    )
    assert reference.batch_sizes == same.batch_sizes == [1, 2, 5, 8, 8, 1]
    assert answers.batch_sizes == (1, 2, 5, 8, 8, 1)
    assert done == [(1, 1), (3, 3), (8, 8), (16, 16), (24, 24), (25, 25)]
    assert answers.paths == tuple(f"{i}.png" for i in range(25))
    np.testing.assert_array_equal(answers.reference, brightness(images))
    np.testing.assert_array_equal(answers.candidates[0], brightness(images))
    np.testing.assert_array_equal(answers.candidates[1], -brightness(images))


def test_ask_sessions_reports_flips_at_once():
    def answer(batch):
        logits = brightness(batch)
        return np.where(batch[:, :1, 0, 0] == 120, -logits, logits)

    done = []
    asked(
        [FakeSession(brightness, classes=2), FakeSession(answer, classes=2)],
        images_with_values([10, 120, 130, 20, 120, 30, 40, 50, 60]),
        on_batch=lambda *event: done.append(event),
    )
    assert done == [(1, 0), (3, 1), (8, 2), (9, 2)]


def test_measure_answers_of_each_candidate():
    images = images_with_values(range(0, 250, 10))
    inverted = FakeSession(lambda batch: -brightness(batch), classes=2)
    right, wrong = measured([FakeSession(brightness, classes=2), inverted], images)
    assert right.flips == 0
    assert right.batch_sizes == (1, 2, 5, 8)
    assert wrong.flips == 25
    assert {flip.path for flip in wrong.flipped} == {f"{i}.png" for i in range(25)}


@pytest.mark.parametrize("broken_size", [2, 5, 8])
def test_measure_answers_finds_a_wrong_batch_size(broken_size):
    def answer(batch):
        logits = brightness(batch)
        return logits[::-1] if len(batch) == broken_size else logits

    images = images_with_values(range(0, 250, 10))
    (found,) = measured([FakeSession(answer, classes=2)], images)
    assert tolerance_for("fp32").reasons(found) != ()


def test_measure_answers_of_no_image():
    (found,) = measured([FakeSession(brightness, classes=2)], np.zeros((0, 8, 8, 3), np.uint8))
    assert found.images == 0
    assert tolerance_for("fp32").reasons(found) == ("no image was compared",)
