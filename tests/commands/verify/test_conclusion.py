"""What a verification shows, in plain words, and that every report says the same."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from made_verifications import (
    made_bundle,
    made_layers,
    made_logits,
    made_stages,
    made_verification,
    moved,
)

from deploykit.commands.diagnose.text import BrokenDiagnosis
from deploykit.commands.verify.conclusion import RECORDED_PREPROCESSING_ONLY, conclusion_of
from deploykit.commands.verify.junit import write_junit
from deploykit.commands.verify.page import write_certificate
from deploykit.commands.verify.text import verification_text, verification_value
from deploykit.parity.diagnosis import Stage
from deploykit.parity.mining import MarginMining
from deploykit.parity.tolerance import Tolerance
from deploykit.proof.text import outcome_of

FP32, FP16 = "deploy/fp32.onnx", "deploy/fp16.onnx"
LOGITS = np.array([[3, 1, 0], [0, 2, 1.5], [0, 0.4, 0.5], [4, 0, 1]], np.float32)
#: The second image turns from dog to owl.
FLIPPED = np.array([[3, 1, 0], [0, 1.6, 1.9], [0, 0.4, 0.5], [4, 0, 1]], np.float32)
TIES = np.zeros((4, 3), np.float32)
BROKEN = np.array([[3, 1, 0], [0, np.nan, 1.5], [0, 0.4, 0.5], [4, 0, 1]], np.float32)
STAGES = made_stages(made_logits(60), fault=True)


def verified(candidate: np.ndarray, reference: np.ndarray = LOGITS, **fields: object):
    return made_verification(reference, {FP32: candidate}, folder=Path("birds"), **fields)


def test_conclusion_passed_gives_the_bound() -> None:
    logits = made_logits(225)
    found = made_verification(
        logits, {"model.onnx": logits, FP32: moved(logits, 1e-6)}, folder=Path("birds")
    )
    conclusion = conclusion_of(found)
    assert conclusion.outcome == "passed"
    assert conclusion.sentence == "The deployed model decides as the trained model does."
    assert conclusion.reasons == (
        "All 225 photos got the same answer from the trained model and from each of the 2 "
        "deployed ones.",
        "If the photos to come are like these, at most 1.3 % of the decisions will differ "
        "from those of the trained model, with 95 % confidence.",
    )
    assert conclusion.limits == (
        "Whether the answers are right is another question: these photos have no labels.",
    )


@pytest.mark.parametrize(
    ("fields", "does", "limit"),
    [
        (
            {"kind": "golden", "description": "answers recorded in golden.npz"},
            "gives the answers recorded at export",
            "not with the trained model",
        ),
        (
            {"kind": "graph", "module_reason": "best_model.pth is not there"},
            "decides as model.onnx does",
            "Compared with model.onnx, not with the checkpoint: best_model.pth is not there.",
        ),
        (
            {"is_recorded": False, "description": "torch module dpn92 from other.pth"},
            "decides as the torch module dpn92 from other.pth does",
            "no proof of this bundle",
        ),
    ],
)
def test_conclusion_claims_only_what_was_compared(fields: dict, does: str, limit: str) -> None:
    conclusion = conclusion_of(verified(LOGITS, reference_fields=fields))
    assert conclusion.sentence == f"On 4 photos, the deployed model {does}."  # so few are named
    assert limit in (conclusion.stand_in or conclusion.limits[0])
    assert "trained" not in " ".join((conclusion.sentence, *conclusion.reasons))
    assert "not" in conclusion_of(verified(FLIPPED, reference_fields=fields)).sentence


@pytest.mark.parametrize(
    ("candidate", "sentence", "reason"),
    [
        (
            FLIPPED,
            "The deployed model does not decide as the trained model does.",
            "In deploy/fp32.onnx on onnxruntime-cpu, 1 of 4 images changed their class; at most "
            "0% may.",
        ),
        (
            moved(LOGITS, 0.01),
            "The deployed model's answers moved further than is allowed.",
            "of the scale; at most 1e-04 is allowed.",
        ),
        (BROKEN, "Some of the answers are NaN or infinite.", "1 logit is NaN or infinite."),
    ],
)
def test_conclusion_failed_says_what_to_do(
    candidate: np.ndarray, sentence: str, reason: str
) -> None:
    conclusion = conclusion_of(verified(candidate))
    assert (conclusion.outcome, conclusion.sentence) == ("failed", sentence)
    assert conclusion.reasons[0].endswith(reason)
    assert conclusion.reasons[1] == "Do not deploy it as it is."
    assert len(conclusion.reasons) == 2
    assert conclusion.diagnosis.startswith("deploykit verify --stages")


def test_conclusion_of_two_that_failed() -> None:
    found = made_verification(LOGITS, {"model.onnx": BROKEN, FP32: BROKEN}, folder=Path("birds"))
    advice = conclusion_of(found).reasons[-1]
    assert advice.startswith("Do not deploy model.onnx on")
    assert advice.endswith("as they are.")


def test_conclusion_without_evidence_is_unproven() -> None:
    refused = verified(LOGITS)
    verdicts = tuple(each.refused("the reference is not proven") for each in refused.verdicts)
    for found, reason in (
        (verified(TIES, TIES), "The reference does not decide 4 of 4 images"),
        (verified(LOGITS[:0], LOGITS[:0]), "No image was compared."),
        (replace(refused, verdicts=verdicts), "The reference is not proven."),
        (made_verification(LOGITS, {}), "No candidate was compared."),
    ):
        conclusion = conclusion_of(found)
        assert conclusion.outcome == "unproven"
        assert conclusion.reasons[0].startswith(reason)


def test_outcome_of_follows_numbers_before_reasons() -> None:
    (verdict,) = verified(FLIPPED).verdicts
    assert outcome_of(verdict) == "failed"
    allowed = Tolerance(max_flip_rate=1.0)
    excused = msgspec.structs.replace(verdict, reasons=(), tolerance=allowed)
    assert outcome_of(excused) == "passed"
    assert outcome_of(excused.refused("the reference is not proven")) == "unproven"


@pytest.mark.parametrize(
    ("diagnosis", "reason"),
    [
        (
            {"stages": STAGES},
            "The fault is in the stage resize: training used bicubic, the bundle records bilinear.",
        ),
        (
            {"stages": msgspec.structs.replace(STAGES, findings=())},
            "The fault is in the stage resize: bilinear instead of bicubic.",
        ),
        (
            {"stages": msgspec.structs.replace(STAGES, findings=(), steps=())},
            "The diagnosis by stage compared nothing.",
        ),
        (
            {"layers": [made_layers(fault=True)]},
            "The fault in deploy/fp16.onnx: node_conv2d_3 (Conv of features.3).",
        ),
        ({"layers": []}, "The diagnosis by node compared nothing."),
        (
            {"broken_off": [BrokenDiagnosis("stages", "There is no torch.", "Install it.", 5)]},
            "The diagnosis of the stages could not be made: There is no torch.",
        ),
    ],
)
def test_conclusion_of_a_fault_is_failed(diagnosis: dict, reason: str) -> None:
    found = verified(LOGITS, **diagnosis)
    assert found.candidates_passed
    assert not found.passed
    conclusion = conclusion_of(found)
    assert conclusion.outcome == "failed"
    assert conclusion.sentence.endswith(", but a fault was found.")
    assert conclusion.reasons == (reason,)
    unproven = conclusion_of(verified(TIES, TIES, **diagnosis))
    assert (unproven.outcome, unproven.reasons[0]) == ("failed", reason)


def test_conclusion_of_a_clean_diagnosis_is_passed() -> None:
    clean = made_stages(made_logits(60), fault=False)
    found = verified(LOGITS, stages=clean, layers=[made_layers(fault=False)])
    assert conclusion_of(found).outcome == "passed"


def test_conclusion_limited_by_preprocessing_faults() -> None:
    """For each candidate that passed its proof is kept, whatever became of the others."""
    mixed = made_verification(LOGITS, {"model.onnx": LOGITS, FP32: -LOGITS}, stages=STAGES)
    assert RECORDED_PREPROCESSING_ONLY in conclusion_of(mixed).limits
    failed = made_verification(LOGITS, {FP32: -LOGITS}, stages=STAGES)
    assert RECORDED_PREPROCESSING_ONLY not in conclusion_of(failed).limits


@pytest.mark.parametrize("stage", ["photos", "network", "labels", "batch size", "runtime"])
def test_conclusion_not_limited_by_later_faults(stage: Stage) -> None:
    steps = [msgspec.structs.replace(step, stage=stage) for step in STAGES.steps]
    faults = [msgspec.structs.replace(fault, stage=stage) for fault in STAGES.findings]
    elsewhere = msgspec.structs.replace(STAGES, steps=tuple(steps), findings=tuple(faults))
    conclusion = conclusion_of(verified(LOGITS, stages=elsewhere))
    assert conclusion.outcome == "failed"
    assert RECORDED_PREPROCESSING_ONLY not in conclusion.limits


@pytest.mark.parametrize("kind", ["golden", "generated"])
def test_conclusion_without_sample_gives_no_bound(kind: str) -> None:
    found = made_verification(LOGITS, {FP32: LOGITS})
    photos = msgspec.structs.replace(found.images, kind=kind)
    conclusion = conclusion_of(replace(found, images=photos))
    words = {"golden": "chosen at export for their margins", "generated": "generated images"}
    assert words[kind] in conclusion.reasons[1]
    assert "95" not in " ".join(conclusion.reasons)


def test_conclusion_names_its_limits() -> None:
    logits = made_logits(300)
    logits[0] = (1.001, 1.0, 0)
    mining = MarginMining(
        compared=300,
        ranked=900,
        ranked_by="deploy/fp32.onnx on onnxruntime-cpu",
        ranking_error=1e-6,
        smallest_skipped=0.5,
        lost={FP16: 0.01},
    )
    found = made_verification(logits, {FP16: logits}, unreadable=3, mining=mining)
    limits = " ".join(conclusion_of(found).limits)
    for expected in (
        "deploy/fp16.onnx was rehearsed on a model of fp16 hardware",
        "of 300 images are undecidable in fp16",
        "It was compared on the bundle's 300 golden images",
        "3 more photos could not be read",
        "900 photos were ranked by the margins",
        "The smallest margin of the 600 other photos is 0.5",
    ):
        assert expected in limits
    assert "have no labels" not in limits  # a sample by margin is not held against them


@pytest.mark.parametrize("candidate", [LOGITS, FLIPPED, BROKEN], ids=["passed", "failed", "NaN"])
@pytest.mark.parametrize("diagnosis", [{}, {"stages": STAGES}], ids=["alone", "with stages"])
def test_conclusion_is_in_every_report(
    tmp_path: Path, candidate: np.ndarray, diagnosis: dict
) -> None:
    fields = {
        "kind": "graph",
        "module_reason": "best_model.pth is not there",
        "module_options": ("--ckpt", "FILE"),
    }
    found = verified(candidate, reference_fields=fields, **diagnosis)
    conclusion = conclusion_of(found)
    sentences = (
        conclusion.stand_in,
        conclusion.command,
        *(conclusion.sentence, *conclusion.reasons, *conclusion.limits),
    )
    assert all(sentences)
    value = json.loads(json.dumps(verification_value(found)))
    assert value["conclusion"]["outcome"] == conclusion.outcome
    bundle = made_bundle(tmp_path)
    write_certificate(tmp_path / "page.html", bundle, found)
    write_junit(tmp_path / "junit.xml", bundle, found)
    said = value["conclusion"]
    properties = ET.parse(tmp_path / "junit.xml").iter("property")
    texts = (
        verification_text(found),
        " ".join(
            (*map(said.get, ("stand_in", "command", "sentence")), *said["reasons"], *said["limits"])
        ),
        (tmp_path / "page.html").read_text(encoding="utf-8"),
        " ".join(each.get("value", "") for each in properties),
    )
    for text in texts:
        for sentence in sentences:
            assert sentence in text.replace("&#39;", "'")


def test_conclusion_of_undecidable_images_says_it_once() -> None:
    logits = made_logits(60)
    logits[0] = (1.00005, 1.0, -2)
    found = made_verification(logits, {"model.onnx": logits, FP32: logits}, folder=Path("birds"))
    said = [each for each in conclusion_of(found).limits if "undecidable" in each]
    assert said == [
        "1 of 60 photos is undecidable in fp32: either class would do, so that no change of them "
        "counts as a flip."
    ]


@pytest.mark.parametrize(("photos", "enough"), [(28, False), (29, True)])
def test_conclusion_tells_too_few_photos_below_fp32(photos: int, enough: bool) -> None:
    logits = made_logits(photos) + 0.2 * np.eye(3, dtype=np.float32)[np.arange(photos) % 3]
    found = made_verification(logits, {FP32: logits, FP16: logits}, folder=Path("birds"))
    conclusion = conclusion_of(found)
    assert conclusion.outcome == "passed"
    few = [each for each in conclusion.reasons if "stays unproven" in each]
    assert few == (
        []
        if enough
        else [
            "deploy/fp16.onnx on rehearsal passed, and stays unproven: its proof is on 28 photos; "
            "below FP32 29 photos are the least."
        ]
    )


def test_conclusion_tells_one_class_for_all_photos() -> None:
    logits = np.tile(LOGITS[:1], (24, 1))
    said = conclusion_of(verified(logits, logits)).reasons[-1]
    assert said == (
        "The network gives all 24 photos the same class, with probabilities within 0: photos of "
        "one class do that, and so does an untrained network."
    )


def test_conclusion_of_some_that_show_nothing_names_them() -> None:
    """Below FP32 most margins are within rounding; in FP32 they decide."""
    logits = np.tile(np.float32([1.005, 1, -2]), (40, 1))
    logits[::2] = (1, 1.005, -2)
    found = made_verification(logits, {FP32: logits, FP16: logits}, folder=Path("birds"))
    conclusion = conclusion_of(found)
    assert conclusion.sentence == (
        "Nothing shows whether deploy/fp16.onnx on rehearsal decides as the trained model does."
    )
    assert conclusion.reasons[0].startswith("The reference does not decide 40 of 40 images")


def test_conclusion_names_the_bundle_in_its_commands() -> None:
    found = replace(verified(FLIPPED), folder=Path("artifacts/birds"))
    conclusion = conclusion_of(found)
    assert not any("deploykit" in each for each in conclusion.reasons)
    assert conclusion.diagnosis == (
        "deploykit verify --bundle artifacts/birds --stages --images birds"
    )
