import itertools

import numpy as np
import pytest

from deploykit.parity.compare import batch_sizes, compare_sessions, regroup
from deploykit.proofs import tolerance_for
from deploykit.runtime.fake import FakeSession
from deploykit.specs import Labels

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
def test_the_images_are_split_over_the_batch_sizes(images, sizes):
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
def test_no_batch_is_larger_than_a_session_takes(images, largest, sizes):
    assert list(batch_sizes(images, largest)) == sizes


@pytest.mark.parametrize("images", range(1, 120))
def test_every_image_is_in_exactly_one_batch(images):
    sizes = list(batch_sizes(images))
    assert sum(sizes) == images
    assert min(sizes) >= 1


def test_regrouping_keeps_order_and_copies_reused_buffers():
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


def test_regrouping_nothing_gives_nothing():
    assert list(regroup([], [1, 2])) == []


def test_sessions_are_compared_on_the_same_batches():
    images = images_with_values(range(0, 250, 10))
    names = [f"{i}.png" for i in range(25)]
    reference = FakeSession(brightness, classes=2)
    same = FakeSession(brightness, classes=2)
    inverted = FakeSession(lambda batch: -brightness(batch), classes=2)
    done = []
    measurements = compare_sessions(
        reference,
        [same, inverted],
        regroup([(names, images)], batch_sizes(25)),
        LABELS,
        done.append,
    )
    assert reference.batch_sizes == same.batch_sizes == [1, 2, 5, 8, 8, 1]
    assert done == [1, 3, 8, 16, 24, 25]
    right, wrong = measurements
    assert right.flips == 0
    assert right.batch_sizes == (1, 2, 5, 8)
    assert wrong.flips == 25
    assert {flip.path for flip in wrong.flipped} == set(names)


@pytest.mark.parametrize("broken_size", [2, 5, 8])
def test_a_graph_that_is_wrong_at_one_batch_size_is_found(broken_size):
    def answer(batch):
        logits = brightness(batch)
        return logits[::-1] if len(batch) == broken_size else logits

    images = images_with_values(range(0, 250, 10))
    measurements = compare_sessions(
        FakeSession(brightness, classes=2),
        [FakeSession(answer, classes=2)],
        regroup([([str(i) for i in range(25)], images)], batch_sizes(25)),
        LABELS,
        lambda done: None,
    )
    assert tolerance_for("fp32").objections(measurements[0]) != ()


def test_comparing_no_images_gives_an_empty_measurement():
    measurements = compare_sessions(
        FakeSession(brightness, classes=2),
        [FakeSession(brightness, classes=2)],
        [],
        LABELS,
        lambda done: None,
    )
    assert measurements[0].images == 0
