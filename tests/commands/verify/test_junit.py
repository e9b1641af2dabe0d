"""JUnit XML of a verification, as a CI system reads it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

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
from deploykit.commands.verify.junit import write_junit
from deploykit.commands.verify.result import Verification
from deploykit.errors import InputError

FP32, FP16 = "deploy/fp32.onnx", "deploy/fp16.onnx"
LOGITS = made_logits(60)


def suites(folder: Path, verification: Verification) -> dict[str, ET.Element]:
    path = folder / "junit.xml"
    write_junit(path, made_bundle(folder), verification)
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


def test_junit_has_a_test_for_each_candidate(tmp_path: Path) -> None:
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
    assert "rehearsed on CPU" in (failed.findtext("failure") or "")


def test_junit_properties_have_hashes(tmp_path: Path) -> None:
    verification = made_verification(LOGITS, {FP32: LOGITS})
    facts = properties(suites(tmp_path, verification)["verify"])
    assert facts["model.onnx.sha256"] == "1" * 64
    assert facts["deploy/fp32.onnx.sha256"] == "2" * 64
    assert facts["checkpoint.sha256"] == "c" * 64
    assert facts["images.sha256"] == "d" * 64
    assert facts["version.numpy"] == "2.4.6"


def test_junit_of_hostile_names_is_valid_xml(tmp_path: Path) -> None:
    names = ("a\x00b", "]]></failure><x/>", "half \udcff pair", "\uffff&\"'<", "new\nline\x1b")
    logits = made_logits(5)
    broken = logits[:, [1, 2, 0]]
    verification = made_verification(logits, {FP32: broken}, paths=names, versions={"x": names[2]})
    suite = suites(tmp_path, verification)["verify"]
    text = suite.findtext("testcase/failure") or ""
    for shown in ("a\\x00b", names[1], "half \\xff pair", "\\uffff&\"'<", "new\\nline\\x1b"):
        assert shown in text
    assert properties(suite)["version.x"] == "half \\udcff pair"


def test_write_junit_that_fails(tmp_path: Path) -> None:
    verification = made_verification(LOGITS, {FP32: LOGITS})
    with pytest.raises(InputError, match=r"Writing .* failed"):
        write_junit(tmp_path / "missing" / "junit.xml", made_bundle(tmp_path), verification)
    assert list(tmp_path.iterdir()) == []


def test_junit_names_the_checkpoint_only_if_compared(tmp_path: Path) -> None:
    same = suites(tmp_path, made_verification(LOGITS, {FP32: LOGITS}))["verify"]
    assert properties(same)["checkpoint.sha256"] == "c" * 64
    other = made_verification(LOGITS, {FP32: LOGITS}, reference_fields={"is_recorded": False})
    facts = properties(suites(tmp_path, other)["verify"])
    assert facts["exported-from.sha256"] == "c" * 64
    assert "checkpoint.sha256" not in facts


def test_junit_of_nothing_compared_fails(tmp_path: Path) -> None:
    found = suites(tmp_path, made_verification(LOGITS, {}, layers=()))
    assert failures(found["verify"]) == [("candidates", "no candidate was compared")]
    assert failures(found["diagnosis"]) == [("layers", "no graph could be diagnosed")]


def test_junit_has_a_test_for_each_diagnosis(tmp_path: Path) -> None:
    broken = BrokenDiagnosis("layers", "There is no torch.", "Install it.", 5)
    verification = made_verification(
        LOGITS,
        {FP32: -LOGITS},
        stages=made_stages(LOGITS, fault=True),
        layers=[made_layers(fault=True), made_layers(fault=False)],
        broken_off=[broken],
    )
    suite = suites(tmp_path, verification)["diagnosis"]
    stages, layers, walk = failures(suite)
    assert stages[0] == "stages"
    assert (stages[1] or "").startswith("stages: first at resize, bilinear instead of bicubic")
    assert layers[0] == "layers of deploy/fp16.onnx on rehearsal in fp16"
    assert "first at node_conv2d_3 (Conv of features.3)" in (layers[1] or "")
    assert walk == ("layers", "There is no torch.")
    text = ET.tostring(suite, encoding="unicode")
    for told in ("Relu_3 (module features.4) is missing", "Install it.", "training used bicubic"):
        assert told in text
    root = ET.parse(tmp_path / "junit.xml").getroot()
    assert root.tag == "testsuites"
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("5", "4", "0")
    clean = made_verification(LOGITS, {FP32: LOGITS}, stages=made_stages(LOGITS, fault=False))
    assert failures(suites(tmp_path, clean)["diagnosis"]) == []


def test_junit_has_the_seconds_of_the_comparison(tmp_path: Path) -> None:
    stages = made_stages(LOGITS, fault=False)
    found = suites(
        tmp_path, made_verification(LOGITS, {FP32: LOGITS}, seconds=12.3456, stages=stages)
    )
    assert found["verify"].get("time") == "12.346"
    assert all("time" not in element.attrib for element in found["diagnosis"].iter())
