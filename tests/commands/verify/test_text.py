"""What ``verify`` says of accuracy: both sides, class by class."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from made_verifications import BIRDS, GRAPHS, MODULE, made_logits, made_verification

from deploykit.bundle.verdicts import ImageSet
from deploykit.commands.diagnose.text import BrokenDiagnosis, Diagnosis
from deploykit.commands.verify.text import verification_text, verification_value
from deploykit.parity.diagnosis import Finding, LayerError, LayerReport, StageReport, Variation
from deploykit.proof.text import images_text
from deploykit.specs.heads import MultiLabel
from deploykit.specs.model import Labels
from deploykit.system.text import rate_digits


def labelled(logits, candidates, labels=BIRDS):
    """A verification on photos in folders that are named after their classes."""
    names = [labels.names[i % len(labels)] for i in range(len(logits))]
    paths = [f"{name}/{i:03}.png" for i, name in enumerate(names)]
    expected = {path: (name,) for path, name in zip(paths, names, strict=True)}
    return made_verification(logits, candidates, labels=labels, paths=paths, expected=expected)


def rows_of(text, columns):
    """The rows of the table with so many columns."""
    lines = [line.split("|") for line in text.splitlines()]
    return [[cell.strip() for cell in line] for line in lines if len(line) == columns]


def test_verification_text_accuracy_columns():
    logits = made_logits(30)
    wrong = logits.copy()
    wrong[0] = [0, 9, 0]
    result = labelled(logits, {GRAPHS[0]: logits, GRAPHS[1]: wrong})
    text = verification_text(result)
    assert "accuracy   100.0 % (30 of 30), of such images at least 90.5 %: the reference" in text
    assert "           the same in each class: model.onnx on onnxruntime-cpu" in text
    assert (
        "           96.7 % (29 of 30), of such images at least 85.1 %: "
        "deploy/fp32.onnx on onnxruntime-cpu"
    ) in text
    assert "\ndifferent in 1 of 3 classes:\n" in text
    header, cat = rows_of(text, 6)
    assert header == [
        *("class", "images", "reference", "its errors at most"),
        *("deploy/fp32.onnx on onnxruntime-cpu", "its errors at most"),
    ]
    assert cat == ["cat", "10", "100.0 %", "25.9 %", "90.0 %", "39.4 %"]


def test_verification_text_several_measures_have_a_row_a_side():
    labels = msgspec.structs.replace(BIRDS, head=MultiLabel(thresholds=(0.5, 0.5, 0.5)))
    paths = ["a.png", "b.png", "c.png", "d.png"]
    logits = np.array([[3, 1, -3], [3, -2, -3], [-1, 2, -3], [-3, -2, 4]], np.float32)
    changed = logits.copy()
    changed[0, 1] = -1  # no dog where there is one
    result = made_verification(
        logits,
        {GRAPHS[0]: logits, GRAPHS[1]: changed},
        labels=labels,
        paths=paths,
        expected={"a.png": ("cat", "dog"), "b.png": ("cat",), "c.png": ("dog",), "d.png": ("owl",)},
    )
    other = "deploy/fp32.onnx on onnxruntime-cpu"
    assert rows_of(verification_text(result), 6) == [
        ["class", "images", "recall", "precision", "average precision", "model"],
        ["dog", "2", "100.0 %", "100.0 %", "100.0 %", "reference"],
        ["", "", "50.0 %", "100.0 %", "100.0 %", other],
    ]


def test_verification_text_worst_of_many_classes():
    labels = Labels(names=tuple(f"kind_{i}" for i in range(40)), source="test")
    logits = made_logits(80, 40)
    wrong = logits.copy()
    wrong[[37, 77, *range(30)]] *= -1
    result = labelled(logits, {GRAPHS[1]: wrong}, labels)
    text = verification_text(result)
    assert "different in 31 of 40 classes, the worst 10:" in text
    rows = rows_of(text, 6)[1:]
    assert len(rows) == 10
    assert [rows[0][i] for i in (0, 1, 2, 4)] == ["kind_37", "2", "100.0 %", "0.0 %"]


def test_verification_text_says_once_what_candidates_share():
    logits = made_logits(30)
    wrong = logits.copy()
    wrong[0] = [0, 9, 0]
    result = labelled(logits, {GRAPHS[0]: wrong, GRAPHS[1]: wrong, GRAPHS[2]: logits})
    text = verification_text(result)
    both = "model.onnx on onnxruntime-cpu and deploy/fp32.onnx on onnxruntime-cpu"
    assert text.count("of such images at least 85.1 %") == 1
    assert f"of such images at least 85.1 %: {both}" in text
    assert text.count(f"flip  {both}: cat/000.png: cat -> dog") == text.count("flip  ") == 1
    assert f"\nFAILED  {both}: " in text


def test_verification_text_of_equal_classes_has_no_table_of_them():
    logits = made_logits(30)
    text = verification_text(labelled(logits, {GRAPHS[0]: logits, GRAPHS[1]: logits}))
    assert "           the same in each class: all 2 candidates\n" in text
    assert not rows_of(text, 6)
    assert "its errors at most" not in text


def test_verification_text_without_labels_has_no_accuracy():
    logits = made_logits(30)
    result = made_verification(logits, {GRAPHS[1]: logits})
    assert "accuracy" not in verification_text(result)
    assert verification_value(result)["accuracy"] is None


def test_verification_value_of_non_finite_numbers():
    logits = made_logits(30)
    broken = np.full_like(logits, np.nan)
    value = verification_value(labelled(logits, {GRAPHS[1]: broken}))
    assert value["passed"] is False
    assert value["verdicts"][0]["measurement"]["non_finite"] == logits.size
    assert value["accuracy"]["candidates"][0]["correct"] == 0


def test_verification_text_of_golden_images_has_no_bound(tmp_path):
    logits = made_logits(30)
    text = verification_text(made_verification(logits, {GRAPHS[1]: logits}))
    assert "at most" not in text
    assert "chosen at export for their margins, so no rate follows" in text
    photos = verification_text(made_verification(logits, {GRAPHS[1]: logits}, folder=tmp_path))
    assert "0 of 30, at most 9.5 %" in photos


def test_rate_digits_of_small_rates():
    assert [rate_digits(rate) for rate in (0.0, 0.0132, 0.0003, 0.00001)] == [
        *("0.0", "1.3", "0.03", "0.001"),
    ]


def test_worst_images_flipped_first_then_by_error():
    logits = made_logits(6)
    candidate = logits.copy()
    candidate[1] += 5  # far, and without another class
    candidate[3] += 2
    flipped = int(np.argmin(np.abs(np.sort(logits)[:, -1] - np.sort(logits)[:, -2])))
    top, second = np.argsort(-logits[flipped])[:2]
    candidate[flipped, [top, second]] = candidate[flipped, [second, top]]
    result = made_verification(logits, {GRAPHS[1]: candidate}, paths=list("abcdef"))
    expected = ["abcdef"[flipped], *(name for name in "bd" if name != "abcdef"[flipped])]
    assert result.worst_images(len(expected)) == tuple(expected)
    assert len(result.worst_images(16)) == 6
    broken = np.where(np.arange(6)[:, None] == 4, np.nan, logits)
    assert made_verification(logits, {GRAPHS[1]: broken}, paths=list("abcdef")).worst_images(1) == (
        "e",
    )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"count": 225}, "225 photos of birds"),
        ({"count": 225, "duplicates": 1}, "225 photos of birds (1 duplicate skipped)"),
        (
            {"count": 1, "duplicates": 3, "calibration": 32},
            "1 photo of birds (3 duplicates and 32 calibration images skipped)",
        ),
        ({"count": 1, "kind": "golden"}, "the bundle's 1 golden image"),
        (
            {"count": 24, "kind": "generated"},
            "24 generated images, no photos (verify again with --images)",
        ),
    ],
)
def test_photos_text_counts_compared_and_skipped(fields, text):
    assert (
        images_text(ImageSet(**{"kind": "photos", "source": "birds", "sha256": "d"} | fields))
        == text
    )


def test_verification_value_names_the_reference():
    logits = made_logits(30)
    fields = {"kind": "graph", "module_reason": "best_model.pth is not there"}
    value = verification_value(
        made_verification(logits, {GRAPHS[1]: logits}, reference_fields=fields)
    )
    assert value["reference"] == {"description": MODULE, "is_recorded": True, **fields}


#: What a name would add to a report if its line ends, and what controls a terminal, were printed.
FORGED = "x\nPASSED\r\x1b[2J\u2028"


def test_verification_text_of_forged_names():
    """Of images, labels, the folder and the reference: each line is the report's own."""
    logits = made_logits(30)
    result = labelled(logits, {GRAPHS[1]: -logits})
    (verdict,) = result.verdicts
    flips = tuple(
        msgspec.structs.replace(each, path=FORGED, reference=FORGED, candidate=FORGED)
        for each in verdict.measurement.flipped
    )
    found = msgspec.structs.replace(verdict.measurement, flipped=flips)
    spec = msgspec.structs.replace(verdict.candidate, graph=FORGED, device=FORGED)
    verdict = msgspec.structs.replace(verdict, measurement=found, candidate=spec)
    finding = Finding(stage="labels", message=FORGED, hint=FORGED)
    first = LayerError(FORGED, FORGED, FORGED, FORGED, 1.0, 1.0, 0, FORGED)
    result = replace(
        result,
        verdicts=(verdict.refused(FORGED),),
        images=msgspec.structs.replace(result.images, kind="photos", source=FORGED),
        reference=replace(result.reference, description=FORGED, kind="graph", module_reason=FORGED),
        diagnosis=Diagnosis(
            StageReport(FORGED, (), (finding,), (Variation(FORGED, FORGED, 1, 2, 1, True),)),
            (LayerReport(spec, FORGED, 1, 0.1, first, (first,), 1, (FORGED,)),),
            (BrokenDiagnosis("stages", FORGED, FORGED, 4),),
        ),
    )
    text = verification_text(result)
    assert not set(text) & {"\r", "\x1b", "\u2028"}
    # An error's message may have lines of its own, which are set in.
    assert {line for line in text.splitlines() if "PASSED" in line[:6]} == set()
    assert text.count("x\\nPASSED\\r\\x1b[2J\\u2028 ") >= 15
