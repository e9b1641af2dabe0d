"""What verify shows of a lower precision beside its flips: classes that lose, and the budget."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from made_verifications import GRAPHS, made_bundle, made_logits, made_verification

from deploykit.commands.verify.page import write_certificate
from deploykit.commands.verify.text import verification_text, verification_value
from deploykit.parity.budget import Budget
from deploykit.proof.verdict import judge

FP32, FP16 = GRAPHS[1], GRAPHS[2]


@pytest.fixture
def turned():
    """30 photos, 10 of each class, of which FP16 takes the first cats and a dog for owls."""
    logits = made_logits(30)
    other = logits.copy()
    other[[0, 3, 6, 1]] = [0, 0, 9]
    return logits, other


def labelled(logits):
    names = [("cat", "dog", "owl")[i % 3] for i in range(len(logits))]
    paths = [f"{name}/{i:03}.png" for i, name in enumerate(names)]
    return {path: (name,) for path, name in zip(paths, names, strict=True)}


def table_of(page):
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", page, re.DOTALL)
    return [[*map(str.strip, re.sub(r"<[^>]+>", " ", row).split())] for row in rows]


@pytest.mark.parametrize("known", [False, True])
def test_verification_text_of_classes_that_lose(turned, known):
    logits, other = turned
    expected = labelled(logits) if known else None
    result = made_verification(logits, {FP32: logits, FP16: other}, expected=expected)
    text = verification_text(result)
    clear = 10 if known else result.class_changes[result.verdicts[1].candidate][0].images
    assert f"{FP16} on rehearsal loses: cat 3 of {clear}, dog 1 of 10" in text
    assert text.count("loses:") == 1
    *_, fp16 = verification_value(result)["verdicts"]
    assert [(each["label"], each["lost"]) for each in fp16["classes"]] == [
        ("cat", 3),
        ("dog", 1),
        ("owl", 0),
    ]
    assert verification_value(result)["verdicts"][0]["classes"] == []


def test_verification_text_without_a_loss_has_no_line(turned):
    logits, _ = turned
    result = made_verification(logits, {FP16: logits}, expected=labelled(logits))
    assert "loses" not in verification_text(result)
    (value,) = verification_value(result)["verdicts"]
    assert [each["images"] for each in value["classes"]] == [10, 10, 10]


def test_verification_tells_the_paired_difference(turned):
    logits, other = turned
    result = made_verification(logits, {FP16: other}, expected=labelled(logits))
    # Agresti and Min: 4/32, and 1.96 times sqrt(5 - 16/32)/32 to either side.
    assert "accuracy 13.3 points lower on the same 30 images (95 %: 25.5 lower to 0.5 higher)" in (
        verification_text(result)
    )
    (value,) = verification_value(result)["verdicts"]
    assert value["accuracy_drop"]["points"] == pytest.approx(40 / 3)
    assert value["accuracy_drop"]["interval"] == pytest.approx([-0.4928, 25.4928], abs=1e-3)
    json.dumps(value)


def test_certificate_shows_classes_that_change(turned, tmp_path):
    logits, other = turned
    bundle = made_bundle(tmp_path)
    for name, candidate in (("same", logits), ("other", other)):
        result = made_verification(
            logits, {FP16: candidate}, expected=labelled(logits), folder=tmp_path / "photos"
        )
        write_certificate(tmp_path / f"{name}.html", bundle, result)
    same = (tmp_path / "same.html").read_text(encoding="utf-8")
    page = (tmp_path / "other.html").read_text(encoding="utf-8")
    assert "Classes that lose or gain" not in same
    part = page[page.index("<h3>Classes that lose or gain photos</h3>") :]
    assert table_of(part)[:2] == [["cat", "10", "10", "7"], ["dog", "10", "10", "9"]]


def test_budget_is_shown_everywhere(turned, tmp_path):
    logits, other = turned
    result = made_verification(
        logits, {FP16: other}, expected=labelled(logits), folder=tmp_path / "photos"
    )
    (verdict,) = result.verdicts
    assert verdict.failed
    within = judge(verdict.candidate, verdict.measurement, budget=Budget(max_accuracy_drop=15))
    result = replace(result, verdicts=(within,))
    said = (
        "budget: the accuracy may fall by at most 15 points; accuracy 13.3 points lower on "
        "the same 30 images (95 %: 25.5 lower to 0.5 higher)"
    )
    text = verification_text(result)
    assert "decides as the trained model does, within the budget." in text
    assert f"\n{FP16} on rehearsal: {said}" in text
    assert verification_value(result)["verdicts"][0]["budget"]["max_accuracy_drop"] == 15
    write_certificate(tmp_path / "page.html", made_bundle(tmp_path), result)
    assert said in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_verify_accuracy_drop_without_labels(verify, photo_folder, tmp_path, monkeypatch):
    """It is refused before anything is opened."""
    monkeypatch.setattr("deploykit.commands.verify.run.open_reference", None)
    shutil.copytree(photo_folder / "red", tmp_path / "unsorted")
    code, _, err = verify("--images", tmp_path / "unsorted", "--max-accuracy-drop", 1)
    assert code == 2
    assert "no class is known" in err
    assert "--expected FILE" in err


def test_verify_says_that_a_budget_is_not_for_fp32(verify, photo_folder, no_openvino, answers):
    answers("deploy/fp32.onnx", np.negative)
    code, _, err = verify("--images", photo_folder, "--max-flips", "100%")
    assert code == 3
    assert "--max-flips 100% allows nothing here: all that is compared computes in FP32" in err


def test_verify_lowest_margins_take_no_accuracy_drop(verify, photo_folder):
    code, _, err = verify(
        "--images",
        photo_folder,
        "--lowest-margins",
        5,
        "--max-accuracy-drop",
        1,
        "--runtime",
        "rehearsal",
    )
    assert code == 2
    assert "nothing about the accuracy" in err
