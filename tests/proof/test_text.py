"""The words of verdicts: what decides nothing does not look like success."""

import msgspec
import numpy as np
import pytest
from made_proofs import PROOF

from deploykit.parity.measures import measure
from deploykit.proof.policy import Status
from deploykit.proof.text import flips_of, proof_words, status_text, uniform_text
from deploykit.specs.model import Labels

LABELS = Labels(names=("bird", "dog", "food"), source="test")


def measured(logits):
    logits = np.asarray(logits, np.float32)
    paths = [f"{place}.jpg" for place in range(len(logits))]
    return measure(*(logits, logits), precision="fp32", paths=paths, labels=LABELS, batch_sizes=[1])


def several(*rows, images=24):
    return np.array([rows[place % len(rows)] for place in range(images)])


@pytest.mark.parametrize(
    ("logits", "said"),
    [
        (several([3, 1, 0], [0, 3, 1], [0, 1, 4]), ""),
        (several([3, 1, 0], [2, 1, 0]), "gives all 24 photos the same class: photos of one class"),
        (several([9, 0, 0], [9.1, 0, 0]), "the same class, with probabilities within 2e-05"),
        (several([5e-14, 0, 0], [0, 5e-14, 0]), "hardly depend on the image: over all 24 photos"),
        (several([0.01, 0, 0], [0, 0.01, 0]), "no probability differs by more than 0.003"),
        (several([1, 1, 1]), "the same class, with probabilities within 0:"),
        (several([3, 1, 0], images=2), ""),  # two photos may well be of one class
        (several([3, 1, np.nan]), ""),  # which is told otherwise
        (np.zeros((0, 3)), ""),
    ],
)
def test_uniform_text(logits, said):
    text = uniform_text(measured(logits))
    assert said in text
    assert bool(text) is bool(said)


def test_uniform_text_of_images_that_are_no_photos():
    found = measured(several([3, 1, 0]))
    assert uniform_text(found, "golden") == ""  # few, and chosen
    assert "--images DIR" in uniform_text(found, "generated")


def test_words_of_what_decides_nothing_count_no_decision():
    found = measured(several([5e-14, 0, 0], [0, 5e-14, 0]))
    assert flips_of(found) == "nothing decided on 24 images"
    assert found.undecidable == 24


def test_words_of_undecidable_flips_tell_them():
    reference, candidate = (
        np.float32([[3, 1, 0], [1.00005, 1, -2]]),
        np.float32([[3, 1, 0], [1, 1.00005, -2]]),
    )
    found = measure(
        *(reference, candidate),
        precision="fp32",
        paths=["a", "b"],
        labels=LABELS,
        batch_sizes=[1],
    )
    assert flips_of(found) == "0 of 1, at most 95.0 % (1 undecidable, 1 changed)"
    proof = msgspec.structs.replace(PROOF, measurement=found)
    assert "1 more image was undecidable; 1 of them changed: either class would do." in (
        proof_words(proof)
    )


def test_status_of_one_class_says_so():
    proof = msgspec.structs.replace(PROOF, measurement=measured(several([3, 1, 0])))
    assert ", all of one class" in status_text(Status("proven", proof))
    assert "same class" in proof_words(proof)[1]
    assert "of one class" not in status_text(Status("proven", PROOF))
