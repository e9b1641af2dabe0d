"""What ``verify`` says of accuracy: both sides, class by class."""

import dataclasses

import msgspec
import numpy as np
import pytest
from made_verifications import BIRDS, GRAPHS, made_logits, made_verification

from deploykit.bundle.verdicts import PhotoSet
from deploykit.commands.verify.text import comparison_text, verification_text, verification_value
from deploykit.proof.text import flips_text, photos_text
from deploykit.specs.labels import Labels
from deploykit.system.text import rate_digits


def labelled(logits, candidates, labels=BIRDS):
    """A verification on photos in folders that are named after their classes."""
    names = [labels.names[i % len(labels)] for i in range(len(logits))]
    paths = [f"{name}/{i:03}.png" for i, name in enumerate(names)]
    expected = dict(zip(paths, names, strict=True))
    return made_verification(logits, candidates, labels=labels, paths=paths, expected=expected)


def rows_of(text, columns):
    """The rows of the table with so many columns."""
    lines = [line.split("|") for line in text.splitlines()]
    return [[cell.strip() for cell in line] for line in lines if len(line) == columns]


def test_sides_that_differ_have_a_column_each():
    logits = made_logits(30)
    wrong = logits.copy()
    wrong[0] = [0, 9, 0]
    result = labelled(logits, {GRAPHS[0]: logits, GRAPHS[1]: wrong})
    text = verification_text(result)
    assert "accuracy   100.0 % (30 of 30), errors at most 9.5 %: the reference" in text
    assert "           the same, class by class: model.onnx on onnxruntime-cpu" in text
    assert (
        "           96.7 % (29 of 30), errors at most 14.9 %: deploy/fp32.onnx on onnxruntime-cpu"
    ) in text
    header, cat, dog, owl = rows_of(text, 6)
    assert header == [
        *("class", "images", "reference", "its errors at most"),
        *("deploy/fp32.onnx on onnxruntime-cpu", "its errors at most"),
    ]
    assert cat == ["cat", "10", "100.0 %", "25.9 %", "90.0 %", "39.4 %"]
    assert dog == ["dog", "10", "100.0 %", "25.9 %", "100.0 %", "25.9 %"]
    assert owl[:2] == ["owl", "10"]


def test_of_many_classes_the_worst_are_shown():
    labels = Labels(names=tuple(f"kind_{i}" for i in range(40)), source="test")
    logits = made_logits(80, 40)
    wrong = logits.copy()
    wrong[37] = -wrong[37]
    result = labelled(logits, {GRAPHS[1]: wrong}, labels)
    text = verification_text(result)
    assert "the worst 10 of 40 classes:" in text
    rows = rows_of(text, 6)[1:]
    assert len(rows) == 10
    assert [rows[0][i] for i in (0, 1, 2, 4)] == ["kind_37", "2", "100.0 %", "50.0 %"]


def test_without_labels_nothing_is_said_of_accuracy():
    logits = made_logits(30)
    result = made_verification(logits, {GRAPHS[1]: logits})
    assert "accuracy" not in verification_text(result)
    assert verification_value(result)["accuracy"] is None


def test_numbers_that_are_not_finite_are_null_in_json():
    logits = made_logits(30)
    broken = np.full_like(logits, np.nan)
    value = verification_value(labelled(logits, {GRAPHS[1]: broken}))
    assert value["passed"] is False
    assert value["verdicts"][0]["measurement"]["max_abs_error"] is None
    assert value["accuracy"]["candidates"][0]["correct"] == 0


def test_the_reference_is_told_for_what_it_is():
    logits = made_logits(30)
    candidates = {GRAPHS[1]: logits}
    trained = made_verification(logits, candidates)
    value = verification_value(trained)
    assert (value["reference_kind"], value["is_recorded"]) == ("module", True)
    assert value["claim"] == "decides as the trained one does"
    assert "no proof of this bundle" not in verification_text(trained)
    other = made_verification(logits, candidates, is_recorded=False)
    assert "That is no proof of this bundle" in verification_text(other)
    assert verification_value(other)["is_recorded"] is False
    golden = made_verification(logits, candidates, reference_kind="golden")
    assert "a few recorded answers, not with the trained model" in verification_text(golden)


def test_golden_images_give_no_bound(tmp_path):
    logits = made_logits(30)
    text = verification_text(made_verification(logits, {GRAPHS[1]: logits}))
    assert "at most" not in text
    assert "chosen at export for their margins: no bound" in text
    photos = verification_text(made_verification(logits, {GRAPHS[1]: logits}, folder=tmp_path))
    assert "0 of 30, at most 9.5 %" in photos


def test_images_of_a_search_are_told_and_left_out_of_the_bound(tmp_path):
    logits = made_logits(30)
    result = made_verification(logits, {GRAPHS[1]: logits}, folder=tmp_path)
    (verdict,) = result.verdicts
    result = dataclasses.replace(result, verdicts=(verdict.with_searched(10),))
    told = f"10 of these images had a part in making {GRAPHS[1]}: its bound is over the others."
    assert f"           {told}" in verification_text(result).splitlines()
    assert "0 of 30, at most 13.9 %" in verification_text(result)  # 1 - 0.05 ** (1 / 20)
    value = verification_value(result)
    assert (value["limit"], value["verdicts"][0]["searched"]) == (told, 10)


def test_a_small_bound_does_not_look_like_none():
    assert [rate_digits(rate) for rate in (0.0, 0.0132, 0.0003, 0.00001)] == [
        *("0.0", "1.3", "0.03", "0.001"),
    ]


def test_the_photos_to_look_at_first_are_those_that_flipped_then_the_largest_errors():
    logits = made_logits(6)
    candidate = logits.copy()
    candidate[1] += 5  # far, and without another class
    candidate[3] += 2
    flipped = int(np.argmin(np.abs(np.sort(logits)[:, -1] - np.sort(logits)[:, -2])))
    top, second = np.argsort(-logits[flipped])[:2]
    candidate[flipped, [top, second]] = candidate[flipped, [second, top]]
    result = made_verification(logits, {GRAPHS[1]: candidate}, paths=list("abcdef"))
    expected = ["abcdef"[flipped], *(name for name in "bd" if name != "abcdef"[flipped])]
    assert result.worst_photos(len(expected)) == tuple(expected)
    assert len(result.worst_photos(16)) == 6
    broken = np.where(np.arange(6)[:, None] == 4, np.nan, logits)
    assert made_verification(logits, {GRAPHS[1]: broken}, paths=list("abcdef")).worst_photos(1) == (
        "e",
    )


def test_copies_crowd_no_flip_out():
    """Thirteen photos changed their class, twelve of them the same."""
    logits = np.tile(np.float32([3, 1, 0]), (20, 1))
    logits[12:] = [2, 1, 0]
    candidate = logits.copy()
    candidate[:13] = candidate[:13, ::-1]
    paths = [f"{i:02}.png" for i in range(20)]
    firsts = [0] * 12 + [*range(12, 20)]
    result = made_verification(logits, {GRAPHS[1]: candidate}, paths=paths, firsts=firsts)
    (verdict,) = result.verdicts
    assert verdict.measurement.flips == 2
    first, other, copies = flips_text(verdict)
    assert "00.png: cat -> owl" in first
    assert "12.png: cat -> owl" in other
    assert copies == "      ... and 11 copies of these"
    assert result.worst_photos(3) == ("00.png", "12.png", "13.png")
    assert len(result.worst_photos(16)) == 9


def test_a_note_is_no_objection():
    logits = made_logits(30)
    result = made_verification(logits, {GRAPHS[1]: -logits})
    (verdict,) = result.verdicts
    told = msgspec.structs.replace(verdict, note="the proof of 2026-11-21 stands")
    before, after = (
        verification_text(dataclasses.replace(result, verdicts=(each,))).splitlines()
        for each in (verdict, told)
    )
    assert after == [
        *before,
        f"note    {GRAPHS[1]} on onnxruntime-cpu: the proof of 2026-11-21 stands",
    ]


def test_where_the_graph_stands_in_it_is_said_and_why():
    logits = made_logits(30)
    why = "/runs/best_model.pth has changed since the export"
    result = made_verification(logits, {GRAPHS[1]: logits}, reference_kind="graph", obstacle=why)
    for text in (verification_text(result), verification_value(result)["limit"]):
        assert f"The trained model itself was not asked: {GRAPHS[0]}" in text
        assert f"because {why}." in text
    assert verification_value(result)["obstacle"] == why
    trained = verification_value(made_verification(logits, {GRAPHS[1]: logits}))
    assert trained["limit"] is trained["obstacle"] is None


@pytest.mark.parametrize(
    ("copies", "text"),
    [
        (0, "225 photos of birds"),
        (1, "225 photos of birds, 1 of them a copy"),
        (3, "225 photos of birds, 3 of them copies"),
    ],
)
def test_copies_are_told(copies, text):
    photos = PhotoSet(kind="photos", source="birds", images=225, sha256="d", copies=copies)
    assert photos_text(photos) == text


def test_one_photo_is_no_photos():
    for kind, text in (
        ("photos", "1 photo of birds"),
        ("golden", "the bundle's 1 golden image"),
        ("generated", "1 made image, which is no photo: verify again with --images"),
    ):
        assert photos_text(PhotoSet(kind=kind, source="birds", images=1, sha256="d")) == text


def test_a_comparison_of_nothing_does_not_count_candidates():
    logits = made_logits(30)
    assert comparison_text(made_verification(logits, {})) == (
        "FAILED  comparison: no candidate was compared"
    )
    failed = made_verification(logits, {GRAPHS[1]: -logits})
    assert comparison_text(failed) == "FAILED  comparison: 1 of 1 candidate failed"
