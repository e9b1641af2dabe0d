"""Planted faults are found and named by node and module; whole bundles are not accused."""

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from layer_networks import export_blocks, node_of, rewritten, with_fp16

from deploykit.bundle.folder import open_bundle
from deploykit.commands.diagnose.layers.run import LayersRequest, walk_layers
from deploykit.commands.export.preprocessing import PreprocessingOptions
from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.errors import DeviceError, UsageError
from deploykit.models.registry import resolve_architecture
from deploykit.proof.reference import OpenReference, ReferenceRequest, open_reference
from deploykit.system.progress import Note, Step, silent

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


def module_of(bundle):
    """The bundle's own module, named as on the command line."""
    return ReferenceRequest(arch=bundle.manifest.architecture.name)


def fp32(bundle, **options):
    """The report on ``deploy/fp32.onnx``."""
    request = LayersRequest(runtime="onnxruntime-cpu", precision="fp32", **options)
    (report,) = walk_layers(bundle, request)
    return report


def canonical(bundle):
    """The report on ``model.onnx``."""
    request = LayersRequest(reference=module_of(bundle))
    report, *_ = walk_layers(bundle, request)
    assert report.candidate.graph == CANONICAL
    return report


def drop(module, operator):
    """Take a node out of a graph: who read its output reads its input."""

    def change(graph):
        node = node_of(graph, module, operator)
        node.outputs[0].replace_all_uses_with(node.inputs[0])
        graph.remove(node, safe=True)

    return change


def perturb(module, operator, factor=1.02):
    """Change one element of a node's weight."""

    def change(graph):
        weight = node_of(graph, module, operator).inputs[1]
        values = weight.const_value.numpy().copy()
        values.flat[1] *= factor
        weight.const_value = ir.tensor(values, name=weight.name)

    return change


def named(report, operator, module):
    """Whether the first node is this one, and the report does not pass."""
    first = report.first
    return not report.passed and (first.operator, first.module) == (operator, module)


def test_a_whole_bundle_is_not_accused(blocks):
    reports = walk_layers(with_fp16(blocks), LayersRequest(reference=module_of(blocks)))
    found = [(report.candidate.graph, report.candidate.runtime) for report in reports]
    assert found == [
        (CANONICAL, "onnxruntime-cpu"),
        (FP32, "onnxruntime-cpu"),
        ("deploy/fp16.onnx", "rehearsal"),
    ]
    for report in reports:
        assert report.passed, report
        assert report.nodes > 15
        assert report.images == 4
    module, deploy, half = reports
    assert module.reference.endswith("module by module")
    assert deploy.reference == "model.onnx on onnxruntime-cpu"
    assert deploy.ranking == ()  # the same kernels on the same numbers
    assert half.reference == "deploy/fp32.onnx on onnxruntime-cpu"
    assert 1e-5 < half.ranking[0].added < 1e-3
    assert [e.added for e in half.ranking] == sorted((e.added for e in half.ranking), reverse=True)


def test_the_modules_are_compared_call_by_call(blocks):
    """Convolutions with what was folded into them, and a module that is called twice."""
    modules = {error.module for error in canonical(blocks).ranking}
    assert len(modules) > 5


@pytest.mark.parametrize("report_on", [canonical, fp32], ids=["model.onnx", "deploy"])
@pytest.mark.parametrize(
    ("module", "operator"), [("stem.2", "Relu"), ("residual.act", "Relu"), ("dual.act", "Relu")]
)
def test_a_dropped_relu(blocks, report_on, module, operator):
    file = CANONICAL if report_on is canonical else FP32
    report = report_on(rewritten(blocks, file, drop(module, operator)))
    assert named(report, operator, module)
    assert "is missing" in report.first.reason
    assert any(f"(module {module}) is missing" in each for each in report.differences)


@pytest.mark.parametrize("report_on", [canonical, fp32], ids=["model.onnx", "deploy"])
@pytest.mark.parametrize(
    ("module", "operator"), [("residual.body.0.0", "Conv"), ("dense.right", "Conv")]
)
def test_one_perturbed_weight(blocks, report_on, module, operator):
    file = CANONICAL if report_on is canonical else FP32
    report = report_on(rewritten(blocks, file, perturb(module, operator)))
    assert named(report, operator, module)
    (difference,) = report.differences
    assert f"{module}.weight with 1 of " in difference
    assert "[0, 0, 0, 1] is " in difference


@pytest.mark.parametrize(
    ("module", "operator"), [("residual.body.0.0", "Conv"), ("dense.right", "Conv")]
)
def test_one_weight_that_shows_in_no_output(blocks, module, operator):
    """Also where a BatchNorm was folded into it."""
    report = canonical(rewritten(blocks, CANONICAL, perturb(module, operator, 1.0002)))
    assert named(report, operator, module)
    assert report.first.added < report.tolerance
    assert f"{module}.weight with 1 of " in report.first.reason


def test_what_is_right_is_not_exported_again(blocks):
    steps = []
    walk_layers(blocks, LayersRequest(reference=module_of(blocks)), steps.append)
    assert "exporting again" not in [each.stage for each in steps if isinstance(each, Step)]


def test_one_weight_that_hardly_moves_an_answer(blocks):
    """FP16's own rounding is larger than what it does."""
    bundle = rewritten(with_fp16(blocks), "deploy/fp16.onnx", perturb("dense.right", "Conv", 1.01))
    (report,) = walk_layers(bundle, LayersRequest(precision="fp16"))
    assert named(report, "Conv", "dense.right")
    assert report.first.added < report.tolerance
    assert "1 of " in report.first.reason


def test_an_fp16_overflow(toy):
    bundle = with_fp16(toy("Overflow"))
    (report,) = walk_layers(bundle, LayersRequest(runtime="rehearsal"))
    assert named(report, "Conv", "middle.1")
    assert report.first.non_finite > 0
    assert report.first.added == np.inf
    # What comes behind has inherited it.
    later = [error for error in report.ranking if error.module in ("middle.2", "middle.3")]
    assert all(error.added < report.tolerance for error in later)


def test_what_guards_against_the_overflow_is_not_accused(toy):
    bundle = toy("Overflow")
    graph = ir.load(bundle.folder / FP32).graph
    keep = [node.name for node in graph if node.metadata_props["module"].startswith("middle")]
    (report,) = walk_layers(with_fp16(bundle, keep), LayersRequest(precision="fp16"))
    assert report.passed, report


def test_other_pads(blocks):
    """The tensors behind have another shape, and the node another one for the same input."""

    def change(graph):
        node = node_of(graph, "dense.right", "Conv")
        node.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 2, 2])

    report = fp32(rewritten(blocks, FP32, change))
    assert named(report, "Conv", "dense.right")
    (difference,) = report.differences
    assert "has pads (0, 0, 2, 2) instead of (1, 1, 1, 1)" in difference


def test_pads_that_give_another_shape(blocks):
    def change(graph):
        node = node_of(graph, "stem.0", "Conv")
        node.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 0, 0])
        for each in graph:
            for value in each.outputs:
                value.shape = None

    report = fp32(rewritten(blocks, FP32, change))
    assert named(report, "Conv", "stem.0")
    assert "gives shape (1, 6, 14, 14) instead of (1, 6, 16, 16)" in report.first.reason


def test_two_branches_exchanged(blocks):
    def change(graph):
        node = node_of(graph, "dense", "Concat")
        left, right = node.inputs
        node.replace_input_with(0, right)
        node.replace_input_with(1, left)

    report = fp32(rewritten(blocks, FP32, change))
    assert named(report, "Concat", "dense")
    assert report.first.reason == (
        "node_cat (module dense) reads hardswish/conv2d_5, hardswish/conv2d_4 instead of "
        "hardswish/conv2d_4, hardswish/conv2d_5"
    )


def test_two_summands_exchanged_are_no_fault(blocks):
    def change(graph):
        node = node_of(graph, "residual", "Add")
        left, right = node.inputs
        node.replace_input_with(0, right)
        node.replace_input_with(1, left)

    assert fp32(rewritten(blocks, FP32, change)).passed


def test_a_node_that_changes_nothing_may_go(blocks):
    """A second Relu behind the first: its absence is no fault, as a pass may have seen."""

    def double(graph):
        node = node_of(graph, "residual.act", "Relu")
        again = ir.node("Relu", node.outputs, name="again")
        again.outputs[0].name = "again"
        for user, index in node.outputs[0].uses():
            if user is not again:
                user.replace_input_with(index, again.outputs[0])
        graph.insert_after(node, again)

    bundle = rewritten(blocks, CANONICAL, double)
    report = fp32(bundle)
    assert report.passed, report


def test_another_operator(blocks):
    def change(graph):
        node_of(graph, "residual.body.1.gate", "Sigmoid").op_type = "Tanh"

    report = fp32(rewritten(blocks, FP32, change))
    assert named(report, "Tanh", "residual.body.1.gate")
    assert "is a Tanh instead of a Sigmoid" in report.differences[0]


def test_an_operator_under_another_name(blocks):
    names = []

    def change(graph):
        node = node_of(graph, "dual.act", "Relu")
        names.append(node.name)
        other = ir.node("Abs", node.inputs, name="other")
        other.outputs[0].name = node.outputs[0].name
        node.outputs[0].replace_all_uses_with(other.outputs[0])
        graph.insert_after(node, other)
        graph.remove(node, safe=True)

    report = fp32(rewritten(blocks, FP32, change))
    assert named(report, "Relu", "dual.act")
    assert report.differences == (
        f"{names[0]} (module dual.act) is missing, a Relu",
        "other is new, an Abs",
    )


def test_the_preprocessing_inside_the_graph(blocks):
    def change(graph):
        offset = graph.initializers["preprocessing.offset"]
        offset.const_value = ir.tensor(offset.const_value.numpy()[:, ::-1], name=offset.name)

    report = fp32(rewritten(blocks, FP32, change))
    assert report.first.node == "preprocessing/Add"


def wire_batch(shape):
    """Flatten to a shape that does not ask how many images there are."""

    def change(graph):
        shape_value = node_of(graph, "flatten", "Reshape").inputs[1]
        shape_value.const_value = ir.tensor(np.array(shape, np.int64), name=shape_value.name)

    return change


@pytest.mark.parametrize("shape", [(1, 32), (1, -1)])
def test_a_batch_that_is_wired_as_a_constant(blocks, shape):
    """It fails for a batch of two, there or later."""
    bundle = rewritten(rewritten(blocks, FP32, wire_batch(shape)), CANONICAL, wire_batch(shape))
    report = fp32(bundle)
    assert named(report, "Reshape", "flatten"), report
    assert report.first.reason.startswith("differs between batch sizes 1 and 2")
    assert report.differences[-1].startswith("node_Reshape_110 (module flatten) differs between")


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


def test_a_graph_that_normalises_over_the_batch(blocks):
    bundle = rewritten(
        rewritten(blocks, FP32, normalise_over_batch), CANONICAL, normalise_over_batch
    )
    report = fp32(bundle)
    assert named(report, "ReduceMean", "dense")
    assert report.first.node == "mean_of_batch"
    (difference,) = report.differences
    assert difference.startswith("mean_of_batch (module dense) differs between batch sizes 1 and 2")


def test_another_torch_may_name_nodes_otherwise(blocks, monkeypatch):
    """Then the modules' outputs show the fault."""
    monkeypatch.setattr("deploykit.commands.diagnose.layers.modules.version", lambda name: "9.9.9")
    notes = []
    bundle = rewritten(blocks, CANONICAL, perturb("residual.body.1.up", "Conv", 2.0))
    request = LayersRequest(reference=module_of(bundle))
    report, *_ = walk_layers(bundle, request, notes.append)
    assert any("9.9.9 is here" in e.message for e in notes if isinstance(e, Note))
    assert report.reference.endswith("module by module")
    assert not report.passed
    assert report.first.module == "residual.body.1.gate"  # behind what takes other weights


def test_without_a_module_the_deploy_graphs_are_walked(blocks):
    (report,) = walk_layers(blocks)
    assert report.candidate.graph == FP32


def test_the_images_are_those_whose_answers_are_furthest_off(blocks):
    bundle = rewritten(blocks, FP32, perturb("head", "Gemm", 1.5))
    folder = Path(bundle.manifest.photos)
    names = tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")))
    worst, one, *named = (
        walk_layers(bundle, request)[0]
        for request in (
            LayersRequest(),
            LayersRequest(max_images=1),
            LayersRequest(first=("elsewhere.png", *names[:4])),
            LayersRequest(first=names[-4:]),
        )
    )
    assert [report.images for report in (worst, one, *named)] == [4, 1, 4, 4]
    carried = [report.ranking[0].carried for report in named]
    assert carried[0] != carried[1]
    assert worst.ranking[0].carried > min(carried)


def transposed(bundle, factor=1.0):
    """The bundle with a tensor whose name now means another: what becomes of it is the same."""

    def change(graph):
        node = node_of(graph, "dual.conv", "Conv")
        (image,) = node.inputs[:1]
        there = ir.node("Mul", [image, constant(graph, "half", 0.25)], name="there")
        back = ir.node("Mul", [there.outputs[0], constant(graph, "twice", 4 * factor)], name="back")
        graph.insert_before(node, [there, back])
        node.replace_input_with(0, back.outputs[0])
        there.outputs[0].name, image.name = image.name, "before"
        back.outputs[0].name = "back"

    return rewritten(bundle, FP32, change)


def constant(graph, name, number):
    value = ir.Value(name=name, const_value=ir.tensor(np.float32([number]), name=name))
    graph.register_initializer(value)
    return value


def test_another_tensor_of_the_same_name_is_no_fault(blocks):
    report = fp32(transposed(blocks))
    assert report.passed, report


def test_a_tensor_that_is_wrong_is_not_taken_for_another(blocks):
    """Although the answers of this precision may be that far off."""
    report = fp32(transposed(blocks, factor=1.001))
    assert not report.passed
    assert report.first is not None
    assert report.first.added > 0.5


def test_a_reference_that_is_not_finite_proves_nothing(blocks):
    def change(graph):
        weight = node_of(graph, "dense.right", "Conv").inputs[1]
        values = weight.const_value.numpy().copy()
        values.flat[0] = np.nan
        weight.const_value = ir.tensor(values, name=weight.name)

    report = fp32(rewritten(rewritten(blocks, FP32, change), CANONICAL, change))
    assert named(report, "Conv", "dense.right")
    assert report.first.reason == "the reference is not finite from here on"
    assert "the reference answers NaN or infinity to 16 of 16 images" in report.differences[-1]


def test_a_fault_before_the_walks_reference_is_said(blocks):
    """Both deploy graphs are wrong alike, so that no node of the FP16 one adds anything."""
    bundle = with_fp16(rewritten(blocks, FP32, drop("stem.2", "Relu")))
    (report,) = walk_layers(bundle, LayersRequest(precision="fp16"))
    assert report.first is None
    (difference,) = report.differences
    assert difference.endswith("the graph that this one was made from: that one is to blame")


def test_an_open_reference_is_used_and_stays_open(blocks, monkeypatch):
    with open_reference(blocks, module_of(blocks), silent).session as session:
        reference = OpenReference(session=session, kind="module", description="mine")
        monkeypatch.delattr("deploykit.commands.diagnose.layers.run.open_reference")
        reports = walk_layers(blocks, reference=reference)
        assert [report.candidate.graph for report in reports] == [CANONICAL, FP32]
        assert reports[0].reference.startswith("mine")
        session.run(np.zeros((1, 16, 16, 3), np.uint8))


def test_nothing_is_shown_without_an_image():
    with pytest.raises(UsageError, match="At least 1 image"):
        LayersRequest(max_images=0)


def test_an_engine_cannot_be_looked_into(engine_bundle):
    with pytest.raises(UsageError, match="hands out no tensor") as caught:
        walk_layers(engine_bundle, LayersRequest(runtime="tensorrt_rtx"))
    assert "--runtime rehearsal" in caught.value.hint
    notes = []
    reports = walk_layers(engine_bundle, LayersRequest(), notes.append)
    assert {report.candidate.runtime for report in reports} == {"onnxruntime-cpu", "rehearsal"}
    (note,) = (e.message for e in notes if isinstance(e, Note) and "nodes are fused" in e.message)
    assert note.startswith("left out: engines/")
    assert ", deploy/fp32.onnx on openvino: " in note


def test_openvino_cannot_be_looked_into(blocks):
    with pytest.raises(UsageError, match="openvino fuses nodes and hands out no tensor") as caught:
        walk_layers(blocks, LayersRequest(runtime="openvino"))
    assert "--runtime onnxruntime-cpu" in caught.value.hint
    for runtime in (None, "openvino"):
        with pytest.raises(UsageError, match="openvino fuses nodes") as caught:
            walk_layers(blocks, LayersRequest(runtime=runtime, precision="bf16"))
        assert "--runtime onnxruntime-cpu, without --precision" in caught.value.hint
    reports = walk_layers(blocks, LayersRequest())
    assert {report.candidate.runtime for report in reports} == {"onnxruntime-cpu"}


def test_a_gpu_that_is_not_here(blocks, no_gpu):
    with pytest.raises(DeviceError):
        walk_layers(blocks, LayersRequest(runtime="onnxruntime-cuda"))


@pytest.mark.gpu
def test_the_gpus_kernels(blocks):
    for precision in ("fp32", "fp16"):
        request = LayersRequest(runtime="onnxruntime-cuda", precision=precision)
        (report,) = walk_layers(with_fp16(blocks), request)
        assert report.candidate.runtime == "onnxruntime-cuda"
        assert report.passed, report


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("arch", ["dpn92", "torchvision/densenet121"])
def test_a_large_network(arch, photo_folder, tmp_path):
    """Nothing is found where nothing is wrong, and one weight of millions is."""
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
    reports = walk_layers(bundle, LayersRequest(max_images=2))
    assert len(reports) == 3
    for report in reports:
        assert report.passed, report
        assert report.nodes > 100
    graph = ir.load(bundle.folder / FP32).graph
    conv = [node for node in graph if node.op_type == "Conv"][40]
    module = conv.metadata_props["module"]
    report = fp32(rewritten(bundle, FP32, perturb(module, "Conv", 1.01)), max_images=1)
    assert named(report, "Conv", module)
    (difference,) = report.differences
    assert f"{conv.inputs[1].name} with 1 of " in difference
