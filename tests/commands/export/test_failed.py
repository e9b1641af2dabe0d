"""An export that fails its comparison keeps its graphs, and names the node at fault."""

import json
import re
import shutil

import onnx
import onnx_ir as ir
import pytest
from layer_networks import blocks_request, drop, node_of

from deploykit.bundle.folder import find_bundle
from deploykit.commands.app import run
from deploykit.commands.export.run import export_bundle
from deploykit.errors import BundleError, ParityError
from deploykit.graph import passes
from deploykit.graph.optimise import DEPLOY_RULES
from deploykit.graph.traced import TracedModule
from deploykit.proof.extremes import judge_extremes


def another_epsilon(graph):
    node = node_of(graph, "residual.norm", "BatchNormalization")
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.1)


def wrong_pass(change):
    def apply(model):
        change(model.graph)
        return model, True

    return apply


@pytest.fixture
def break_export(monkeypatch):
    """Let a pass on the way to the canonical graph do something wrong."""

    def plant(change):
        monkeypatch.setattr(passes, "CLEAN_UP", (*passes.CLEAN_UP, wrong_pass(change)))

    return plant


@pytest.fixture
def request_for(photo_folder, tmp_path):
    """An export of ``Blocks`` to ``artifacts/blocks``, with changes."""
    return lambda **changes: blocks_request(photo_folder, tmp_path, **changes)


def failure(request):
    """The error of an export that fails, and the folder of what it made."""
    with pytest.raises(ParityError) as caught:
        export_bundle(request)
    return caught.value, request.artifacts / ".failed" / "blocks"


@pytest.mark.parametrize(
    ("change", "node"),
    [
        (drop("stem.2", "Relu"), ", relu (relu of stem.2)"),
        pytest.param(
            drop("dual.act", "Relu"), ", relu_3 (relu of dual.act)", marks=pytest.mark.slow
        ),
        (another_epsilon, "(BatchNormalization of residual.norm): the error is "),
    ],
    ids=["relu", "last relu", "epsilon"],
)
def test_export_failed_names_the_node(request_for, break_export, change, node):
    break_export(change)
    error, folder = failure(request_for())
    lines = error.message.splitlines()
    assert lines[0].endswith("so nothing was published.")
    for line, graph in zip(lines[1:3], ("model.onnx", "deploy/fp32.onnx"), strict=True):
        assert line.startswith(f"{graph}: ")
        assert "the largest logit error is" in line
    assert lines[3].startswith("Diagnosis of model.onnx against the torch module: the first node")
    assert node in lines[3]
    assert re.search(r"the error is \d\.\de-0[78] before it and \d\.\de-0[12] after it", lines[3])
    assert lines[4] == f"What failed is kept in {folder}, which is no bundle."
    assert "--opset" in error.hint


@pytest.mark.slow
def test_export_failed_in_a_deploy_pass(request_for, monkeypatch):
    rules = (*DEPLOY_RULES, wrong_pass(drop("stem.2", "Relu")))
    monkeypatch.setattr("deploykit.graph.deploy.DEPLOY_RULES", rules)
    error, _ = failure(request_for())
    assert "\nmodel.onnx: " not in error.message
    assert "Diagnosis of deploy/fp32.onnx against model.onnx: the first node" in error.message
    assert ", node_relu (Relu of stem.2); the error is" in error.message
    assert "please report it" in error.hint


def test_export_failed_diagnoses_what_failed_not_what_is_unproven(request_for, monkeypatch):
    rules = (*DEPLOY_RULES, wrong_pass(drop("stem.2", "Relu")))
    monkeypatch.setattr("deploykit.graph.deploy.DEPLOY_RULES", rules)

    def with_too_few(verdicts, *arguments):
        canonical, deploy = judge_extremes(verdicts, *arguments)
        return canonical.refused("too few images"), deploy

    monkeypatch.setattr("deploykit.commands.export.run.judge_extremes", with_too_few)
    error, _ = failure(request_for())
    assert "\nmodel.onnx: too few images\n" in error.message
    assert "Diagnosis of deploy/fp32.onnx against model.onnx: the first node" in error.message


def test_export_failed_because_torch_traces_another_network(request_for, tmp_path):
    code = tmp_path / "traced.py"
    code.write_text(
        "import torch\nfrom networks import Blocks\n"
        "class Traced(Blocks):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) * (2 if torch.compiler.is_exporting() else 1)\n",
        encoding="utf-8",
    )
    error, _ = failure(request_for(arch=f"{code}:Traced"))
    assert "torch traces another network than the module: its answer is off by 1.0e+00" in str(
        error
    )


def test_export_failed_keeps_only_the_last_graphs(request_for, break_export, monkeypatch):
    sound = export_bundle(request_for()).bundle
    break_export(another_epsilon)
    _, folder = failure(request_for(overwrite=True, diagnose=False))
    (folder / "old.txt").touch()
    error, folder = failure(request_for(overwrite=True, diagnose=False))
    assert "iagnosis" not in error.message
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert files == {"model.onnx", "deploy/fp32.onnx"}
    (norm,) = (
        node
        for node in onnx.load(folder / "model.onnx").graph.node
        if node.op_type == "BatchNormalization"
    )
    assert {each.name: each.f for each in norm.attribute}["epsilon"] == pytest.approx(0.1)
    artifacts = folder.parent.parent
    assert find_bundle(None, artifacts).manifest == sound.manifest
    for wanted in (str(folder), ".failed/blocks"):
        with pytest.raises(BundleError, match="is not a bundle"):
            find_bundle(wanted, artifacts)
    shutil.rmtree(sound.folder)
    for home in (artifacts, folder.parent):
        with pytest.raises(BundleError, match="There is no bundle"):
            find_bundle(None, home)


@pytest.mark.parametrize(
    "error",
    [ValueError("no names"), pytest.param(BundleError("no names"), marks=pytest.mark.slow)],
)
def test_export_failed_with_failed_diagnosis(request_for, break_export, monkeypatch, error):
    def refuse(*arguments, **options):
        raise error

    break_export(another_epsilon)
    monkeypatch.setattr(TracedModule, "__init__", refuse)
    failed, folder = failure(request_for())
    assert "the largest logit error is" in failed.message
    (line,) = (line for line in failed.message.splitlines() if line.startswith("No diagnosis"))
    assert line.startswith("No diagnosis of model.onnx: ")
    assert line.endswith("no names")
    assert (folder / "model.onnx").is_file()


def test_export_failed_and_cannot_be_kept(request_for, break_export):
    break_export(another_epsilon)
    request = request_for()
    request.artifacts.mkdir()
    (request.artifacts / ".failed").touch()
    error, _ = failure(request)
    assert "Diagnosis of model.onnx against the torch module: the first node" in error.message
    assert "What failed is not kept: " in error.message


@pytest.mark.parametrize("option", [pytest.param([], marks=pytest.mark.slow), ["--no-diagnose"]])
def test_export_failed_as_json(request_for, break_export, capsys, option):
    break_export(another_epsilon)
    request = request_for()
    code = run(
        [
            *("export", "--arch", request.arch, "--ckpt", str(request.checkpoint), "--json"),
            *("--images", str(request.images), "--input-size", "16x16", "--name", "blocks"),
            *("--artifacts", str(request.artifacts), *option),
        ]
    )
    assert code == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == 3
    assert answer["error"].keys() == {"message", "hint"}
    assert ("residual.norm" in answer["error"]["message"]) == (option == [])
    assert ".failed" in answer["error"]["message"]
