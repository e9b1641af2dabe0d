"""Diagnosis by layer for INT8: a scale that is too small is found, and sound graphs pass."""

import shutil

import numpy as np
import onnx_ir as ir
import pytest
from int8_cpu import needs_exact_int8
from layer_networks import export_blocks, node_of, rewritten

from deploykit.bundle.folder import INT8_TENSORRT_GRAPH, deploy_graph, open_bundle
from deploykit.commands.diagnose.layers.run import diagnose_layers
from deploykit.commands.diagnose.request import DiagnosisRequest
from deploykit.commands.quantize.run import quantize_bundle
from deploykit.graph.files import load_graph
from deploykit.runtime.opener import CPU, REHEARSAL

INT8 = deploy_graph("int8")


@pytest.fixture(scope="module")
def int8_blocks(photo_folder, tmp_path_factory):
    return quantize_bundle(export_blocks(photo_folder, tmp_path_factory.mktemp("blocks"))).bundle


@pytest.fixture
def blocks(int8_blocks, tmp_path):
    folder = tmp_path / "blocks"
    shutil.copytree(int8_blocks.folder, folder)
    return open_bundle(folder)


def shrink(graph, tensor):
    """Make a tensor's scale 8 times too small."""
    scale = graph.initializers[f"{tensor}/scale"]
    scale.const_value = ir.tensor((scale.const_value.numpy() / 8).astype(np.float32))


@pytest.mark.parametrize(
    ("file", "runtime"),
    [
        pytest.param(INT8, CPU, marks=needs_exact_int8, id="cpu"),
        pytest.param(INT8_TENSORRT_GRAPH, REHEARSAL, id="tensorrt"),
    ],
)
def test_diagnose_layers_int8_with_a_small_scale(blocks, file, runtime):
    graph = load_graph(blocks.folder / file).graph
    conv = node_of(graph, "dense.left", "Conv")
    tensor = conv.inputs[0].name.removesuffix("/dequantized")
    bundle = rewritten(blocks, file, lambda graph: shrink(graph, tensor))
    (report,) = diagnose_layers(bundle, DiagnosisRequest(runtime=runtime, precision="int8"))
    assert not report.passed
    taking = {node.name for node, _ in conv.inputs[0].uses()}
    assert report.first.node in taking
    assert report.ranking[0].node in taking
    assert report.first.module.startswith("dense")
    assert report.first.added > report.tolerance


@pytest.mark.parametrize("runtime", [CPU, REHEARSAL])
def test_diagnose_layers_int8(int8_blocks, runtime):
    (report,) = diagnose_layers(int8_blocks, DiagnosisRequest(runtime=runtime, precision="int8"))
    assert report.first is None
    assert report.nodes > 20
