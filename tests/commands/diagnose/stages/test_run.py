"""The diagnosis by stage finds a planted fault and names it."""

import numpy as np
import onnx
import pytest
from bundle_files import acknowledged, edited
from fake_session import FakeSession
from onnx import helper
from openvino_cpu import needs_bf16
from PIL import Image

from deploykit.bundle.folder import open_bundle
from deploykit.commands.diagnose.request import DiagnosisRequest
from deploykit.commands.diagnose.stages.run import diagnose_stages, prepare_stages
from deploykit.errors import ImagesError, InputError, UsageError
from deploykit.proof.reference import ReferenceRequest
from deploykit.system.progress import Note

CLEAN_STAGES = [
    *("decode", "resize", "normalise", "canonical graph"),
    *("batch size", "graph pass", "batch size"),
]
ORIENTATION = 0x0112
TURN_RIGHT = 6


@pytest.fixture(scope="session")
def turned_folder(tmp_path_factory):
    """JPEG photos, brighter at the top, every fifth lying on its side."""
    root = tmp_path_factory.mktemp("turned")
    rng = np.random.default_rng(1)
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        (root / name).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 60, (40, 30, 3)) + np.linspace(90, 0, 40)[:, None, None]
            pixels[..., channel] += 100
            exif = Image.Exif()
            if i % 5 == 0:
                exif[ORIENTATION] = TURN_RIGHT
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(root / name / f"{i}.jpg", quality=95, exif=exif)
    return root


def stages(report):
    return [step.stage for step in report.steps]


def test_stages_clean_bundle(diagnose):
    report = diagnose()
    assert report.passed
    assert (report.first, report.findings, report.variations) == (None, (), ())
    assert stages(report) == CLEAN_STAGES
    assert report.beginning.startswith("torchvision, with the recorded preprocessing, then torch")
    assert (report.correct, report.labelled, report.trained_accuracy) == (15, 15, None)
    assert all(step.added.flips == 0 for step in report.steps)
    assert report.steps[-1].added.batch_sizes == (2, 5, 8)
    decode, resize, normalise = report.steps[:3]
    for step in (decode, resize, normalise):
        assert (step.added.max_abs_error, step.added.images) == (0.0, 15)


def test_stages_largest_batch(diagnose):
    report = diagnose(max_images=None)
    assert report.passed
    assert report.steps[-1].added.batch_sizes == (2, 5, 8, 32)
    assert "in batches of 2, 5, 8, 32" in report.steps[-1].change


@pytest.mark.parametrize("name", ["same", "direct", "build", "Preset", "doubled", "by_split.val"])
def test_stages_transform_as_recorded(diagnose, transforms, name):
    report = diagnose(transform=f"{transforms}:{name}")
    assert report.passed
    assert report.beginning.startswith(f"{transforms}:{name}, then torch module")
    assert stages(report) == CLEAN_STAGES


@pytest.mark.parametrize(
    ("name", "stage", "training", "bundle", "hint"),
    [
        ("std", "normalise", "std 0.5,0.5,0.5 (-1 to 1)", "std 0.229,", "--std 0.5,0.5,0.5"),
        ("mean", "normalise", "mean 0.5,0.5,0.5 (-1 to 1)", "mean 0.485,", "--mean 0.5,0.5,0.5"),
        ("bgr", "colour", "BGR", "RGB", "--mean 0.406,0.456,0.485 --std 0.225,0.224,0.229"),
        ("bgr_at_last", "colour", "BGR", "RGB", "--mean 0.485,0.456,0.406 --std 0.229,0.224,"),
        ("grey", "colour", "greyscale", "RGB", "Export again with --grayscale"),
        ("grey_at_first", "colour", "greyscale", "RGB", "Export again with --grayscale"),
        ("bicubic", "resize", "bicubic", "bilinear", "--interpolation bicubic"),
        (
            *("crop", "resize", "resize 18 (shorter side), centre crop 16x16"),
            *("resize 16x16 (stretch)", "--resize 18 --crop-size 16x16"),
        ),
        (
            *("plain_crop", "resize", "no resize, centre crop 16x16"),
            *("resize 16x16 (stretch)", "train with a Resize"),
        ),
        ("floating", "resize", "float32 pixels", "uint8 pixels", "--pixels float32"),
    ],
)
def test_stages_planted_difference(diagnose, transforms, name, stage, training, bundle, hint):
    report = diagnose(transform=f"{transforms}:{name}")
    (finding,) = report.findings
    assert finding.stage == stage
    assert finding.message.startswith(f"training: {training}")
    assert f"; the bundle: {bundle}" in finding.message
    assert hint in finding.hint
    changed = [
        step for step in report.steps if training in step.change and "instead" in step.change
    ]
    assert [step.stage for step in changed] == [stage]
    assert changed[0].reasons
    assert changed[0].added.max_relative_error > 1e-3
    assert report.first.stage == stage
    assert not report.passed


def test_stages_resize_of_tensors_without_antialiasing(diagnose, transforms):
    report = diagnose(transform=f"{transforms}:unsmoothed")
    soft, floats = report.findings
    assert soft.message.startswith("training: bilinear without antialiasing; the bundle: bilinear")
    assert "--interpolation bilinear --no-antialias" in soft.hint
    assert floats.message == "training: float32 pixels; the bundle: uint8 pixels"
    assert report.first.stage == "resize"


def test_stages_several_differences(diagnose, transforms):
    report = diagnose(transform=f"{transforms}:several")
    assert [finding.stage for finding in report.findings] == ["resize", "normalise", "normalise"]
    changed = [step for step in report.steps if " instead of " in step.change][:3]
    assert [step.change.split(" ")[0] for step in changed] == ["resize", "mean", "std"]
    assert all(step.reasons for step in changed)


def test_stages_exif_rotation(diagnose, transforms, turned_folder):
    assert diagnose(images=turned_folder).passed
    report = diagnose(images=turned_folder, transform=f"{transforms}:upright")
    (finding,) = report.findings
    assert finding.stage == "decode"
    assert "photos rotated by EXIF" in finding.message
    assert "exif_transpose" in finding.hint
    assert report.first is not None
    assert "EXIF" in report.first.change


@pytest.mark.parametrize("name", ["gamma", "mirrored"])
def test_stages_unexplained_transform(diagnose, transforms, name):
    report = diagnose(transform=f"{transforms}:{name}")
    (finding,) = report.findings
    assert finding.stage == "preprocessing"
    assert f"{name}, which nothing usual explains" in finding.message
    assert "the nearest, " in finding.message
    assert "grey levels away" in finding.message
    assert report.first.stage == "preprocessing"
    assert report.first.change.endswith("unexplained")
    assert not report.passed
    assert report.variations == ()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("flipping", InputError, "is random"),
        ("by_split.train", InputError, "is random"),
        ("uneven", InputError, r"makes 16x\d+ of .*; the bundle takes 16x16"),
        ("bytes_only", InputError, r"uint8 of shape \(3, 16, 16\)"),
        ("failing", InputError, "ValueError: no such photo"),
        ("by_split", UsageError, "several transforms"),
        ("missing", UsageError, "There is no missing"),
    ],
)
def test_stages_no_transform(diagnose, transforms, name, error, message):
    with pytest.raises(error, match=message) as caught:
        diagnose(transform=f"{transforms}:{name}")
    assert caught.value.hint


def test_stages_another_input_size(diagnose, transforms):
    with pytest.raises(InputError) as caught:
        diagnose(transform=f"{transforms}:larger")
    assert f"{transforms}:larger makes 32x32 of " in caught.value.message
    assert caught.value.message.endswith("; the bundle takes 16x16.")
    assert "export again with --input-size 32x32" in caught.value.hint


def test_stages_without_images(diagnose, bundle):
    with pytest.raises(UsageError, match="no folder of photos") as caught:
        diagnose(edited(bundle, images=None), images=None)
    assert "--images" in caught.value.hint


def test_stages_unreadable_images(diagnose, tmp_path, photo_folder):
    (tmp_path / "red").mkdir()
    for photo in sorted((photo_folder / "red").glob("*.png"))[:3]:
        (tmp_path / "red" / photo.name).write_bytes(photo.read_bytes())
    (tmp_path / "red" / "broken.png").write_bytes(b"no photo")
    notes = []
    assert diagnose(images=tmp_path, progress=notes.append).steps[0].added.images == 3
    assert any("1 of 4 photos" in e.message for e in notes if isinstance(e, Note))
    for place in range(3):
        (tmp_path / "red" / f"torn {place}.png").write_bytes(b"no photo")
    report = diagnose(images=tmp_path)
    (finding,) = report.findings
    assert finding.stage == "images"
    assert finding.message.startswith("4 of 7 photos cannot be read")
    assert not report.passed
    for place in range(3):
        (tmp_path / "red" / f"torn {place}.png").unlink()
    for photo in (tmp_path / "red").glob("0*.png"):
        photo.unlink()
    with pytest.raises(ImagesError, match="Not one image"):
        diagnose(images=tmp_path)


def test_stages_without_the_module(diagnose):
    report = diagnose(reference=ReferenceRequest())
    assert report.passed
    assert report.beginning.endswith("then model.onnx on onnxruntime-cpu")
    assert "canonical graph" not in stages(report)


def test_stages_without_torchvision(diagnose, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.transforms", None)
    notes = []
    report = diagnose(progress=notes.append)
    assert report.passed
    assert report.beginning.startswith("deploykit's preprocessing")
    assert stages(report)[:2] == ["normalise", "canonical graph"]
    assert any("torchvision" in e.message for e in notes if isinstance(e, Note))


def mix_the_batch(bundle, name, part=1.0):
    """Add a part of how an image's logits differ from the batch's mean: nothing for one image."""
    path = bundle.folder / name
    model = onnx.load(path)
    for node in model.graph.node:
        for place, output in enumerate(node.output):
            if output == "logits":
                node.output[place] = "alone"
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["alone", "axis"], ["mixed"], "mix_mean"),
            helper.make_node("Sub", ["alone", "mixed"], ["apart"], "mix_sub"),
            helper.make_node("Mul", ["apart", "part"], ["some"], "mix_mul"),
            helper.make_node("Add", ["alone", "some"], ["logits"], "mix_add"),
        ]
    )
    part = onnx.numpy_helper.from_array(np.array(part, np.float32), "part")
    model.graph.initializer.append(part)
    model.graph.initializer.append(helper.make_tensor("axis", onnx.TensorProto.INT64, [1], [0]))
    onnx.save(model, path)
    return acknowledged(bundle, name)


@pytest.mark.parametrize("name", ["model.onnx", "deploy/fp32.onnx"])
def test_stages_batch_size_dependence(diagnose, bundle, name):
    report = diagnose(mix_the_batch(bundle, name))
    (finding,) = report.findings
    assert finding.stage == "batch size"
    assert finding.message.startswith(f"{name} depends on the batch size")
    assert "in batches of 2, 5, 8" in finding.message
    assert report.first is not None
    assert report.first.stage == "batch size"
    assert report.first.change.startswith(name)


def test_stages_batches_within_rounding(diagnose, bundle):
    report = diagnose(mix_the_batch(bundle, "model.onnx", part=1e-3))
    (finding,) = report.findings
    assert finding.stage == "batch size"
    assert "rounding that grows in the network may do that" in finding.message
    assert "depends on the batch size" not in finding.message
    assert not report.passed


def test_stages_graph_that_fails_in_batches(diagnose, bundle):
    path = bundle.folder / "model.onnx"
    model = onnx.load(path)
    shape = onnx.numpy_helper.from_array(np.array([1, 3], np.int64), "wired")
    for node in model.graph.node:
        node.output[:] = ["alone" if output == "logits" else output for output in node.output]
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("Reshape", ["alone", "wired"], ["logits"], "wired"))
    onnx.save(model, path)
    report = diagnose(acknowledged(bundle, "model.onnx"))
    (finding,) = report.findings
    assert "failed on onnxruntime-cpu with a batch of 2" in finding.message
    assert report.first is not None
    assert report.first.added.non_finite > 0


def test_stages_lower_precision(toy):
    bundle = toy("Overflow")
    from fp16_networks import tune_fp16

    tune_fp16(bundle)
    request = DiagnosisRequest(runtime="rehearsal")
    step = diagnose_stages(open_bundle(bundle.folder), request).steps[-1]
    assert (step.stage, step.reasons) == ("precision", ())
    assert step.change == "deploy/fp16.onnx on rehearsal"
    assert step.added.max_abs_error > 0
    named = DiagnosisRequest(runtime="onnxruntime-cpu", precision="fp32")
    assert "precision" not in stages(diagnose_stages(open_bundle(bundle.folder), named))


def test_stages_openvino(diagnose):
    pytest.importorskip("openvino")
    report = diagnose(runtime=None)
    assert stages(report) == [*CLEAN_STAGES, "runtime"]
    assert report.steps[-1].change == "deploy/fp32.onnx on openvino"
    assert report.passed


def test_stages_runtime_that_differs(diagnose, exported_bundle, photo_folder, monkeypatch):
    """Planted: what runs under OpenVINO's name gives the logits in reverse order."""
    pytest.importorskip("openvino")
    from deploykit.inference.candidates import Candidate, open_candidate

    graph = open_candidate(
        exported_bundle, Candidate("deploy/fp32.onnx", "onnxruntime-cpu", "fp32")
    )
    reversed_logits = FakeSession(
        lambda images: graph.run(images)[:, ::-1], classes=3, input_size=(16, 16)
    )
    monkeypatch.setattr(
        "deploykit.commands.diagnose.stages.graphs.open_candidate",
        lambda bundle, candidate: (
            reversed_logits
            if candidate.runtime == "openvino"
            else open_candidate(bundle, candidate)
        ),
    )
    report = diagnose(runtime="openvino", images=photo_folder)
    assert (report.first.stage, report.first.change) == ("runtime", "deploy/fp32.onnx on openvino")
    assert report.first.added.flips == 10  # all but the middle one of three classes
    assert "of 15 images changed their class" in report.first.reasons[0]
    assert not report.passed


@needs_bf16
def test_stages_bf16(diagnose):
    report = diagnose(runtime=None, precision="bf16")
    assert stages(report) == [*CLEAN_STAGES, "precision"]
    assert report.steps[-1].change == "deploy/fp32.onnx in bf16 on openvino"
    assert report.steps[-1].added.max_abs_error > 0


def test_prepare_stages_refuses_early(exported_bundle, photo_folder, transforms):
    def prepare(**fields):
        return prepare_stages(exported_bundle, DiagnosisRequest(images=photo_folder, **fields))

    with pytest.raises(InputError, match="is random"):
        prepare(transform=f"{transforms}:flipping")
    with pytest.raises(UsageError, match="There is no missing"):
        prepare(transform=f"{transforms}:missing")
    with pytest.raises(InputError, match="makes 32x32 of "):
        prepare(transform=f"{transforms}:larger")
    with pytest.raises(UsageError, match="does not compute in"):
        prepare(runtime="onnxruntime-cpu", precision="fp16")
    plan = prepare(transform=f"{transforms}:std")
    assert plan.folder.path == photo_folder
    request = DiagnosisRequest(images=photo_folder, max_images=9, transform="nobody.py:reads_it")
    report = diagnose_stages(exported_bundle, request, plan=plan)
    assert [finding.stage for finding in report.findings] == ["normalise"]
