"""The header of real engines, and of bytes that are none."""

import struct

import pytest

from deploykit.engine.passport import COMPUTE_CAPABILITIES, PlanHeader, check_plan, read_header


@pytest.fixture(scope="module")
def plan(build):
    return build().plan


@pytest.mark.parametrize(
    "targets",
    [*((target,) for target in COMPUTE_CAPABILITIES), COMPUTE_CAPABILITIES, ("portable",)],
    ids="+".join,
)
def test_the_header_names_version_size_and_targets(rtx, build, targets):
    plan = build(targets=targets).plan
    expected = PlanHeader("tensorrt_rtx", rtx.version, len(plan), targets)
    assert read_header(plan) == expected
    assert read_header(plan[:40]) == expected


def test_a_whole_engine_of_the_right_flavour_passes(plan):
    assert check_plan(plan, "tensorrt_rtx") is None


def test_an_engine_of_the_other_flavour_is_told(plan):
    assert check_plan(plan, "tensorrt") == "it is an engine of tensorrt_rtx, not of tensorrt"
    other = b"ftrt" + bytes(100)
    assert check_plan(other, "tensorrt_rtx") == "it is an engine of tensorrt, not of tensorrt_rtx"
    assert check_plan(other, "tensorrt") is None


def test_a_truncated_engine_is_told(plan):
    size = len(plan)
    reason = check_plan(plan[:-1], "tensorrt_rtx")
    assert reason == f"it is damaged: it has {size - 1} bytes and should have {size}"
    assert "should have" in check_plan(plan + b"\0", "tensorrt_rtx")


@pytest.mark.parametrize("data", [b"", b"vtrt", bytes(39)])
def test_a_few_bytes_are_no_engine(data):
    assert check_plan(data, "tensorrt_rtx") == f"it is no engine: it has only {len(data)} bytes"
    assert read_header(data) is None


def test_a_text_in_the_engines_place_is_no_engine():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123"
    reason = check_plan(pointer, "tensorrt_rtx")
    assert reason.startswith("it is no engine but a text that begins with 'version https://git")


def test_an_unknown_header_is_unknown_and_not_wrong(plan):
    unknown = b"\x01\x02\x03\x04" + plan[4:]
    assert read_header(unknown) is None
    assert check_plan(unknown, "tensorrt_rtx") is None
    # A later version may put other things where size and version are now.
    later = plan[:28] + struct.pack("<I", 0) + plan[32:]
    assert read_header(later) == PlanHeader("tensorrt_rtx")
    assert check_plan(later[:-1], "tensorrt_rtx") is None
