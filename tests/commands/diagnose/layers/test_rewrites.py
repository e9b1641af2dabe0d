"""Diagnosing graphs that rules rewrote: the stage is found, and each node has its name."""

import shutil

import onnx_ir as ir
import pytest
import torch
from layer_networks import rewritten, with_fp16

from deploykit.bundle.folder import open_bundle
from deploykit.commands.diagnose.layers.run import diagnose_layers
from deploykit.commands.diagnose.request import DiagnosisRequest
from deploykit.commands.diagnose.stages.run import diagnose_stages
from deploykit.commands.diagnose.text import first_node_text
from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.graph.files import load_graph
from deploykit.models.registry import resolve_architecture
from deploykit.specs.preprocessing_options import PreprocessingOptions

FP32 = "deploy/fp32.onnx"
NETWORK = """
import torch
from torch import nn


class Block(nn.Module):
    '''A dual-path block: of what its Conv gives, one part is added, the other appended.'''

    def __init__(self, inputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 16, 1)
        self.act = nn.ReLU()

    def forward(self, x):
        y = self.conv(x)
        return self.act(torch.cat([x[:, :8] + y[:, :8], x[:, 8:], y[:, 8:]], 1))


class DualPaths(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(Block(16), Block(24))
        self.head = nn.Linear(32, num_classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))
"""


@pytest.fixture(scope="session")
def exported_paths(tmp_path_factory, photo_folder):
    folder = tmp_path_factory.mktemp("paths")
    code = folder / "network.py"
    code.write_text(NETWORK, encoding="utf-8")
    torch.manual_seed(0)
    module = resolve_architecture(f"{code}:DualPaths", allow_user_code=True).build(3)
    with torch.no_grad():
        module.head.weight.mul_(20)
    torch.save(module.state_dict(), folder / "best_model.pth")
    request = ExportRequest(
        arch=f"{code}:DualPaths",
        checkpoint=folder / "best_model.pth",
        classes=str(photo_folder),
        images=photo_folder,
        preprocessing=PreprocessingOptions(input_size=(16, 16)),
        name="paths",
        artifacts=folder / "artifacts",
    )
    return export_bundle(request).bundle


@pytest.fixture
def paths(tmp_path, exported_paths):
    """A copy of the bundle of ``DualPaths``, to change it."""
    folder = tmp_path / "paths"
    shutil.copytree(exported_paths.folder, folder)
    return open_bundle(folder)


def layer_report(bundle):
    (report,) = diagnose_layers(
        bundle, DiagnosisRequest(runtime="onnxruntime-cpu", precision="fp32")
    )
    return report


def of_module(graph, module, operator):
    """The nodes of a module with this operator, in the graph's order."""
    return [
        node
        for node in graph
        if (node.metadata_props.get("module"), node.op_type) == (module, operator)
    ]


def perturb(node):
    """Change one of a node's weights."""
    weight = node.inputs[1]
    values = weight.const_value.numpy().copy()
    values.flat[1] += 0.5
    weight.const_value = ir.tensor(values, name=weight.name)


def skip(node):
    """Let who reads a node's output read its input."""
    node.outputs[0].replace_all_uses_with(node.inputs[0])
    node.graph.remove(node, safe=True)


def perturb_a_conv(graph):
    perturb(of_module(graph, "blocks.0.conv", "Conv")[0])


def drop_a_moved_relu(graph):
    skip(of_module(graph, "blocks.1.act", "Relu")[0])


def drop_a_needed_relu(graph):
    skip(of_module(graph, "blocks.0.act", "Relu")[0])


@pytest.mark.parametrize("fault", [perturb_a_conv, drop_a_needed_relu])
def test_diagnose_stages_finds_a_wrong_pass(paths, exported_paths, photo_folder, fault):
    """The photos have no labels, for the network is not trained."""
    bundle = rewritten(paths, FP32, fault)
    images = photo_folder / "red"
    named = DiagnosisRequest(images=images, runtime="onnxruntime-cpu", precision="fp32")
    report = diagnose_stages(bundle, named)
    assert report.first.stage == "graph pass"
    assert report.first.change.startswith("deploy/fp32.onnx, which the graph passes made")
    assert diagnose_stages(exported_paths, named).passed


def test_diagnose_layers_rewritten_graph(paths):
    report = layer_report(paths)
    assert report.passed, report
    names = {node.name for node in load_graph(paths.folder / FP32).graph}
    assert any(name.endswith("/channels_0_8") for name in names)
    assert report.nodes > 10


@pytest.mark.parametrize(
    ("fault", "module"),
    [(perturb_a_conv, "blocks.0.conv"), (drop_a_moved_relu, "blocks.1.act")],
)
def test_diagnose_layers_rewritten_graph_with_a_fault(paths, fault, module):
    report = layer_report(rewritten(paths, FP32, fault))
    assert not report.passed
    assert f" of {module})" in first_node_text(report.first, report.tolerance)


def test_diagnose_layers_rewritten_graph_in_fp16(paths):
    (report,) = diagnose_layers(with_fp16(paths), DiagnosisRequest(runtime="rehearsal"))
    assert report.passed, report
    ranked = {(error.node, error.module) for error in report.ranking}
    assert any("/channels_" in node and module.endswith(".conv") for node, module in ranked)
