"""What is said about an engine that was built."""

import dataclasses
import json
import shutil
from collections import Counter

import msgspec
import pytest

from deploykit.bundle.folder import open_bundle
from deploykit.commands.build.text import build_text, build_value
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.engine.audit import Audit
from deploykit.inference.engines import Engine
from deploykit.specs.model import KeptNode


def kept_nodes(count):
    return tuple(
        KeptNode(node=f"node_Conv_{i}", operator="Conv", module=f"middle.{i}", reason="too loud")
        for i in range(count)
    )


def with_kept(result, count, **tuning):
    """The result of a build that keeps so many nodes in FP32."""
    return dataclasses.replace(
        result,
        passport=msgspec.structs.replace(result.passport, kept=kept_nodes(count)),
        tuning=dataclasses.replace(result.tuning, **tuning),
    )


@pytest.fixture(scope="module")
def executed(built_engine, tmp_path_factory):
    """The same with an audit and a verification, as a machine with a GPU has them."""
    folder = tmp_path_factory.mktemp("executed") / "colours"
    shutil.copytree(built_engine.bundle.folder, folder)
    return dataclasses.replace(
        built_engine,
        audit=Audit(Counter(fp32=2, fp16=7)),
        verification=verify_bundle(open_bundle(folder), VerifyRequest(precision="fp32")),
    )


def test_build_text_in_full(built_engine):
    graph, engine, runs, weak, more, advice, how = build_text(built_engine).splitlines()
    passport = built_engine.passport
    assert graph.startswith("graph    deploy/fp16.onnx: rehearsed on CPU, 23 photos of ")
    assert ": flips 0 of 23, at most 12.2 %; error " in graph
    path = built_engine.bundle.folder / built_engine.engine
    assert engine == f"engine   {path} (0 MB, in {passport.build_seconds:.1f} s)"
    assert runs == (
        "runs on  compute capability sm80 or newer, with tensorrt_rtx "
        f"{passport.version}, fp16, batches of 1 to 32 (best at 8)"
    )
    assert weak.startswith("UNPROVEN  deploy/fp16.onnx on rehearsal: its proof is on 23 photos; ")
    rehearsed = ("--runtime", "rehearsal", "--precision", "fp16", "--images", "DIR")
    assert more == built_engine.bundle.command("verify", *rehearsed)
    assert advice == (
        "It has not been run; engines are experimental, not run on a GPU. On the machine with the "
        "GPU:"
    )
    assert how == built_engine.bundle.command("verify", "--runtime", "tensorrt_rtx")


def test_build_text_of_a_proven_graph(built_engine):
    bundle, proof = built_engine.bundle, built_engine.passport.proof
    found = msgspec.structs.replace(proof.measurement, images=32, flip_rate_bound=0.09)
    proof = msgspec.structs.replace(proof, measurement=found)
    manifest = msgspec.structs.replace(bundle.manifest, verdicts=(proof,))
    result = dataclasses.replace(
        built_engine, bundle=dataclasses.replace(bundle, manifest=manifest)
    )
    assert "UNPROVEN" not in build_text(result)


def test_build_text_of_an_engine_with_weak_proof(built_engine, executed):
    bundle, engine = built_engine.bundle, built_engine.engine
    proof = msgspec.structs.replace(
        built_engine.passport.proof,
        graph=engine,
        graph_sha256=bundle.manifest.files[engine].sha256,
        runtime="tensorrt_rtx",
        kind="executed",
    )
    manifest = msgspec.structs.replace(bundle.manifest, verdicts=(proof,))
    result = dataclasses.replace(executed, bundle=dataclasses.replace(bundle, manifest=manifest))
    assert (
        f"\nUNPROVEN  {engine} on tensorrt_rtx: its proof is on 23 photos; below FP32 29 photos "
        "are the least; this compares it:\n"
        f"{bundle.command('verify', '--runtime', 'tensorrt_rtx')} --images DIR\n"
    ) in build_text(result)


def test_build_text_and_value_of_outdated_engines(built_engine):
    old = Engine(built_engine.engine, built_engine.passport)
    result = dataclasses.replace(built_engine, outdated=(old,))
    assert (
        f"\nOUTDATED {old.file} was built from an earlier deploy/fp16.onnx and runs no longer; "
        "to build it again:\n"
        "deploykit build-trt --flavour tensorrt_rtx --target portable --precision fp16\n"
    ) in build_text(result)
    assert build_value(result)["outdated"] == [old.file]


def test_build_text_kept_nodes(built_engine):
    result = with_kept(built_engine, 2, trials=7, minimal=True)
    lines = build_text(result).splitlines()
    assert lines[:3] == [
        "FP32     node_Conv_0 (Conv of middle.0): too loud",
        "FP32     node_Conv_1 (Conv of middle.1): too loud",
        "         none of them can be spared: 7 sets tried",
    ]


def test_build_text_kept_node_without_module(built_engine):
    node = KeptNode(node="node_add", operator="Add", module="", reason="too loud")
    passport = msgspec.structs.replace(built_engine.passport, kept=(node,))
    text = build_text(dataclasses.replace(built_engine, passport=passport))
    assert text.startswith("FP32     node_add (Add): too loud\n")


def test_build_text_counts_many_kept_nodes(built_engine):
    lines = build_text(with_kept(built_engine, 15, trials=9, minimal=False)).splitlines()
    assert sum(line.startswith("FP32 ") for line in lines) == 12
    assert lines[12:14] == [
        "         ... and 3 more nodes",
        "         perhaps not all are needed: 9 sets tried",
    ]


def test_build_text_without_search(built_engine):
    result = dataclasses.replace(with_kept(built_engine, 1), tuning=None)
    assert "tried" not in build_text(result)


def test_build_text_of_an_executed_engine(executed):
    text = build_text(executed)
    assert "\nlayers   7 in fp16, 2 in fp32\n" in text
    assert text.endswith("PASSED")
    assert "has not been run" not in text


def test_build_text_of_a_graph_without_proof(built_engine):
    passport = msgspec.structs.replace(built_engine.passport, proof=None)
    text = build_text(dataclasses.replace(built_engine, passport=passport))
    assert "graph    deploy/fp16.onnx: not proven" in text


def test_build_value_of_a_rehearsed_engine(built_engine):
    value = json.loads(json.dumps(build_value(built_engine)))
    path = built_engine.bundle.folder / f"{built_engine.engine}.json"
    assert value["passport"] == json.loads(path.read_text(encoding="utf-8"))
    assert value["engine"] == built_engine.engine
    assert value["bundle"] == str(built_engine.bundle.folder)
    tuning = value["tuning"]
    assert (tuning["searched_images"], tuning["trials"], tuning["minimal"]) == (22, 1, True)
    assert (tuning["verdict"]["passed"], tuning["verdict"]["kind"]) == (True, "rehearsed")
    assert (value["audit"], value["verification"]) == (None, None)


def test_build_value_has_audit_and_verification(executed):
    value = build_value(dataclasses.replace(executed, tuning=None))
    assert value["audit"] == {"fp32": 2, "fp16": 7}
    assert value["verification"]["passed"] is True
    assert value["tuning"] is None
