"""The suite against bundles that are sound and bundles that are not."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import helper
from suite_runs import acknowledged, edited, outcomes, run_suite, spoil_batches

from deploykit.bundle.folder import CANONICAL_GRAPH
from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.specs.preprocessing_options import PreprocessingOptions

FP32, FP16 = "deploy/fp32.onnx-onnxruntime-cpu-fp32", "deploy/fp16.onnx-rehearsal-fp16"


@pytest.fixture
def check(tmp_path, bundle, photo_folder):
    """Run the suite against the bundle that the test has changed."""

    def run(*arguments):
        return run_suite(tmp_path, bundle, photo_folder, *arguments)

    return run


def test_a_sound_bundle_passes(sound_run):
    run, _ = sound_run
    assert run.returncode == 0, run.stdout
    assert run.stderr == ""
    assert not {"FAILED", "ERROR"} & {*outcomes(run).values()}


@pytest.mark.parametrize("size", ["batch1", "batch2", "batch5", "batch8", "max"])
@pytest.mark.parametrize("candidate", [f"{CANONICAL_GRAPH}-onnxruntime-cpu-fp32", FP32, FP16])
def test_each_candidate_is_a_test_at_each_batch_size(sound_run, candidate, size):
    run, _ = sound_run
    assert outcomes(run)[f"test_decides_alike[{candidate}-{size}]"] == "PASSED"


def test_what_cannot_run_here_is_skipped_with_the_reason(sound_run):
    run, junit = sound_run
    name = "deploy/fp32.onnx-onnxruntime-cuda-fp32"
    assert outcomes(run)[f"test_decides_alike[{name}-batch1]"] == "SKIPPED"
    assert "it cannot run here: " in junit


def test_what_was_measured_is_told(sound_run):
    run, junit = sound_run
    assert "reference  torch module" in run.stdout
    for told in (run.stdout, junit):
        assert "45 photos in batches of 5: flips 0 of 45, at most 6.4 %" in told
        assert "8 golden images in batches of 8: flips 0 of 8; error" in told
        assert "the same 8 images twice: the same bits" in told
        assert "as ImageFolder does: 45 of 45 photos are right" in told
        assert "stages, each within its tolerance" in told


def test_a_plain_junit_file_makes_no_warning(tmp_path, bundle, photo_folder):
    chosen = "(twice or decides) and fp32.onnx-onnxruntime-cpu"
    options = ("-k", chosen, f"--junitxml={tmp_path / 'junit.xml'}")
    run = run_suite(tmp_path, bundle, photo_folder, *options, "--deploykit-max-images", "1")
    assert run.returncode == 0, run.stdout
    assert "warning" not in run.stdout
    told = (tmp_path / "junit.xml").read_text(encoding="utf-8")
    assert "the same 1 image twice: the same bits" in told
    assert "1 photo in batches of 1: flips 0 of 1" in told


def test_the_suite_changes_nothing(tuned_bundle, sound_run):
    files = tuned_bundle.manifest.files
    assert {
        path.relative_to(tuned_bundle.folder).as_posix()
        for path in tuned_bundle.folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    } == {*files, "bundle.json"}
    manifest = json.loads((tuned_bundle.folder / "bundle.json").read_text(encoding="utf-8"))
    assert len(manifest["proofs"]) == len(tuned_bundle.manifest.verdicts)


def test_a_graph_that_is_wrong_in_large_batches_fails_there(bundle, check):
    spoil_batches(bundle, "deploy/fp32.onnx", above=4)
    run = check("-k", "test_decides_alike and fp32.onnx-onnxruntime-cpu")
    assert run.returncode == 1
    found = outcomes(run)
    assert [found[f"test_decides_alike[{FP32}-batch{n}]"] for n in (1, 2, 5, 8)] == [
        "PASSED",
        "PASSED",
        "FAILED",
        "FAILED",
    ]


def test_a_failure_is_the_measurement_in_words(bundle, check):
    spoil_batches(bundle, "deploy/fp32.onnx", above=0)
    run = check("-k", "test_decides_alike and fp32.onnx-onnxruntime-cpu and batch5")
    assert "30 of 45 images changed their class; at most 0.0% may" in run.stdout
    assert "green -> blue" in run.stdout
    assert "Traceback" not in run.stdout
    assert "def test_" not in run.stdout


def test_a_changed_file_fails(bundle, check):
    graph = bundle.folder / "deploy/fp32.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    run = check("--deploykit-max-images", "8")
    found = outcomes(run)
    assert run.returncode == 1
    assert found["test_file_is_unchanged[deploy/fp32.onnx]"] == "FAILED"
    assert found["test_file_is_unchanged[golden.npz]"] == "PASSED"
    assert found[f"test_decides_alike[{FP32}-batch1]"] == "ERROR"
    assert "is not the file that was exported" in run.stdout
    assert "Traceback" not in run.stdout


def test_answers_other_than_the_recorded_ones_fail(bundle, check):
    golden = bundle.folder / "golden.npz"
    with np.load(golden) as data:
        images, logits = data["images"], data["logits"]
    np.savez(golden, images=images, logits=logits[:, ::-1])
    acknowledged(bundle, "golden.npz")
    run = check("-k", "recorded and fp32.onnx-onnxruntime-cpu")
    assert outcomes(run) == {f"test_gives_the_recorded_answers[{FP32}]": "FAILED"}
    assert "answers recorded in golden.npz" in run.stdout


def test_a_suite_in_which_nothing_ran_fails(check):
    run = check("--deploykit-runtime", "onnxruntime-cuda")
    assert not {"FAILED", "ERROR"} & {*outcomes(run).values()}
    assert run.returncode == 1
    assert "no candidate was compared with anything" in run.stdout
    assert "skipped    deploy/fp32.onnx on onnxruntime-cuda: it cannot run here: " in run.stdout


def test_most_photos_must_be_readable(tmp_path, bundle, photo_folder):
    for place, photo in enumerate(sorted(photo_folder.rglob("*.png"))[:5]):
        copy = tmp_path / "photos" / photo.relative_to(photo_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(photo.read_bytes())
        for torn in range(2):
            copy.with_name(f"torn {place} {torn}.png").write_bytes(b"no photo")
    named = "test_decides_alike and fp32.onnx-onnxruntime-cpu and batch1 or stage"
    run = run_suite(tmp_path, bundle, tmp_path / "photos", "-k", named)
    assert {*outcomes(run).values()} == {"FAILED"}
    assert "10 of 15 photos cannot be read: what is left of them stands for nothing" in run.stdout


@pytest.mark.parametrize(("precision", "walked"), [("fp32", False), ("fp16", True)])
def test_the_walk_takes_what_is_named_too(tmp_path, bundle, photo_folder, precision, walked):
    """FP16 that is broken is to blame, unless it was not meant."""
    model = onnx.load(bundle.folder / "deploy/fp16.onnx")
    (logits,) = (node for node in model.graph.node if "logits" in node.output)
    logits.output[:] = ["finite"]
    model.graph.node.append(helper.make_node("Log", ["finite"], ["logits"], name="log"))
    onnx.save(model, bundle.folder / "deploy/fp16.onnx")
    bundle = acknowledged(bundle, "deploy/fp16.onnx")
    run = run_suite(
        tmp_path, bundle, photo_folder, "-k", "stage", "--deploykit-precision", precision
    )
    assert outcomes(run) == {"test_no_stage_is_to_blame": "FAILED" if walked else "PASSED"}
    assert ("first at precision, deploy/fp16.onnx on rehearsal" in run.stdout) is walked


def test_openvino_is_a_candidate_and_bf16_only_where_it_is_named(check):
    run = check("--collect-only", "-q", "-k", "test_decides_alike and batch1")
    assert "deploy/fp32.onnx-openvino-fp32-batch1" in run.stdout
    assert "bf16" not in run.stdout
    run = check("--collect-only", "-q", "--deploykit-precision", "bf16")
    assert "deploy/fp32.onnx-openvino-bf16-batch1" in run.stdout


def test_a_batch_needs_its_number_of_images(check):
    run = check("--deploykit-max-images", "6", "-k", "test_decides_alike and fp16", "-rs")
    found = outcomes(run)
    assert found[f"test_decides_alike[{FP16}-batch5]"] == "PASSED"
    assert found[f"test_decides_alike[{FP16}-batch8]"] == "SKIPPED"
    assert "a batch of 8 needs as many images; there are 6" in run.stdout


def test_the_golden_images_do_without_photos(tmp_path, bundle):
    edited(bundle, photos=None)
    run = run_suite(tmp_path, bundle, None, "--deploykit-precision", "fp16")
    assert run.returncode == 0, run.stdout
    assert "images     the bundle's 8 golden images" in run.stdout
    # The network is the user's own code, which nobody has named.
    assert "reference  model.onnx on onnxruntime-cpu" in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code"), [([], 0), (["--deploykit-runtime", "onnxruntime-cuda"], 1)]
)
def test_with_xdist(check, options, code):
    pytest.importorskip("xdist")
    run = check("-p", "xdist", "-n", "2", *options)
    assert run.returncode == code, run.stdout
    assert ("no candidate was compared" in run.stdout) == bool(code)


@pytest.fixture
def check_labels(tmp_path, network_file, checkpoint, photo_folder):
    """Export with these classes, and run the test of the labels."""

    def run(classes):
        request = ExportRequest(
            arch=f"{network_file}:Net",
            checkpoint=checkpoint,
            classes=classes,
            preprocessing=PreprocessingOptions(input_size=(16, 16)),
            artifacts=tmp_path,
        )
        bundle = export_bundle(request).bundle
        return run_suite(tmp_path, bundle, photo_folder, "-k", "labels", "-rs")

    return run


def test_labels_in_another_order_fail(check_labels):
    run = check_labels("blue,red,green")
    assert outcomes(run) == {"test_labels_are_in_order": "FAILED"}
    assert "15 of 45 photos are right; red and green exchanged, " in run.stdout
    assert "45 would be." in run.stdout
    assert "or move the photos, if it is their folders that are exchanged." in run.stdout


def test_photos_of_other_classes_say_nothing_of_the_order(check_labels):
    run = check_labels("cat,dog,food")
    assert outcomes(run) == {"test_labels_are_in_order": "SKIPPED"}
    assert "no image lies in a folder named after a label: cat, dog, food" in run.stdout


def test_a_transform_other_than_the_recorded_preprocessing_fails(tmp_path, check):
    (tmp_path / "training.py").write_text(
        "from torchvision import transforms\n\n\n"
        "def transform():\n"
        "    return transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor(),\n"
        "        transforms.Normalize([0.485, 0.456, 0.406], [0.5, 0.5, 0.5])])\n",
        encoding="utf-8",
    )
    run = check("-k", "stage", "--deploykit-transform", "training.py:transform")
    assert outcomes(run) == {"test_no_stage_is_to_blame": "FAILED"}
    assert "FOUND  normalise: " in run.stdout


def test_without_photos_there_are_no_stages(tmp_path, bundle):
    edited(bundle, photos=None)
    run = run_suite(tmp_path, bundle, None, "-k", "stage", "-rs")
    assert outcomes(run) == {"test_no_stage_is_to_blame": "SKIPPED"}
    assert "the walk begins with the files of photos" in run.stdout


def test_copies_of_a_photo_are_one_observation(bundle, tmp_path, photo_folder):
    """Of thirty copies of one photo and another, the bound is that of two decisions."""
    folder = tmp_path / "photos"
    (folder / "red").mkdir(parents=True)
    shutil.copy(photo_folder / "red" / "01.png", folder / "red" / "other.png")
    for i in range(30):
        shutil.copy(photo_folder / "red" / "00.png", folder / "red" / f"{i}.png")
    options = ("-k", "fp32.onnx-onnxruntime-cpu and batch8 or test_labels", "-rA")
    junit = tmp_path / "junit.xml"
    run = run_suite(tmp_path, bundle, folder, *options, f"--junitxml={junit}")
    assert run.returncode == 0, run.stdout
    told = junit.read_text(encoding="utf-8")
    assert "31 photos, 29 of them copies in batches of 7, 8: flips 0 of 2, at most 77.6 %" in told
    assert "2 of 2 photos are right" in told
