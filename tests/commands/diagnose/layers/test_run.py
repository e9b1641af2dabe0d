"""Planted faults are found and named by node and module; sound bundles pass."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from layer_networks import drop, export_blocks, node_of, perturb, rewritten, with_fp16

from deploykit.bundle.folder import open_bundle
from deploykit.commands.diagnose.layers.measure import Subject, module_origin
from deploykit.commands.diagnose.layers.report import layer_report
from deploykit.commands.diagnose.layers.run import diagnose_layers, drawn_images
from deploykit.commands.diagnose.request import DiagnosisRequest
from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.errors import DeviceError, UsageError
from deploykit.graph.files import load_graph
from deploykit.inference.candidates import Candidate, open_candidate
from deploykit.models.registry import resolve_architecture
from deploykit.proof.reference import ReferenceRequest, open_reference
from deploykit.runtime.opener import CPU
from deploykit.specs.preprocessing_options import PreprocessingOptions
from deploykit.system.progress import Note, silent

CANONICAL, FP32 = "model.onnx", "deploy/fp32.onnx"


@pytest.fixture(scope="session")
def exported_blocks(tmp_path_factory, photo_folder):
    return export_blocks(photo_folder, tmp_path_factory.mktemp("blocks"))


@pytest.fixture
def blocks(tmp_path, exported_blocks):
    """A copy of the bundle of ``Blocks``, to change it."""
    folder = tmp_path / "blocks"
    shutil.copytree(exported_blocks.folder, folder)
    return open_bundle(folder)


def fp32(bundle, **options):
    """The report on ``deploy/fp32.onnx``."""
    request = DiagnosisRequest(runtime="onnxruntime-cpu", precision="fp32", **options)
    (report,) = diagnose_layers(bundle, request)
    return report


def canonical(bundle):
    """The report on ``model.onnx`` against the torch module, as a failed export is diagnosed."""
    preprocessing = bundle.manifest.preprocessing
    named = ReferenceRequest(arch=bundle.manifest.architecture.name)
    with (
        open_reference(bundle, named, silent).session as reference,
        open_candidate(bundle, Candidate(CANONICAL, CPU, "fp32")) as session,
    ):
        opset = bundle.manifest.opset
        origin = module_origin(reference._module, preprocessing, "the module", opset=opset)
        graph = load_graph(bundle.checked(CANONICAL))
        images = drawn_images(bundle, None, (), 4, silent)
        return layer_report(Subject(session.spec, graph, graph, preprocessing), origin, images)


def is_first(report, operator, module):
    """Whether the first node is this one, and the report does not pass."""
    first = report.first
    return not report.passed and (first.operator.lower(), first.module) == (operator, module)


def test_diagnose_layers_of_a_sound_bundle(blocks):
    reports = diagnose_layers(with_fp16(blocks))
    found = [(report.candidate.graph, report.candidate.runtime) for report in reports]
    assert found == [
        (FP32, "onnxruntime-cpu"),
        ("deploy/fp16.onnx", "rehearsal"),
    ]
    for report in reports:
        assert report.passed, report
        assert report.nodes > 20
        assert report.images == 4
    deploy, half = reports
    assert deploy.reference == "model.onnx on onnxruntime-cpu"
    assert [error.node for error in deploy.ranking] == ["preprocessing/Add"]  # the same kernels
    assert half.reference == "deploy/fp32.onnx on onnxruntime-cpu"
    assert 1e-5 < half.ranking[0].added < 1e-3
    assert [e.added for e in half.ranking] == sorted((e.added for e in half.ranking), reverse=True)


@pytest.mark.parametrize("report_on", [canonical, fp32], ids=["model.onnx", "deploy"])
@pytest.mark.parametrize("module", ["stem.2", "residual.act"])
def test_diagnose_layers_finds_a_dropped_relu(blocks, report_on, module):
    file = CANONICAL if report_on is canonical else FP32
    report = report_on(rewritten(blocks, file, drop(module, "Relu")))
    assert not report.passed
    assert re.search(
        rf"in the reference it comes from .* \([Rr]elu of {module}\)", report.first.reason
    )
    assert report.first.inherited < report.tolerance < 0.05 < report.first.carried


@pytest.mark.parametrize("report_on", [canonical, fp32], ids=["model.onnx", "deploy"])
@pytest.mark.parametrize("module", ["residual.body.0.0", "dense.right"])
def test_diagnose_layers_finds_a_changed_weight(blocks, report_on, module):
    """Also where a BatchNorm was folded into the Conv."""
    file = CANONICAL if report_on is canonical else FP32
    report = report_on(rewritten(blocks, file, perturb(module, "Conv", 1.02)))
    assert is_first(report, "conv", module)
    assert report.first.added == report.ranking[0].added > report.tolerance


def test_diagnose_layers_finds_another_epsilon(blocks):
    def change(graph):
        node = node_of(graph, "residual.norm", "BatchNormalization")
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-3)

    assert is_first(
        canonical(rewritten(blocks, CANONICAL, change)), "batchnormalization", "residual.norm"
    )


def test_diagnose_layers_finds_an_fp16_overflow(toy):
    bundle = with_fp16(toy("Overflow"))
    (report,) = diagnose_layers(bundle, DiagnosisRequest(runtime="rehearsal"))
    assert is_first(report, "conv", "middle.1")
    assert report.first.non_finite > 0
    assert report.first.added == math.inf
    # What comes behind has inherited it.
    later = [error for error in report.ranking if error.module in ("middle.2", "middle.3")]
    assert all(error.added < report.tolerance for error in later)
    graph = ir.load(bundle.folder / FP32).graph
    keep = [node.name for node in graph if node.metadata_props["module"].startswith("middle")]
    (report,) = diagnose_layers(with_fp16(bundle, keep), DiagnosisRequest(precision="fp16"))
    assert report.passed, report


@pytest.mark.parametrize("pads", [(0, 0, 2, 2), (0, 0, 0, 0)])
def test_diagnose_layers_finds_other_pads(blocks, pads):
    """Those without padding give tensors of another shape."""

    def change(graph):
        node_of(graph, "stem.0", "Conv").attributes["pads"] = ir.AttrInt64s("pads", pads)
        for value in (value for node in graph for value in node.outputs):
            value.shape = value.shape if value.is_graph_output() else None

    report = fp32(rewritten(blocks, FP32, change))
    assert is_first(report, "conv", "stem.0")
    if not any(pads):
        assert "gives shape (1, 6, 14, 14) instead of (1, 6, 16, 16)" in report.first.reason


def exchange(module, operator):
    def change(graph):
        node = node_of(graph, module, operator)
        left, right = node.inputs
        node.replace_input_with(0, right)
        node.replace_input_with(1, left)

    return change


def test_diagnose_layers_finds_exchanged_inputs(blocks):
    assert is_first(fp32(rewritten(blocks, FP32, exchange("dense", "Concat"))), "concat", "dense")
    assert canonical(rewritten(blocks, CANONICAL, exchange("residual", "Add"))).passed


def test_diagnose_layers_finds_another_operator(blocks):
    def change(graph):
        node_of(graph, "residual.body.1.gate", "Sigmoid").op_type = "Tanh"

    report = fp32(rewritten(blocks, FP32, change))
    assert is_first(report, "tanh", "residual.body.1.gate")


def test_diagnose_layers_finds_changed_preprocessing(blocks):
    def change(graph):
        offset = graph.initializers["preprocessing.offset"]
        offset.const_value = ir.tensor(offset.const_value.numpy()[:, ::-1], name=offset.name)

    assert fp32(rewritten(blocks, FP32, change)).first.node == "preprocessing/Add"


def wire_batch(graph):
    """Flatten to a shape that does not ask how many images there are."""
    shape = node_of(graph, "flatten", "Reshape").inputs[1]
    shape.const_value = ir.tensor(np.array((1, 32), np.int64), name=shape.name)


def normalise_over_batch(graph):
    """Take half of the batch's mean away, and add half of the image: alone nothing changes."""
    node = node_of(graph, "dense", "Concat")
    (cat,) = node.outputs
    readers = cat.uses()
    axes = ir.Value(name="axes", const_value=ir.tensor(np.array([0]), name="axes"))
    graph.register_initializer(axes)
    mean = ir.node("ReduceMean", [cat, axes], {"keepdims": 1}, name="mean_of_batch")
    away = ir.node("Sub", [cat, mean.outputs[0]], name="away")
    back = ir.node("Add", [away.outputs[0], cat], name="back")
    for each in (mean, away, back):
        each.outputs[0].name = each.name
        each.metadata_props["module"] = "dense"
    graph.insert_after(node, [mean, away, back])
    for user, index in readers:
        user.replace_input_with(index, back.outputs[0])


@pytest.mark.parametrize(
    ("change", "operator", "module"),
    [(wire_batch, "reshape", "flatten"), (normalise_over_batch, "hardswish", "twice")],
)
def test_diagnose_layers_finds_batch_dependence(blocks, change, operator, module):
    report = canonical(rewritten(blocks, CANONICAL, change))
    assert is_first(report, operator, module)
    assert report.first.reason.startswith("only in batches of 2 images")


def test_diagnose_layers_with_non_finite_reference(blocks):
    def change(graph):
        weight = node_of(graph, "dense.right", "Conv").inputs[1]
        values = weight.const_value.numpy().copy()
        values.flat[0] = np.nan
        weight.const_value = ir.tensor(values, name=weight.name)

    report = fp32(rewritten(rewritten(blocks, FP32, change), CANONICAL, change))
    assert is_first(report, "conv", "dense.right")
    assert report.first.reason == "the reference is not finite from here on"


def test_diagnose_layers_takes_named_images_first(blocks):
    folder = Path(blocks.manifest.images)
    names = tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")))
    one, some, others = (
        fp32(blocks, **options)
        for options in (
            {"max_images": 1},
            {"first": ("elsewhere.png", *names[:4])},
            {"first": names[-4:]},
        )
    )
    assert [report.images for report in (one, some, others)] == [1, 4, 4]
    assert some.ranking[0].added != others.ranking[0].added
    with pytest.raises(UsageError, match="At least 1 image"):
        DiagnosisRequest(max_images=0)


def test_diagnose_layers_refuses_an_engine(engine_bundle):
    with pytest.raises(UsageError, match="hands out no tensor") as caught:
        diagnose_layers(engine_bundle, DiagnosisRequest(runtime="tensorrt_rtx"))
    assert "--runtime rehearsal" in caught.value.hint
    notes = []
    reports = diagnose_layers(engine_bundle, DiagnosisRequest(), notes.append)
    assert {report.candidate.runtime for report in reports} == {"onnxruntime-cpu", "rehearsal"}
    (note,) = (e.message for e in notes if isinstance(e, Note) and "nodes are fused" in e.message)
    assert note.startswith("skipped: engines/")
    assert ", deploy/fp32.onnx on openvino: " in note


def test_diagnose_layers_refuses_openvino(blocks):
    with pytest.raises(UsageError, match="openvino fuses nodes and hands out no tensor") as caught:
        diagnose_layers(blocks, DiagnosisRequest(runtime="openvino"))
    assert "onnxruntime-cpu" in caught.value.hint
    for runtime in (None, "openvino"):
        with pytest.raises(UsageError, match="openvino fuses nodes") as caught:
            diagnose_layers(blocks, DiagnosisRequest(runtime=runtime, precision="bf16"))
        assert "--runtime onnxruntime-cpu, without --precision" in caught.value.hint


def test_diagnose_layers_without_gpu(blocks, no_gpu):
    with pytest.raises(DeviceError):
        diagnose_layers(blocks, DiagnosisRequest(runtime="onnxruntime-cuda"))


@pytest.mark.gpu
def test_diagnose_layers_on_a_gpu(blocks):
    for precision in ("fp32", "fp16"):
        request = DiagnosisRequest(runtime="onnxruntime-cuda", precision=precision)
        (report,) = diagnose_layers(with_fp16(blocks), request)
        assert report.candidate.runtime == "onnxruntime-cuda"
        assert report.passed, report


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("arch", ["dpn92", "torchvision/densenet121"])
def test_diagnose_layers_of_large_networks(arch, photo_folder, tmp_path):
    """Nothing is found where nothing is wrong, and one changed Conv is."""
    torch.manual_seed(0)
    torch.save(
        resolve_architecture(arch, allow_user_code=True).build(3).state_dict(),
        tmp_path / "best_model.pth",
    )
    request = ExportRequest(
        arch=arch,
        checkpoint=tmp_path / "best_model.pth",
        classes=str(photo_folder),
        images=photo_folder,
        preprocessing=PreprocessingOptions(input_size=(64, 64)),
        name="large",
        artifacts=tmp_path,
    )
    bundle = with_fp16(export_bundle(request).bundle)
    reports = diagnose_layers(bundle, DiagnosisRequest(max_images=2))
    assert len(reports) == 2
    for report in reports:
        assert report.passed, report
        assert report.nodes > 100
    graph = ir.load(bundle.folder / FP32).graph
    module = [node for node in graph if node.op_type == "Conv"][40].metadata_props["module"]
    report = fp32(rewritten(bundle, FP32, perturb(module, "Conv", 3.0)), max_images=1)
    assert is_first(report, "conv", module)
