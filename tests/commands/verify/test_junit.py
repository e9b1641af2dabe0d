"""JUnit XML of a verification, as a CI system reads it."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
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
from deploykit.commands.verify.claims import RECORDED_ONLY, limits_of
from deploykit.commands.verify.headline import headline_of
from deploykit.commands.verify.junit import write_junit
from deploykit.commands.verify.result import Verification
from deploykit.commands.verify.text import verification_value
from deploykit.errors import InputError
from deploykit.parity.diagnosis import Stage

FP32, FP16 = "deploy/fp32.onnx", "deploy/fp16.onnx"
LOGITS = made_logits(60)


def suites(folder: Path, verification: Verification, **more: object) -> dict[str, ET.Element]:
    path = folder / "junit.xml"
    write_junit(path, made_bundle(folder), verification, **more)
    return {suite.get("name", ""): suite for suite in ET.parse(path).getroot()}


def failures(suite: ET.Element) -> list[tuple[str | None, str | None]]:
    """The name of each test that failed, and why."""
    return [
        (case.get("name"), failure.get("message"))
        for case in suite.findall("testcase")
        for failure in case.findall("failure")
    ]


def properties(element: ET.Element) -> dict[str | None, str | None]:
    return {each.get("name"): each.get("value") for each in element.findall("properties/property")}


def test_a_walk_that_broke_off_is_a_test_that_failed(tmp_path: Path) -> None:
    walk = BrokenDiagnosis("layers", "There is no torch.", "Install it.", 5)
    found = suites(tmp_path, made_verification(LOGITS, {FP32: LOGITS}), broken_off=[walk])
    assert failures(found["layers"]) == [("walk", "There is no torch.")]
    assert "Install it." in ET.tostring(found["layers"], encoding="unicode")


def test_another_checkpoint_is_not_taken_for_the_bundles(tmp_path: Path) -> None:
    same = suites(tmp_path, made_verification(LOGITS, {FP32: LOGITS}))["verify"]
    assert properties(same)["checkpoint.sha256"] == "c" * 64
    other = made_verification(LOGITS, {FP32: LOGITS}, is_recorded=False)
    facts = properties(suites(tmp_path, other)["verify"])
    assert facts["exported-from.sha256"] == "c" * 64
    assert "checkpoint.sha256" not in facts


def test_a_test_for_each_candidate(tmp_path: Path) -> None:
    verification = made_verification(
        LOGITS, {FP32: moved(LOGITS, 1e-6), FP16: -LOGITS}, folder=tmp_path
    )
    suite = suites(tmp_path, verification)["verify"]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert suite.get("timestamp") == "2026-11-22T03:11:26"
    assert [case.get("name") for case in suite.findall("testcase")] == [
        "deploy/fp32.onnx on onnxruntime-cpu in fp32",
        "deploy/fp16.onnx on rehearsal in fp16",
    ]
    passed, failed = suite.findall("testcase")
    assert passed.get("classname") == "birds.verify"
    assert "flips 0 of 60, at most 4.9 %" in (passed.findtext("system-out") or "")
    reasons = verification.verdicts[1].reasons
    assert failed.find("failure").get("message") == reasons[0]
    assert set(reasons) < set((failed.findtext("failure") or "").split("\n"))
    assert properties(failed)["kind"] == "rehearsed"


def test_a_note_is_told_and_fails_nothing(tmp_path: Path) -> None:
    passed = made_verification(LOGITS, {FP32: LOGITS})
    note = "the proof of 2026-11-21 stands"
    verdicts = tuple(msgspec.structs.replace(each, note=note) for each in passed.verdicts)
    found = suites(tmp_path, dataclasses.replace(passed, verdicts=verdicts))
    (case,) = found["verify"].iter("testcase")
    assert case.find("failure") is None
    assert note in case.findtext("system-out", "")


def test_the_hashes_are_properties(tmp_path: Path) -> None:
    verification = made_verification(LOGITS, {FP32: LOGITS})
    facts = properties(suites(tmp_path, verification)["verify"])
    assert facts["model.onnx.sha256"] == "1" * 64
    assert facts["deploy/fp32.onnx.sha256"] == "2" * 64
    assert facts["checkpoint.sha256"] == "c" * 64
    assert facts["photos.sha256"] == "d" * 64
    assert facts["version.numpy"] == "2.4.6"


def test_nothing_compared_is_no_success(tmp_path: Path) -> None:
    nothing = made_verification(LOGITS, {})
    stages = msgspec.structs.replace(made_stages(LOGITS, fault=False), steps=())
    layers = msgspec.structs.replace(made_layers(fault=False), nodes=0, ranking=())
    found = suites(tmp_path, nothing, stages=stages, layers=[layers])
    assert failures(found["verify"]) == [("candidates", "no candidate was compared")]
    assert failures(found["stages"]) == [("steps", "no stage was compared")]
    assert [why for _, why in failures(found["layers"])] == ["no node was compared"]


def test_a_test_for_each_step_and_finding(tmp_path: Path) -> None:
    verification = made_verification(LOGITS, {FP32: LOGITS})
    suite = suites(tmp_path, verification, stages=made_stages(LOGITS, fault=True))["stages"]
    assert suite.get("tests") == "4"
    assert [name for name, _ in failures(suite)] == [
        "resize: bilinear instead of bicubic",
        "resize: finding",
    ]
    assert failures(suite)[1][1] == "training used bicubic, the bundle records bilinear"
    clean = suites(tmp_path, verification, stages=made_stages(LOGITS, fault=False))
    assert failures(clean["stages"]) == []


def test_a_batch_size_does_not_stand_in_line_with_the_steps(tmp_path: Path) -> None:
    made = made_stages(LOGITS, fault=False)
    batches = msgspec.structs.replace(made.steps[0], stage="batch size")
    stages = msgspec.structs.replace(made, steps=(batches, *made.steps[1:]))
    suite = suites(tmp_path, made_verification(LOGITS, {FP32: LOGITS}), stages=stages)["stages"]
    told = ["since the beginning" in "".join(case.itertext()) for case in suite.iter("testcase")]
    assert told == [False, True, True]


def test_a_test_for_each_walk_over_the_nodes(tmp_path: Path) -> None:
    verification = made_verification(LOGITS, {FP32: LOGITS})
    found = suites(tmp_path, verification, layers=[made_layers(fault=True)])
    ((name, why),) = failures(found["layers"])
    assert name == "deploy/fp16.onnx on rehearsal in fp16"
    assert why is not None
    assert why.startswith("the first node out of tolerance: node_conv2d_3 (Conv of features.3)")
    text = found["layers"].findtext("testcase/failure") or ""
    assert "Relu_3 (module features.4) is missing" in text
    clean = suites(tmp_path, verification, layers=[made_layers(fault=False)])
    assert failures(clean["layers"]) == []


def test_the_root_adds_the_suites_up(tmp_path: Path) -> None:
    verification = made_verification(LOGITS, {FP32: -LOGITS})
    suites(tmp_path, verification, stages=made_stages(LOGITS, fault=True))
    root = ET.parse(tmp_path / "junit.xml").getroot()
    assert root.tag == "testsuites"
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("5", "3", "0")


def test_hostile_names_stay_valid_xml(tmp_path: Path) -> None:
    names = ("a\x00b", "]]></failure><x/>", "half \udcff pair", "\uffff&\"'<", "new\nline\x1b")
    logits = made_logits(5)
    broken = logits[:, [1, 2, 0]]
    verification = made_verification(
        logits, {FP32: broken}, paths=names, reference="".join(names), versions={"x": names[2]}
    )
    suite = suites(tmp_path, verification)["verify"]
    text = suite.findtext("testcase/failure") or ""
    for shown in ("a\\x00b", names[1], "half \\udcff pair", "\\uffff&\"'<", "new\nline\\x1b"):
        assert shown in text
    assert properties(suite)["version.x"] == "half \\udcff pair"


def test_values_that_are_no_numbers_fail(tmp_path: Path) -> None:
    broken = LOGITS.copy()
    broken[3, 1] = np.inf
    suite = suites(tmp_path, made_verification(LOGITS, {FP32: broken}))["verify"]
    assert [why for _, why in failures(suite)] == ["1 logit is NaN or infinite"]


def test_a_file_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    verification = made_verification(LOGITS, {FP32: LOGITS})
    with pytest.raises(InputError, match=r"Writing .* failed"):
        write_junit(tmp_path / "missing" / "junit.xml", made_bundle(tmp_path), verification)
    assert list(tmp_path.iterdir()) == []


def test_no_two_tests_of_a_suite_have_the_same_name(tmp_path: Path) -> None:
    stages = made_stages(LOGITS, fault=True)
    twice = msgspec.structs.replace(stages, findings=stages.findings * 3)
    verification = made_verification(LOGITS, {FP32: LOGITS})
    suite = suites(tmp_path, verification, stages=twice)["stages"]
    names = [case.get("name") for case in suite.findall("testcase")]
    assert len(set(names)) == len(names) == 6
    assert names[-3:] == ["resize: finding", "resize: finding (2)", "resize: finding (3)"]


def test_what_was_timed_has_its_seconds_and_the_rest_none(tmp_path: Path) -> None:
    verification = made_verification(LOGITS, {FP32: LOGITS}, seconds=12.3456)
    (verdict,) = verification.verdicts
    timed = msgspec.structs.replace(verdict, seconds=1.5)
    verification = dataclasses.replace(verification, verdicts=(timed,))
    found = suites(tmp_path, verification, stages=made_stages(LOGITS, fault=False))
    assert found["verify"].get("time") == "12.346"
    assert found["verify"].find("testcase").get("time") == "1.500"
    assert all("time" not in element.attrib for element in found["stages"].iter())


def test_what_the_comparison_does_not_show_is_a_property(tmp_path: Path) -> None:
    why = "best_model.pth is not there"
    verification = made_verification(LOGITS, {FP32: LOGITS}, reference_kind="graph", obstacle=why)
    assert why in properties(suites(tmp_path, verification)["verify"])["limit"]
    trained = suites(tmp_path, made_verification(LOGITS, {FP32: LOGITS}))["verify"]
    assert "limit" not in properties(trained)


def test_a_walk_that_finds_another_preprocessing_limits_what_was_proven(tmp_path: Path) -> None:
    """As it does on the terminal, in the values and on the page."""
    verification = made_verification(
        LOGITS, {FP32: LOGITS}, reference_kind="graph", obstacle="best_model.pth is not there"
    )
    stages = made_stages(LOGITS, fault=True)
    limits = limits_of(verification, stages)
    assert limits[-1] == RECORDED_ONLY
    suite = suites(tmp_path, verification, stages=stages)["verify"]
    assert properties(suite)["limit"] == " ".join(limits)
    assert verification_value(verification, stages)["limit"] == " ".join(limits)
    headline = headline_of(verification, stages, ())
    assert set(limits) <= {*headline.meaning, *headline.reservations}


@pytest.mark.parametrize("stage", ["photos", "network", "labels", "batch size", "runtime"])
def test_what_comes_after_the_preprocessing_limits_nothing(stage: Stage) -> None:
    verification = made_verification(LOGITS, {FP32: LOGITS})
    made = made_stages(LOGITS, fault=True)
    elsewhere = [msgspec.structs.replace(step, stage=stage) for step in made.steps]
    faults = [msgspec.structs.replace(fault, stage=stage) for fault in made.findings]
    stages = msgspec.structs.replace(made, steps=tuple(elsewhere), findings=tuple(faults))
    assert not stages.passed
    assert limits_of(verification, stages) == ()
    headline = headline_of(verification, stages, ())
    assert headline.sentence.endswith(", but a walk to find faults did not pass.")
    assert headline.meaning[-1] == "These photos bear it; others may not."
    only_named = msgspec.structs.replace(stages, steps=made_stages(LOGITS, fault=False).steps)
    assert "These photos" not in headline_of(verification, only_named, ()).meaning[-1]
