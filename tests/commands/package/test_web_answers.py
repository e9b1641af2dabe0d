"""What the page makes of logits, against deploykit's heads."""

from __future__ import annotations

import numpy as np
import pytest
from node import call_all

from deploykit.commands.package.web import head_settings
from deploykit.specs.heads import Binary, Head, MultiLabel, SingleLabel

HEADS = (
    SingleLabel(),
    MultiLabel(thresholds=(0.5, 0.3, 0.9, 0.01)),
    Binary(thresholds=(0.7,)),
)
RULES = {"decidable": [True, True, False], "max_relative_error": 1e-4}


def logits_for(head: Head) -> np.ndarray:
    """Noise, logits on the thresholds and beside them, equal ones, and large ones."""
    count = head.logits_for(4)
    limits = np.array(head_settings(head)["limits"] or [0.0] * count)
    noise = 3 * np.random.default_rng(0).standard_normal((40, count))
    edges = [limits, np.nextafter(limits, 9), np.nextafter(limits, -9)]
    return np.concatenate([noise, edges, np.zeros((1, count)), np.full((1, count), 50.0)])


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_answers_are_the_heads(head: Head) -> None:
    logits = logits_for(head)
    classes = 2 if head.name == "binary" else 4
    settings = head_settings(head)
    names = ("decide", "probabilitiesOf", "ranked")
    answers = call_all(
        "answers.js", [(name, [settings, row]) for row in logits.tolist() for name in names]
    )
    decided, probabilities, ranked = answers[::3], answers[1::3], answers[2::3]
    chosen = head.chosen(head.decide(logits), classes)
    assert decided == [np.flatnonzero(row).tolist() for row in chosen]
    np.testing.assert_allclose(probabilities, head.probabilities(logits), rtol=1e-12)
    scores = np.take_along_axis(head.scores(logits), np.array(ranked), axis=1)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize(
    ("found", "same", "relative", "passed"),
    [
        ([[4, 1], [0, 2], [1, 1]], [True, True, True], 0.0, True),
        ([[4.0003, 1], [0, 2], [1, 1]], [True, True, True], 7.5e-5, True),
        ([[4.0008, 1], [0, 2], [1, 1]], [True, True, True], 2e-4, False),
        ([[4, 1], [0, 2], [1, 1.0002]], [True, True, False], 5e-5, True),  # it is undecidable
        ([[1, 4], [0, 2], [1, 1]], [False, True, True], 0.75, False),
    ],
    ids=["equal", "rounded", "moved", "undecidable", "flipped"],
)
def test_compare_judges_as_a_self_test(
    found: list[list[float]], same: list[bool], relative: float, passed: bool
) -> None:
    recorded = [[4, 1], [0, 2], [1, 1]]
    (answer,) = call_all(
        "answers.js", [("compare", [{"kind": "single-label"}, recorded, found, RULES])]
    )
    assert answer["same"] == same
    assert answer["relative"] == pytest.approx(relative, rel=1e-3)
    assert answer["passed"] is passed


def test_compare_refuses_what_is_no_number() -> None:
    recorded = [[4, 1], [0, 2], [1, 1]]
    found = [["NaN", 1], [0, 2], [1, 1]]  # a number of JavaScript's once it is subtracted
    (answer,) = call_all(
        "answers.js", [("compare", [{"kind": "single-label"}, recorded, found, RULES])]
    )
    assert answer["passed"] is False
