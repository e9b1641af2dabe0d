"""What is said of the walks over the stages and over the nodes."""

import json

import msgspec
import numpy as np
import pytest
from made_reports import (
    BAD_LAYERS,
    BAD_STAGES,
    FINDING,
    GOOD_LAYERS,
    GOOD_STAGES,
    layer,
    layers,
    stages,
    step,
)

from deploykit.commands.diagnose.text import Diagnosis, diagnosis_text, diagnosis_value
from deploykit.parity.diagnosis import Variation
from deploykit.parity.measures import measure
from deploykit.specs.model import Labels


def text_of(**walks):
    return "\n\n".join(diagnosis_text(Diagnosis(**walks)))


def test_diagnosis_text_of_what_passed():
    text = text_of(stages=GOOD_STAGES, layers=(GOOD_LAYERS,))
    assert "stages     from train.py:transform and the checkpoint" in text
    assert "PASSED  stages: every step is within its tolerance" in text
    assert "PASSED  layers of deploy/fp16.onnx: no node adds more than it may" in text
    assert "FAILED" not in text


def test_diagnosis_text_names_first_failed_step():
    text = text_of(stages=BAD_STAGES)
    assert "FOUND  normalise: training used std 0.5\n       --std 0.5,0.5,0.5" in text
    assert "FAILED  stages: first at normalise, std 0.25 instead of 0.5: the largest" in text
    verdicts = [line.rsplit("|", 1)[1].strip() for line in text.splitlines() if "|" in line]
    assert verdicts == ["verdict", "passed", "FAILED", "passed"]


def cells(report):
    """The table's rows below its header."""
    lines = [line for line in text_of(stages=report).splitlines() if line.count("|") >= 5]
    return [[cell.strip() for cell in line.split(" | ")] for line in lines[1:]]


def compared(reference, candidate):
    """A step from these logits of two classes to those."""
    names = [f"{place}.jpg" for place in range(len(reference))]
    found = measure(
        np.array(reference, np.float32).reshape(-1, 2),
        np.array(candidate, np.float32).reshape(-1, 2),
        precision="fp32",
        paths=names,
        labels=Labels(names=("dark", "bright"), source="test"),
        batch_sizes=[1],
    )
    return msgspec.structs.replace(step("runtime", "a device"), added=found)


def test_diagnosis_text_without_compared_images():
    (row,) = cells(stages(compared([], []), findings=(FINDING,)))
    assert row[2:] == ["no image compared", "-", "-", "not judged"]


def test_diagnosis_text_of_a_step_without_answers():
    broken = msgspec.structs.replace(compared([], []), reasons=("it gives no graph that runs",))
    (row,) = cells(stages(broken))
    assert row[2:] == ["no image compared", "-", "-", "FAILED"]
    assert "first at runtime, a device: it gives no graph that runs" in text_of(
        stages=stages(broken)
    )


@pytest.mark.parametrize(
    ("reference", "candidate", "error"),
    [
        ([[0, 0]], [[0, 0]], "0.0e+00"),
        ([[0, 0]], [[0, 1]], "all were zero"),
        ([[0, 4]], [[0, np.nan]], "not finite"),
        ([[0, 4]], [[0, np.inf]], "not finite"),
        ([[0, 4]], [[0, 5]], "2.5e-01"),
    ],
)
def test_diagnosis_text_errors_as_numbers_or_words(reference, candidate, error):
    report = stages(compared(reference, candidate))
    (row,) = cells(report)
    assert row[3] == error
    words = text_of(stages=report).split()
    assert not {"inf", "nan"}.intersection(words)


def test_diagnosis_text_accuracy_beside_training():
    report = msgspec.structs.replace(GOOD_STAGES, correct=7, labelled=8, trained_accuracy=0.97)
    line = (
        "this part  7 of the 8 photos diagnosed here that were not picked for their answers get "
        "their folder's class"
    )
    assert f"{line}; training had 97.0 % right" in text_of(stages=report)
    report = msgspec.structs.replace(report, trained_accuracy=None)
    assert f"{line}\n" in text_of(stages=report)
    assert "this part" not in text_of(stages=GOOD_STAGES)
    assert "accuracy" not in text_of(stages=report)  # which is told of all photos, and elsewhere


def test_diagnosis_text_of_a_finding_without_failed_step():
    report = stages(step("decode", "Pillow"), findings=(FINDING,))
    assert "FAILED  stages: every step is within its tolerance, but a fault was found" in text_of(
        stages=report
    )


def test_diagnosis_text_variations():
    tried = [
        Variation(
            change=change,
            option=option,
            correct=30 + gained,
            images=45,
            gained=gained,
            is_clear=gained > 3,
        )
        for change, option, gained in (
            ("BGR", "", 10),
            ("bicubic", "--interpolation bicubic", 8),
            ("crop 224", "--crop-size 224x224", 1),
            ("std 0.5", "--std 0.5", -2),
        )
    ]
    report = stages(step("decode", "Pillow"), variations=tuple(tried))
    lines = text_of(stages=report).splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.count("|") == 3]
    assert rows == [
        ["changed alone", "right", "gained", "export option"],
        ["BGR", "40 of 45", "+10", "none"],
        ["bicubic", "38 of 45", "+8", "--interpolation bicubic"],
        ["crop 224", "31 of 45", "+1", "no clear gain"],
        ["std 0.5", "28 of 45", "-2", "-"],
    ]


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (
            layer("node_2", 0.1, inherited=0.01),
            "node_2 (Conv of features.0): the error is 1.0e-02 before it and 2.0e-01 after it; it "
            "adds 1.0e-01, and 2.0e-03 is allowed",
        ),
        (layer("node_2", np.inf, non_finite=7, module=""), "node_2 (Conv): 7 of its values are"),
        (layer("node_2", 0.1, reason="differs between batch sizes 1 and 5"), "sizes 1 and 5"),
    ],
)
def test_diagnosis_text_names_first_failed_node(first, words):
    assert f"FAILED  layers of deploy/fp16.onnx: first at {first.node}" in text_of(
        layers=(layers(first=first),)
    )
    assert words in text_of(layers=(layers(first=first),))


def test_diagnosis_text_of_an_unexplained_answer():
    text = text_of(layers=(layers(differences=("the answer's error is 0.3",)),))
    assert "FOUND  the answer's error is 0.3" in text
    assert "FAILED  layers of deploy/fp16.onnx: every node is right, but the answer is not" in text


@pytest.mark.parametrize(
    ("walks", "passed"),
    [
        ({}, True),
        ({"stages": GOOD_STAGES}, True),
        ({"stages": BAD_STAGES}, False),
        ({"stages": stages()}, False),
        ({"layers": (GOOD_LAYERS,)}, True),
        ({"layers": (GOOD_LAYERS, BAD_LAYERS)}, False),
        ({"layers": ()}, False),
        ({"layers": (layers(nodes=0),)}, False),
        ({"stages": GOOD_STAGES, "layers": (BAD_LAYERS,)}, False),
    ],
)
def test_diagnosis_passed_needs_all_that_was_asked(walks, passed):
    assert Diagnosis(**walks).passed is passed
    assert ("FAILED" in text_of(**walks)) is not passed


def test_diagnosis_value_is_plain_and_finite():
    broken = layers(first=layer("node_2", np.inf, non_finite=7))
    value = diagnosis_value(Diagnosis(BAD_STAGES, (GOOD_LAYERS, broken)))
    json.dumps(value, allow_nan=False)
    assert (value["stages"]["passed"], value["stages"]["first"]) == (False, 1)
    assert value["stages"]["steps"][1]["stage"] == "normalise"
    assert [report["passed"] for report in value["layers"]] == [True, False]
    assert value["layers"][1]["first"]["added"] is None


def test_diagnosis_value_of_what_was_not_asked():
    assert diagnosis_value(Diagnosis()) == {"stages": None, "layers": None, "broken_off": []}
    assert diagnosis_value(Diagnosis(GOOD_STAGES))["stages"]["first"] is None
