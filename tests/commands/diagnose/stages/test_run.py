"""One walk over the stages finds a planted fault and names it."""

import dataclasses
import math
import shutil

import numpy as np
import onnx
import pytest
import torch
from bundle_files import acknowledged, edited
from onnx import helper
from openvino_cpu import needs_bf16
from PIL import Image
from training_runs import epoch, write_state
from training_transforms import TRANSFORMS

from deploykit.bundle.folder import open_bundle
from deploykit.commands.diagnose.stages.beginning import DecodedPhoto, begin
from deploykit.commands.diagnose.stages.photos import draw_photos, list_photos
from deploykit.commands.diagnose.stages.run import StagesRequest, prepare_stages, walk_stages
from deploykit.commands.diagnose.stages.transform import load_transform
from deploykit.commands.export.preprocessing import PreprocessingOptions
from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.errors import ImagesError, InputError, UsageError
from deploykit.images.decode import decode_rgb
from deploykit.images.pixel_steps import open_as_training
from deploykit.parity.tolerance import tolerance_for
from deploykit.proof.reference import ReferenceRequest
from deploykit.system.progress import Note

CLEAN_STAGES = [
    *("decode", "resize", "normalise", "canonical graph"),
    *("graph pass", "graph pass", "batch size"),
]
ORIENTATION = 0x0112
TURN_RIGHT = 6


@pytest.fixture(scope="session")
def transforms(tmp_path_factory):
    path = tmp_path_factory.mktemp("training_code") / "train.py"
    path.write_text(TRANSFORMS, encoding="utf-8")
    return path


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


@pytest.fixture
def walk(exported_bundle, network_file, photo_folder):
    """Walk the stages of the colours' bundle to ONNX Runtime, its module for the reference."""

    def run(bundle=exported_bundle, progress=lambda event: None, **fields):
        defaults = {
            "runtime": "onnxruntime-cpu",
            "images": photo_folder,
            "max_images": 15,
            "reference": ReferenceRequest(arch=f"{network_file}:Net"),
        }
        return walk_stages(bundle, StagesRequest(**(defaults | fields)), progress)

    return run


def stages(report):
    return [step.stage for step in report.steps]


def test_a_clean_bundle(walk):
    report = walk()
    assert report.passed
    assert (report.culprit, report.findings, report.trials) == (None, (), ())
    assert stages(report) == CLEAN_STAGES
    assert report.beginning.startswith("torchvision, with the recorded preprocessing, then torch")
    assert (report.correct, report.labelled, report.trained_accuracy) == (15, 15, None)
    assert all(step.added.flips == 0 for step in report.steps)
    assert report.steps[-1].added.batch_sizes == (2, 5, 8)
    decode, resize, normalise = report.steps[:3]
    for step in (decode, resize, normalise):
        assert (step.added.max_abs_error, step.added.images) == (0.0, 15)


def test_with_photos_enough_the_largest_batch_is_tried(walk):
    report = walk(max_images=None)
    assert report.passed
    assert report.steps[-1].added.batch_sizes == (2, 5, 8, 32)
    assert "in batches of 2, 5, 8, 32" in report.steps[-1].change


def test_what_is_not_kept_is_read_again(walk, monkeypatch):
    kept = walk()
    monkeypatch.setattr("deploykit.commands.diagnose.stages.photos._KEPT_BYTES", 0)
    assert walk() == kept


@pytest.mark.parametrize("name", ["same", "direct", "build", "Preset", "doubled", "by_split.val"])
def test_a_transform_that_is_as_recorded(walk, transforms, name):
    report = walk(transform=f"{transforms}:{name}")
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
        ("grey", "colour", "greyscale", "RGB", "makes its input grey"),
        ("grey_at_first", "colour", "greyscale", "RGB", "makes its input grey"),
        (
            *("mirrored", "preprocessing", "photos are mirrored left for right"),
            *("photos as they are", "the transform of the evaluation"),
        ),
        (
            *("turned", "preprocessing", "photos are turned by 180 degrees"),
            *("photos as they are", "the transform of the evaluation"),
        ),
        ("bicubic", "resize", "bicubic", "bilinear", "--interpolation bicubic"),
        (
            *("crop", "resize", "resize 18 (shorter side), centre crop 16x16"),
            *("resize 16x16 (stretch)", "--resize 18 --crop-size 16x16"),
        ),
        (
            *("plain_crop", "resize", "no resize, centre crop 16x16"),
            *("resize 16x16 (stretch)", "train with a Resize"),
        ),
        (
            *("unsmoothed", "resize", "bilinear without antialiasing"),
            *("bilinear", "antialias=True"),
        ),
    ],
)
def test_a_planted_difference_is_named(walk, transforms, name, stage, training, bundle, hint):
    report = walk(transform=f"{transforms}:{name}")
    (finding,) = report.findings
    assert finding.stage == stage
    assert finding.message.startswith(f"training: {training}")
    assert f"; the bundle: {bundle}" in finding.message
    assert hint in finding.hint
    changed = [
        step for step in report.steps if training in step.change and "instead" in step.change
    ]
    assert [step.stage for step in changed] == [stage]
    assert changed[0].objections
    assert changed[0].added.max_relative_error > 1e-3
    if name != "unsmoothed":  # which rounds to bytes, and that alone is beyond the tolerance
        assert report.culprit.stage == stage
    assert not report.passed


def test_a_resize_of_tensors_is_named(walk, transforms):
    """It is the same but for the rounding to bytes, which moves answers, too."""
    report = walk(transform=f"{transforms}:floating")
    (finding,) = report.findings
    assert "tensors are resized, in floating point" in finding.message
    assert "before ToTensor" in finding.hint
    assert report.culprit is report.steps[1]
    assert report.culprit.stage == "resize"


def test_values_that_are_nobodys_are_printed(walk, transforms):
    report = walk(transform=f"{transforms}:own_values")
    messages = [finding.message for finding in report.findings]
    assert messages[0].startswith("training: mean 0.51,0.47,0.43; the bundle: mean 0.485,")
    assert messages[1].startswith("training: std 0.25,0.26,0.27; the bundle: std 0.229,")


def test_several_differences_are_measured_one_by_one(walk, transforms):
    report = walk(transform=f"{transforms}:several")
    assert [finding.stage for finding in report.findings] == ["resize", "normalise", "normalise"]
    changed = [step for step in report.steps if " instead of " in step.change][:3]
    assert [step.change.split(" ")[0] for step in changed] == ["resize", "mean", "std"]
    assert all(step.objections for step in changed)
    *_, last = (step for step in report.steps if step.stage == "graph pass")
    assert last.total.max_relative_error > 1e-3 > last.added.max_relative_error


def test_exif_rotation_is_named(walk, transforms, turned_folder):
    assert walk(images=turned_folder).passed
    report = walk(images=turned_folder, transform=f"{transforms}:upright")
    (finding,) = report.findings
    assert finding.stage == "decode"
    assert "turned as their EXIF orientation says" in finding.message
    assert "exif_transpose" in finding.hint
    assert report.culprit is not None
    assert "EXIF" in report.culprit.change


def test_photos_that_are_turned_are_in_the_sample(walk, transforms, turned_folder):
    """Of 6 in 30 an even sample of 2 would have none, more often than not."""
    report = walk(images=turned_folder, max_images=2, transform=f"{transforms}:upright")
    assert [finding.stage for finding in report.findings] == ["decode"]
    assert report.steps[0].added.images == 2


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("gamma", "the nearest, resize"), ("mirrored_gamma", "the nearest, mirrored left for right")],
)
def test_a_transform_that_nothing_explains(walk, transforms, name, nearest):
    report = walk(transform=f"{transforms}:{name}")
    (finding,) = report.findings
    assert finding.stage == "preprocessing"
    assert f"{name}, which nothing usual explains" in finding.message
    assert nearest in finding.message
    assert "grey levels away" in finding.message
    assert report.culprit is not None
    assert report.culprit.stage == "preprocessing"
    assert report.culprit.change.endswith("unexplained")
    assert not report.passed


def test_a_flip_is_one_difference_among_others(walk, transforms):
    report = walk(transform=f"{transforms}:upside_down")
    assert [finding.stage for finding in report.findings] == ["preprocessing", "normalise"]
    assert "photos are mirrored upside down" in report.findings[0].message
    assert "mean 0.5,0.5,0.5" in report.findings[1].message


def test_a_transform_that_is_seldom_random_is_not_blamed_on_decoding(walk, transforms):
    with pytest.raises(InputError, match="is random: it gave the same photo other values"):
        walk(transform=f"{transforms}:Rarely", max_images=45)


def test_photos_may_be_decoded_in_any_order(exported_bundle, photo_folder):
    """What one photo was made of says nothing about the next."""
    preprocessing = exported_bundle.manifest.preprocessing
    source = list_photos(exported_bundle, photo_folder, lambda event: None)
    photos = draw_photos(source, preprocessing, 6, lambda event: None)
    transform = load_transform(preprocessing, None, lambda event: None)
    beginning = begin(preprocessing, transform, photos, lambda event: None)
    one, other = (
        DecodedPhoto(open_as_training(file.path), decode_rgb(file.path), pixels)
        for file, pixels in zip(photos.files[:2], photos.pixels([0, 1]), strict=True)
    )
    first = beginning.first(one)
    decoded = beginning.ways[0].make
    assert not np.array_equal(decoded(other), first)
    assert np.array_equal(decoded(one), first)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("flipping", InputError, "is random"),
        ("by_split.train", InputError, "is random"),
        ("uneven", InputError, "several sizes: 16x"),
        ("bytes_only", InputError, r"uint8 of shape \(3, 16, 16\)"),
        ("batched", InputError, r"float32 of shape \(1, 3, 16, 16\)"),
        ("one_channel", InputError, r"one channel, float32 of shape \(1, 16, 16\)"),
        ("halved", InputError, r"float16 of shape \(3, 16, 16\)"),
        ("brain_float", InputError, r"bfloat16 of shape \(3, 16, 16\)"),
        ("channels_last", InputError, r"float32 of shape \(16, 16, 3\)"),
        ("image_only", InputError, "an object of type Image"),
        ("mapping", InputError, "an object of type dict"),
        ("nothing", InputError, "an object of type NoneType"),
        ("failing", InputError, "ValueError: no such photo"),
        ("number", InputError, "of type int"),
        ("by_split", UsageError, "several transforms"),
        ("by_split.test", UsageError, "There is no by_split.test"),
        ("missing", UsageError, "There is no missing"),
    ],
)
def test_what_is_no_transform_is_refused(walk, transforms, name, error, message):
    with pytest.raises(error, match=message) as caught:
        walk(transform=f"{transforms}:{name}")
    assert caught.value.hint


def test_another_input_size_is_named_where_the_network_takes_it(walk, transforms):
    report = walk(transform=f"{transforms}:larger")
    (finding,) = report.findings
    assert "resize 32x32 (stretch)" in finding.message
    assert finding.hint.endswith("--resize 32x32")


def test_another_input_size_that_the_graph_does_not_take(walk, transforms):
    with pytest.raises(InputError) as caught:
        walk(transform=f"{transforms}:larger", reference=ReferenceRequest())
    assert caught.value.message == (
        f"{transforms}:larger gives images of 32x32; the bundle takes 16x16, and model.onnx on "
        "onnxruntime-cpu, with which the walk begins, no other size."
    )
    assert "export again with --input-size 32x32" in caught.value.hint


def test_without_photos_there_is_nothing_to_walk_on(walk, bundle):
    with pytest.raises(UsageError, match="no folder of photos") as caught:
        walk(edited(bundle, photos=None), images=None)
    assert "--images" in caught.value.hint


def test_the_photos_of_the_export_are_taken(walk, photo_folder):
    notes = []
    report = walk(images=None, max_images=9, progress=notes.append)
    assert report.steps[0].added.images == 9
    told = [event.message for event in notes if isinstance(event, Note)]
    assert any(str(photo_folder.resolve()) in message for message in told)


def test_unreadable_photos_are_left_out(walk, tmp_path, photo_folder):
    (tmp_path / "red").mkdir()
    for photo in sorted((photo_folder / "red").glob("*.png"))[:3]:
        (tmp_path / "red" / photo.name).write_bytes(photo.read_bytes())
    (tmp_path / "red" / "broken.png").write_bytes(b"no photo")
    notes = []
    assert walk(images=tmp_path, progress=notes.append).steps[0].added.images == 3
    assert any("1 of 4 photos" in e.message for e in notes if isinstance(e, Note))
    for place in range(3):
        (tmp_path / "red" / f"torn {place}.png").write_bytes(b"no photo")
    report = walk(images=tmp_path)
    (finding,) = report.findings
    assert finding.stage == "photos"
    assert finding.message.startswith("4 of 7 photos cannot be read")
    assert not report.passed
    for place in range(3):
        (tmp_path / "red" / f"torn {place}.png").unlink()
    for photo in (tmp_path / "red").glob("0*.png"):
        photo.unlink()
    with pytest.raises(ImagesError, match="Not one image"):
        walk(images=tmp_path)


def test_without_the_module_the_walk_begins_at_the_graph(walk):
    report = walk(reference=ReferenceRequest())
    assert report.passed
    assert report.beginning.endswith("then model.onnx on onnxruntime-cpu")
    assert "canonical graph" not in stages(report)


def test_without_torchvision(walk, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.transforms", None)
    notes = []
    report = walk(progress=notes.append)
    assert report.passed
    assert report.beginning.startswith("deploykit's preprocessing")
    assert stages(report)[:2] == ["normalise", "canonical graph"]
    assert any("torchvision" in e.message for e in notes if isinstance(e, Note))


def mix_the_batch(bundle, name):
    """Add to each image's logits how they differ from the batch's mean: nothing for one image."""
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
            helper.make_node("Add", ["alone", "apart"], ["logits"], "mix_add"),
        ]
    )
    model.graph.initializer.append(helper.make_tensor("axis", onnx.TensorProto.INT64, [1], [0]))
    onnx.save(model, path)
    return acknowledged(bundle, name)


@pytest.mark.parametrize("name", ["model.onnx", "deploy/fp32.onnx"])
def test_a_graph_that_depends_on_the_batch_size(walk, bundle, name):
    report = walk(mix_the_batch(bundle, name))
    (finding,) = report.findings
    assert finding.stage == "batch size"
    assert finding.message.startswith(f"{name} depends on the batch size")
    assert "in batches of 2, 5, 8" in finding.message
    assert report.culprit is not None
    assert report.culprit.stage == "batch size"
    assert report.culprit.change.startswith(name)


def test_a_graph_that_fails_at_other_batch_sizes(walk, bundle):
    path = bundle.folder / "model.onnx"
    model = onnx.load(path)
    shape = onnx.numpy_helper.from_array(np.array([1, 3], np.int64), "wired")
    for node in model.graph.node:
        node.output[:] = ["alone" if output == "logits" else output for output in node.output]
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("Reshape", ["alone", "wired"], ["logits"], "wired"))
    onnx.save(model, path)
    report = walk(acknowledged(bundle, "model.onnx"))
    (finding,) = report.findings
    assert "failed on onnxruntime-cpu with a batch of 2" in finding.message
    assert report.culprit is not None
    assert report.culprit.added.non_finite > 0


def test_a_lower_precision_is_a_step_from_the_deploy_graph(toy):
    bundle = toy("Overflow")
    from deploykit.commands.quantize.fp16 import tune_fp16
    from deploykit.commands.quantize.request import SearchRequest

    tune_fp16(bundle, SearchRequest())
    request = StagesRequest(runtime="rehearsal")
    step = walk_stages(open_bundle(bundle.folder), request).steps[-1]
    assert (step.stage, step.tolerance.max_probability_change) == ("precision", 0.02)
    assert step.change == "deploy/fp16.onnx on rehearsal"
    assert step.added.max_abs_error > 0
    named = StagesRequest(runtime="onnxruntime-cpu", precision="fp32")
    assert "precision" not in stages(walk_stages(open_bundle(bundle.folder), named))


def test_openvino_is_a_step_from_the_same_precision_on_onnx_runtime(walk):
    pytest.importorskip("openvino")
    report = walk(runtime=None)
    assert stages(report) == [*CLEAN_STAGES, "runtime"]
    assert report.steps[-1].change == "deploy/fp32.onnx on openvino"
    assert report.passed


@needs_bf16
def test_bf16_is_a_step_from_its_runtimes_fp32(walk):
    report = walk(runtime=None, precision="bf16")
    assert stages(report) == [*CLEAN_STAGES, "runtime", "precision"]
    assert report.steps[-1].change == "deploy/fp32.onnx in bf16 on openvino"
    assert report.steps[-1].tolerance == tolerance_for("bf16")
    assert report.steps[-1].added.max_abs_error > 0


@pytest.fixture
def export(tmp_path, network_file, checkpoint, photo_folder):
    """Export the colours' network otherwise."""

    def run(**fields):
        defaults = {
            "arch": f"{network_file}:Net",
            "checkpoint": checkpoint,
            "classes": str(photo_folder),
            "preprocessing": PreprocessingOptions(input_size=(16, 16)),
            "images": photo_folder,
            "name": "otherwise",
            "artifacts": tmp_path / "artifacts",
        }
        return export_bundle(ExportRequest(**(defaults | fields))).bundle

    return run


def test_two_labels_exchanged(walk, export, photo_folder):
    report = walk(export(classes="blue,red,green"), max_images=None)
    (finding,) = report.findings
    assert finding.stage == "labels"
    assert "with red and green exchanged 45 of 45 photos" in finding.message
    assert finding.message.endswith(
        "instead of 15: either the labels are exchanged, or the photos' folders are"
    )
    assert finding.hint.startswith("Look at the photos in these folders.")
    assert finding.hint.endswith(f"Export again with --classes {photo_folder}")
    assert (finding.options, finding.labels) == ((), ("blue", "green", "red"))
    assert not report.passed


def test_labels_that_explain_the_loss_end_the_search(walk, export):
    notes = []
    report = walk(export(classes="blue,red,green"), max_images=None, progress=notes.append)
    assert report.trials == ()
    told = [event.message for event in notes if isinstance(event, Note)]
    assert "the labels explain the lost accuracy: no other way is tried" in told


def test_labels_that_do_not_explain_it_all_do_not_end_the_search(dim, brightness):
    """Two labels are exchanged, and the mean is wrong as well."""
    bundle = dim(0.0, 0.5, classes="a dark,c bright,b middling")
    report = walk_stages(bundle, StagesRequest(images=brightness / "photos"))
    assert report.trials
    assert not report.passed


def test_few_photos_tell_no_exchange(walk, export):
    """Four photos that are crossed: chance is 3/16."""
    notes = []
    report = walk(export(classes="blue,red,green"), max_images=6, progress=notes.append)
    assert all(finding.stage != "labels" for finding in report.findings)
    told = [event.message for event in notes if isinstance(event, Note)]
    assert (
        "red and green look exchanged, but 6 labelled photos are too few to tell that from "
        "chance: more of them would (--max-images)"
    ) in told


def test_where_the_folder_has_no_more_photos_no_more_of_them_are_advised(
    walk, export, photo_folder, tmp_path
):
    few = tmp_path / "few"
    for path in sorted(photo_folder.glob("*/*"))[::7]:
        (few / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, few / path.parent.name)
    notes = []
    walk(export(classes="blue,red,green"), images=few, max_images=None, progress=notes.append)
    (told,) = (
        event.message for event in notes if "look exchanged" in getattr(event, "message", "")
    )
    assert told.endswith(f"too few to tell that from chance: more would, and {few} has no more")


def test_photos_of_one_class_restore_no_accuracy(dim, brightness):
    """Another mean makes them all right, as it would with a network that says one thing only."""
    bright = brightness / "photos" / "b middling"
    folder = bright.parent.parent / "one class" / bright.name
    shutil.copytree(bright, folder)
    report = walk_stages(dim(), StagesRequest(images=folder.parent))
    assert (report.correct, report.labelled) == (0, 12)
    assert report.trials[0].correct == 12
    assert report.findings == ()


def test_labels_in_natural_order(walk, export, tmp_path, photo_folder):
    """Training had class_10 before class_2, as ImageFolder lists them."""
    folder = tmp_path / "numbered"
    for colour, name in (("blue", "class_1"), ("green", "class_10"), ("red", "class_2")):
        (folder / name).mkdir(parents=True)
        for photo in (photo_folder / colour).glob("*.png"):
            (folder / name / photo.name).write_bytes(photo.read_bytes())
    assert walk(export(classes=str(folder), name="right"), images=folder).passed
    report = walk(export(classes="class_1,class_2,class_10"), images=folder)
    finding = report.findings[0]
    assert finding.stage == "labels"
    assert "training had its labels sorted by code point, as ImageFolder does" in finding.message
    assert "the bundle's are in natural order" in finding.message
    assert finding.hint.endswith(f"--classes {folder}")
    assert finding.options == (("--classes", str(folder)),)
    assert finding.labels == ("class_1", "class_10", "class_2")


def test_labels_that_nobody_gave(walk, export):
    report = walk(export(classes=None))
    assert [finding.stage for finding in report.findings] == ["labels"]
    message = report.findings[0].message
    assert message.startswith("the bundle's labels are made-up names (class_0, class_1, class_2): ")
    assert "15 of 15 photos get their folder's class instead of 0" in message
    assert "--classes" in report.findings[0].hint


BRIGHTNESS = """
import torch
from torch import nn


class Brightness(nn.Module):
    '''The class whose brightness, in -1 to 1, is nearest: -0.6, 0 or 0.6.'''

    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(1, num_classes)

    def forward(self, x):
        return self.head(x.mean((1, 2, 3))[:, None])
"""


@pytest.fixture(scope="session")
def brightness(tmp_path_factory):
    """A folder of dark, middling and bright photos, and the network that tells them."""
    root = tmp_path_factory.mktemp("brightness")
    (root / "net.py").write_text(BRIGHTNESS, encoding="utf-8")
    centres = torch.tensor([-0.6, 0.0, 0.6])
    weights = {"head.weight": 2 * centres[:, None], "head.bias": -(centres**2)}
    torch.save(weights, root / "best_model.pth")
    rng = np.random.default_rng(2)
    for name, level in (("a dark", 50), ("b middling", 147), ("c bright", 205)):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(level - 12, level + 13) + rng.integers(-20, 21, (20, 24, 3))
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(root / "photos" / name / f"{i}.png")
    return root


@pytest.fixture
def dim(export, brightness):
    """The brightness network, exported as if training had only scaled photos to 0..1."""

    def run(mean=0.0, std=1.0, classes=str(brightness / "photos")):
        return export(
            arch=f"{brightness / 'net.py'}:Brightness",
            checkpoint=brightness / "best_model.pth",
            classes=classes,
            images=brightness / "photos",
            preprocessing=PreprocessingOptions(
                input_size=(16, 16), mean=(mean,) * 3, std=(std,) * 3
            ),
        )

    return run


def test_the_search_restores_a_lost_accuracy(dim, brightness):
    report = walk_stages(dim(), StagesRequest(images=brightness / "photos"))
    assert report.culprit is None
    (finding,) = report.findings
    assert finding.stage == "normalise"
    assert "36 of 36 photos get their folder's class instead of 12" in finding.message
    assert finding.hint == "Export again with --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"
    assert finding.options == (("--mean", "0.5,0.5,0.5"), ("--std", "0.5,0.5,0.5"))
    best = report.trials[0]
    assert (best.correct, best.images) == (36, 36)
    assert best.option == "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"
    assert [trial.correct for trial in report.trials] == sorted(
        (trial.correct for trial in report.trials), reverse=True
    )


def test_the_search_finds_two_faults_together(export, brightness, tmp_path):
    """Training fed BGR in -1 to 1, and only blue tells the classes; the bundle has ImageNet's."""
    code = BRIGHTNESS.replace("x.mean((1, 2, 3))", "x[:, 0].mean((1, 2))")
    (tmp_path / "net.py").write_text(code, encoding="utf-8")
    for photo in (brightness / "photos").rglob("*.png"):
        pixels = np.array(Image.open(photo))
        pixels[..., 0] = 115
        copy = tmp_path / photo.relative_to(brightness)
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(copy)
    bundle = export(
        arch=f"{tmp_path / 'net.py'}:Brightness",
        checkpoint=brightness / "best_model.pth",
        classes=str(tmp_path / "photos"),
        images=tmp_path / "photos",
    )
    report = walk_stages(bundle, StagesRequest())
    (finding,) = report.findings
    assert finding.message.startswith("BGR and mean 0.5,0.5,0.5 (-1 to 1), std 0.5,0.5,0.5")
    assert "36 of 36 photos get their folder's class instead of 12" in finding.message
    assert "x.flip(1)" in finding.hint
    alone = {trial.change: trial.correct for trial in report.trials}
    assert 12 < alone["BGR"] < 30


def test_there_is_no_search_where_the_accuracy_is_good(dim, brightness):
    bundle = dim(0.5, 0.5)
    report = walk_stages(bundle, StagesRequest(images=brightness / "photos"))
    assert report.passed
    assert report.trials == ()


def test_a_search_that_finds_nothing_names_nothing(dim, brightness, tmp_path):
    """Photos in folders that have nothing to do with them."""
    photos = sorted((brightness / "photos").rglob("*.png"))
    np.random.default_rng(3).shuffle(photos)
    for place, photo in enumerate(photos):
        folder = tmp_path / "shuffled" / ("a dark", "b middling", "c bright")[place % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{place}.png").write_bytes(photo.read_bytes())
    bundle = dim(0.5, 0.5)
    report = walk_stages(bundle, StagesRequest(images=tmp_path / "shuffled"))
    assert report.trials
    assert report.findings == ()
    assert report.passed
    lost = StagesRequest(images=tmp_path / "shuffled", trained_accuracy=0.97)
    report = walk_stages(bundle, lost)
    (finding,) = report.findings
    assert finding.stage == "accuracy"
    assert f"{report.correct} of 36 photos get their folder's class" in finding.message
    assert "training had 97.0% right" in finding.message
    assert f"none of the {len(report.trials)} usual ways" in finding.message
    assert (report.labelled, report.trained_accuracy) == (36, 0.97)
    assert not report.passed


def test_photos_that_decide_nothing_are_not_a_stages_fault(dim, tmp_path):
    """Two of twelve lie right between two classes: mean -0.3 in -1 to 1."""
    tie = np.full((16, 16, 3), 89, np.uint8)
    tie[::2, ::2] = 90
    for place in range(12):
        other = np.full_like(tie, 40 + 80 * (place % 3) + place)
        pixels = np.roll(tie, place, axis=0) if place < 2 else other
        Image.fromarray(pixels).save(tmp_path / f"{place}.png")
    report = walk_stages(dim(0.5, 0.5), StagesRequest(images=tmp_path))
    assert report.culprit is None
    (finding,) = report.findings
    assert finding.stage == "photos"
    assert finding.message.startswith("2 of 12 photos are near ties")
    assert not report.passed


def test_a_network_that_gives_nan_is_not_a_stages_fault(dim, brightness, tmp_path):
    bundle = dim(0.5, 0.5)
    code = BRIGHTNESS.replace(
        "self.head(x.mean((1, 2, 3))[:, None])",
        "self.head((0.3 - x.mean((1, 2, 3))).sqrt()[:, None] * 0 + x.mean((1, 2, 3))[:, None])",
    )
    (tmp_path / "net.py").write_text(code, encoding="utf-8")
    reference = ReferenceRequest(
        arch=f"{tmp_path / 'net.py'}:Brightness", checkpoint=brightness / "best_model.pth"
    )
    request = StagesRequest(images=brightness / "photos", reference=reference)
    report = walk_stages(bundle, request)
    assert report.culprit is None
    (finding,) = report.findings
    assert finding.stage == "network"
    assert "answers NaN or infinity to 12 of 36 photos: c bright/0.png, " in finding.message
    assert not report.passed
    alone = dataclasses.replace(request, max_images=1, first=("c bright/7.png", "not/there.png"))
    (finding,) = walk_stages(bundle, alone).findings
    assert "1 of 1 photos: c bright/7.png" in finding.message


def test_photos_that_are_picked_do_not_count_for_the_accuracy(walk, photo_folder):
    name = min(photo_folder.glob("red/*.png")).name
    assert walk(first=(f"red/{name}",)).labelled == 14
    notes = []
    report = walk(first=(f"red/{name}",), max_images=1, progress=notes.append)
    assert report.labelled == 0
    told = [event.message for event in notes if isinstance(event, Note)]
    assert any(message.startswith("labels and accuracy are not checked") for message in told)


def test_what_is_no_use_is_refused_before_the_walk(exported_bundle, photo_folder, transforms):
    def prepare(**fields):
        return prepare_stages(exported_bundle, StagesRequest(images=photo_folder, **fields))

    with pytest.raises(InputError, match="is random"):
        prepare(transform=f"{transforms}:flipping")
    with pytest.raises(UsageError, match="There is no missing"):
        prepare(transform=f"{transforms}:missing")
    with pytest.raises(InputError, match="images of 32x32"):
        prepare(transform=f"{transforms}:larger")
    with pytest.raises(UsageError, match="does not compute in"):
        prepare(runtime="onnxruntime-cpu", precision="fp16")
    plan = prepare(transform=f"{transforms}:std")
    assert plan.source.folder == photo_folder
    request = StagesRequest(images=photo_folder, max_images=9, transform="nobody.py:reads_it")
    report = walk_stages(exported_bundle, request, plan=plan)
    assert [finding.stage for finding in report.findings] == ["normalise"]


def test_an_accuracy_needs_labelled_photos(exported_bundle, photo_folder):
    request = StagesRequest(images=photo_folder / "red", trained_accuracy=0.9)
    with pytest.raises(UsageError, match="named after a class") as caught:
        prepare_stages(exported_bundle, request)
    assert "--trained-accuracy" in caught.value.hint


@pytest.mark.parametrize(("accuracy", "searched"), [(0.98, True), (0.35, False)])
def test_what_training_had_decides_whether_to_search(dim, brightness, accuracy, searched):
    bundle = dim()
    request = StagesRequest(images=brightness / "photos", trained_accuracy=accuracy)
    assert bool(walk_stages(bundle, request).trials) == searched


def test_the_run_beside_the_checkpoint_tells_its_accuracy(dim, brightness, tmp_path):
    bundle = dim()
    checkpoint = tmp_path / "run" / "best_model.pth"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes((brightness / "best_model.pth").read_bytes())
    write_state(checkpoint.parent, epoch(test_accuracy=0.35))
    reference = ReferenceRequest(arch=f"{brightness / 'net.py'}:Brightness", checkpoint=checkpoint)
    request = StagesRequest(images=brightness / "photos", reference=reference)
    assert walk_stages(bundle, request).trials == ()
    write_state(checkpoint.parent, epoch(test_accuracy=0.98))
    assert walk_stages(bundle, request).trials


@pytest.mark.parametrize("accuracy", [97.0, -0.1, math.nan])
def test_what_is_no_accuracy_is_refused(walk, accuracy):
    with pytest.raises(UsageError, match=f"between 0 and 1, not {accuracy:g}"):
        walk(trained_accuracy=accuracy)
