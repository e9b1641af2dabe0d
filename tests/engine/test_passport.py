"""Passports, targets, and the header of real engines and of bytes that are none."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest
from engine_graphs import ADA, AMPERE

from deploykit.bundle.verdicts import ImageSet, KeptVerdict
from deploykit.console.options import parsed_bytes
from deploykit.engine.passport import (
    COMPUTE_CAPABILITIES,
    SCHEMA,
    BuiltOn,
    Passport,
    PlanHeader,
    check_plan,
    parse_targets,
    passport_path,
    read_header,
    read_passport,
    reason,
    write_passport,
)
from deploykit.errors import BundleError, UsageError
from deploykit.parity.measurement import Measurement
from deploykit.parity.tolerance import tolerance_for
from deploykit.specs.engine import Profile
from deploykit.specs.model import KeptNode, TensorSpec
from deploykit.system.gpu import Gpu

PROOF = KeptVerdict(
    graph="deploy/fp16.onnx",
    graph_sha256="aa",
    runtime="rehearsal",
    device="CPU",
    precision="fp16",
    kind="rehearsed",
    reference="dpn92 from best_model.pth",
    reference_kind="module",
    images=ImageSet(kind="photos", source="bird_photos", count=32, sha256="cc"),
    measurement=Measurement(
        images=32,
        batch_sizes=(1, 8),
        scale=10.0,
        max_abs_error=0.01,
        flips=0,
        undecidable=0,
        flipped=(),
        max_probability_change=0.001,
        p99_probability_change=0.0001,
        non_finite=0,
        flip_rate_bound=0.09,
        classes=3,
        spread=0.9,
    ),
    tolerance=tolerance_for("fp16"),
    created="2026-11-22T00:00:00Z",
    versions={"onnxruntime": "1.31.1"},
    among=32,
)
PASSPORT = Passport(
    schema=SCHEMA,
    flavour="tensorrt_rtx",
    version="1.7.1.116",
    targets=("sm86", "sm89"),
    gpu=None,
    profile=Profile(),
    workspace_bytes=None,
    inputs=(TensorSpec(name="images", dtype="uint8", shape=("N", 8, 8, 3)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 2)),),
    precision="fp16",
    kept=(KeptNode(node="sum", operator="ReduceSum", module="head", reason="max 70000"),),
    deploy_graph="deploy/fp16.onnx",
    deploy_graph_sha256="aa",
    engine_sha256="bb",
    engine_bytes=3,
    build_seconds=1.5,
    created="2026-11-22T00:00:00Z",
    proof=PROOF,
)
ON_ADA = BuiltOn(name=ADA.name, compute_capability=ADA.compute_capability)


def altered(**changes):
    return msgspec.structs.replace(PASSPORT, **changes)


def why_not(passport=PASSPORT, *, version="1.7.1.116", gpu=ADA):
    return reason(passport, tensorrt_version=version, gpu=gpu)


def test_engine_name_from_targets():
    assert PASSPORT.engine == "tensorrt_rtx-1.7.1-sm86+sm89-fp16-b1-8-32.engine"
    portable = altered(targets=("portable",))
    assert portable.engine == "tensorrt_rtx-1.7.1-portable-fp16-b1-8-32.engine"


def test_engine_name_for_the_current_gpu():
    found = altered(
        flavour="tensorrt",
        version="11.4.0.106",
        targets=("current",),
        gpu=BuiltOn(name="NVIDIA GeForce RTX™ 4070 (Laptop)", compute_capability=(8, 9)),
        precision="fp32",
        profile=Profile(min_batch=2, opt_batch=4, max_batch=8),
    )
    assert found.engine == (
        "tensorrt-11.4.0-nvidia-geforce-rtx-4070-laptop-sm89-fp32-b2-4-8.engine"
    )


LIMITS = [(2**30, "1GiB"), (3 * 2**29, "1536MiB"), (1024, "1KiB"), (1, "0.0009765625KiB")]


@pytest.mark.parametrize(("workspace_bytes", "limit"), LIMITS)
def test_engine_name_with_workspace(workspace_bytes, limit):
    found = altered(targets=("sm89",), workspace_bytes=workspace_bytes).engine
    assert found == f"tensorrt_rtx-1.7.1-sm89-fp16-b1-8-32-ws{limit}.engine"
    assert parsed_bytes(limit) == workspace_bytes


@pytest.mark.parametrize(
    "passport",
    [
        PASSPORT,
        altered(flavour="tensorrt", targets=("current",), gpu=ON_ADA, proof=None, kept=()),
    ],
    ids=["rtx", "tensorrt"],
)
def test_read_passport_round_trip(passport, tmp_path):
    path = passport_path(tmp_path / "some.engine")
    assert path.name == "some.engine.json"
    write_passport(path, passport)
    assert read_passport(path) == passport
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_read_passport_missing(tmp_path):
    with pytest.raises(BundleError, match="has no passport") as caught:
        read_passport(tmp_path / "some.engine.json")
    assert "deploykit build-trt" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "tensorrt_rtx-1.7.1-sm86+sm89-int8-b1-8-32-ws1GiB.engine.json",
            " --flavour tensorrt_rtx --precision int8",
        ),
        (
            "tensorrt-11.4.0-nvidia-geforce-rtx-4070-sm89-fp16-b1-8-32.engine.json",
            " --flavour tensorrt --precision fp16",
        ),
        ("some.engine.json", ""),
    ],
)
def test_read_passport_hint_builds_the_same_engine(tmp_path, monkeypatch, name, options):
    monkeypatch.chdir(tmp_path)
    path = Path("birds", "engines", name)
    with pytest.raises(BundleError) as caught:
        read_passport(path)
    assert caught.value.hint == (
        f"Build the engine again: deploykit build-trt --bundle birds{options}"
    )


def edited(tmp_path: Path, **fields: object) -> Path:
    path = tmp_path / "some.engine.json"
    write_passport(path, PASSPORT)
    content = msgspec.json.decode(path.read_bytes()) | fields
    path.write_bytes(msgspec.json.encode(content))
    return path


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"unknown": 1}, "unknown"),
        ({"engine_bytes": "many"}, "engine_bytes"),
        ({"flavour": "openvino"}, "openvino"),
        ({"profile": {"min_batch": 9}}, "min 9"),
        ({"targets": ["current"]}, "do not go with"),
        ({"gpu": {"name": "a", "compute_capability": [8, 9]}}, "do not go with"),
    ],
    ids=str,
)
def test_read_passport_refuses_invalid_fields(tmp_path, fields, reason):
    with pytest.raises(BundleError, match="is damaged") as caught:
        read_passport(edited(tmp_path, **fields))
    assert reason in caught.value.message


@pytest.mark.parametrize(
    ("schema", "hint"), [(SCHEMA + 1, "Update deploykit."), (0, "Build the engine again")]
)
def test_read_passport_of_another_schema(tmp_path, schema, hint):
    with pytest.raises(BundleError, match=f"schema {schema}") as caught:
        read_passport(edited(tmp_path, schema=schema, unknown=1))
    assert caught.value.hint.startswith(hint)


def test_read_passport_truncated(tmp_path):
    path = edited(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BundleError, match="is damaged"):
        read_passport(path)


def test_reason_of_an_engine_that_fits():
    assert why_not() is None
    assert why_not(gpu=AMPERE) is None


COMMAND = "Build one: deploykit build-trt --flavour tensorrt_rtx --target {} --precision fp16"


@pytest.mark.parametrize("version", ["1.7.0.116", "1.7.1.117", "1.8.0.1"])
def test_reason_of_another_tensorrt_version(version):
    found = why_not(version=version)
    assert found.message == (
        f"{PASSPORT.engine} was built by tensorrt_rtx 1.7.1.116 and runs on no other; "
        f"this machine has {version}."
    )
    assert found.hint == COMMAND.format("sm89")


def test_reason_of_another_gpu():
    found = why_not(gpu=Gpu("NVIDIA GeForce RTX 5090", (12, 0), (13, 0)))
    assert found.message == (
        f"{PASSPORT.engine} was built for compute capability sm86 or sm89; "
        "this machine has NVIDIA GeForce RTX 5090 (sm120)."
    )
    assert found.hint == COMMAND.format("sm120")


def test_reason_of_a_portable_engine():
    portable = altered(targets=("portable",))
    hopper = Gpu("NVIDIA H100", (9, 0), (13, 0))
    assert why_not(portable) is None
    assert why_not(portable, gpu=hopper) is None
    assert why_not(gpu=hopper).hint == COMMAND.format("portable")
    turing = why_not(portable, gpu=Gpu("NVIDIA GeForce RTX 2080", (7, 5), (13, 0)))
    assert "sm80 or newer" in turing.message
    assert turing.hint == COMMAND.format("sm75")


def test_reason_of_an_rtx_engine_of_one_gpu():
    current = altered(targets=("current",), gpu=ON_ADA)
    assert why_not(current, gpu=Gpu("NVIDIA GeForce RTX 4090", (8, 9), (13, 0))) is None
    assert "built for compute capability sm89" in why_not(current, gpu=AMPERE).message


def test_reason_of_a_tensorrt_engine_of_another_gpu():
    engine = altered(flavour="tensorrt", targets=("current",), gpu=ON_ADA)
    assert why_not(engine) is None
    found = why_not(engine, gpu=Gpu("NVIDIA GeForce RTX 4090", (8, 9), (13, 0)))
    assert "NVIDIA GeForce RTX 4070; this machine has NVIDIA GeForce RTX 4090" in found.message
    assert found.hint == "Build one: deploykit build-trt --flavour tensorrt --precision fp16"


def test_reason_hint_repeats_build_options():
    engine = altered(profile=Profile(max_batch=64), precision="fp32", workspace_bytes=2**29)
    found = why_not(engine, version="1.8")
    assert found.hint.endswith("--target sm89 --precision fp32 --max-batch 64 --workspace 512MiB")


@pytest.fixture(scope="module")
def plan(build):
    return build().plan


@pytest.mark.parametrize(
    "targets",
    [*((target,) for target in COMPUTE_CAPABILITIES), COMPUTE_CAPABILITIES, ("portable",)],
    ids="+".join,
)
def test_read_header_version_size_and_targets(rtx, build, targets):
    plan = build(targets=targets).plan
    expected = PlanHeader("tensorrt_rtx", rtx.version, len(plan), targets)
    assert read_header(plan) == expected
    assert read_header(plan[:40]) == expected


def test_check_plan_of_a_whole_engine(plan):
    assert check_plan(plan, "tensorrt_rtx") is None


def test_check_plan_of_the_other_flavour(plan):
    assert check_plan(plan, "tensorrt") == "it is an engine of tensorrt_rtx, not of tensorrt"
    other = b"ftrt" + bytes(100)
    assert check_plan(other, "tensorrt_rtx") == "it is an engine of tensorrt, not of tensorrt_rtx"
    assert check_plan(other, "tensorrt") is None


def test_check_plan_of_a_truncated_engine(plan):
    size = len(plan)
    reason = check_plan(plan[:-1], "tensorrt_rtx")
    assert reason == f"it is damaged: it has {size - 1} bytes and should have {size}"
    assert "should have" in check_plan(plan + b"\0", "tensorrt_rtx")


@pytest.mark.parametrize("data", [b"", b"vtrt", bytes(39)])
def test_check_plan_of_a_few_bytes(data):
    assert check_plan(data, "tensorrt_rtx") == f"it is no engine: it has only {len(data)} bytes"
    assert read_header(data) is None


def test_check_plan_of_a_text():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123"
    reason = check_plan(pointer, "tensorrt_rtx")
    assert reason.startswith("it is no engine but a text that begins with 'version https://git")


def test_check_plan_of_an_unknown_header(plan):
    unknown = b"\x01\x02\x03\x04" + plan[4:]
    assert read_header(unknown) is None
    assert check_plan(unknown, "tensorrt_rtx") is None
    # A later version may put other things where size and version are now.
    later = plan[:28] + struct.pack("<I", 0) + plan[32:]
    assert read_header(later) == PlanHeader("tensorrt_rtx")
    assert check_plan(later[:-1], "tensorrt_rtx") is None


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], ("portable",)),
        (["Portable"], ("portable",)),
        (["current", "current"], ("current",)),
        (["SM89", "sm86", "sm89"], ("sm86", "sm89")),
        (["sm120", "sm75"], ("sm75", "sm120")),
    ],
)
def test_parse_targets_sorts_and_deduplicates(texts, expected):
    assert parse_targets(texts) == expected


def test_parse_targets_twice():
    once = parse_targets(["sm120", "sm86"])
    assert parse_targets(once) == once


@pytest.mark.parametrize("other", ["portable", "current"])
def test_parse_targets_that_exclude_each_other(other):
    with pytest.raises(UsageError, match=f"{other} and sm89 exclude each other"):
        parse_targets(["sm89", other])


@pytest.mark.parametrize(("text", "near"), [("sm98", "sm89"), ("potable", "portable")])
def test_parse_targets_unknown_gets_a_close_match(text, near):
    with pytest.raises(UsageError, match="there are portable, current, sm75") as caught:
        parse_targets([text])
    assert caught.value.hint == f"Did you mean {near}?"


def test_parse_targets_unknown_without_match():
    with pytest.raises(UsageError) as caught:
        parse_targets(["8.9"])
    assert "RTX 40 sm89" in caught.value.hint


def test_parse_targets_for_tensorrt():
    assert parse_targets([], "tensorrt") == ("current",)
    assert parse_targets(["current"], "tensorrt") == ("current",)
    with pytest.raises(UsageError, match="not for sm89") as caught:
        parse_targets(["sm89"], "tensorrt")
    assert "--flavour tensorrt_rtx" in caught.value.hint
