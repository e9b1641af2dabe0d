"""``deploykit quantize``, from outside."""

import json
import re
import shutil

import pytest

from deploykit.bundle.folder import INT8_TENSORRT_GRAPH
from deploykit.commands.app import run
from deploykit.proof.answered import AnsweredImages


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path, exported_bundle):
    """Run a command where a copy of the exported bundle is; gives exit code, stdout and stderr."""
    shutil.copytree(exported_bundle.folder, tmp_path / "artifacts" / "colours")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_quantize_without_options_makes_both_graphs(cli):
    code, out, err = cli("quantize")
    assert code == 0, err
    assert re.search(r"int8\.onnx, made for \S+: \d nodes in INT8, 0 of that kind in FP32", out)
    assert f"{INT8_TENSORRT_GRAPH}, made for TensorRT: " in out
    assert "calibrated and searched on 22 photos" in out
    assert re.search(r"executed   deploy/int8.onnx on onnxruntime-cpu, CPU .*: 23 photos of ", out)
    assert re.search(rf"rehearsed  {INT8_TENSORRT_GRAPH} on rehearsal, CPU .*: 23 photos of ", out)


def test_quantize_json_has_graphs_and_verdicts(cli, photo_folder):
    code, out, _ = cli("quantize", "--images", photo_folder, "--json")
    result = json.loads(out)["result"]
    assert (code, result["passed"], result["refused"]) == (0, True, [])
    assert [graph["graph"] for graph in result["graphs"]] == [
        "deploy/int8.onnx",
        INT8_TENSORRT_GRAPH,
    ]
    for graph in result["graphs"]:
        assert (graph["kept"], graph["trials"]) == ([], 2)
        assert all(verdict["passed"] for verdict in graph["verdicts"])
        assert {proof["images"]["count"] for proof in graph["proofs"]} == {23}
        assert {proof["kind"] for proof in graph["proofs"]} <= {"executed", "rehearsed"}


def test_quantize_for_a_named_runtime(cli):
    code, out, _ = cli("quantize", "--runtime", "onnxruntime-cpu", "--json")
    assert code == 0
    assert json.loads(out)["result"]["graphs"][0]["runtime"] == "onnxruntime-cpu"
    code, _, err = cli("quantize", "--runtime", "onnxruntime-cuda")
    assert code == 2
    assert "openvino, onnxruntime-cpu" in err


def test_quantize_refused_for_tensorrt_exits_with_3(cli, monkeypatch):
    judge = AnsweredImages.judge

    def refuse(photos, candidate, *arguments):
        verdict = judge(photos, candidate, *arguments)
        is_proof = len(photos.logits) == 23 and candidate.spec.graph == INT8_TENSORRT_GRAPH
        return verdict.refused("by 2 flips") if is_proof else verdict

    monkeypatch.setattr(AnsweredImages, "judge", refuse)
    code, out, _ = cli("quantize", "--json")
    assert code == 3
    (refused,) = json.loads(out)["result"]["refused"]
    assert "rehearsal: by 2 flips\n0 nodes stayed in FP32." in refused["message"]
    assert refused["hint"].endswith("or stay with FP16 or FP32.")
    code, out, _ = cli("quantize")
    assert code == 3
    assert f"REFUSED    {INT8_TENSORRT_GRAPH} passes on the photos of the search, but" in out
