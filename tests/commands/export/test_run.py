import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from fake_session import FakeSession

import deploykit.commands.export.run as export_module
from deploykit.bundle.golden import read_golden
from deploykit.bundle.manifest import sha256_of
from deploykit.commands.export.request import ExportRequest, default_name, load_subject
from deploykit.commands.export.run import export_bundle
from deploykit.errors import (
    ArchitectureError,
    BundleError,
    CheckpointError,
    ImagesError,
    InputError,
    ModelError,
    ParityError,
    UsageError,
)
from deploykit.specs.preprocessing_options import PreprocessingOptions
from deploykit.system.progress import Note, silent

SMALL = PreprocessingOptions(input_size=(16, 16))


@pytest.fixture
def request_for(tmp_path, network_file, checkpoint):
    """An export of ``networks.py`` into an empty home, with changes."""

    def make(network="Net", **changes):
        defaults = {
            "arch": f"{network_file}:{network}",
            "checkpoint": checkpoint,
            "preprocessing": SMALL,
            "artifacts": tmp_path / "artifacts",
            "name": "net",
        }
        return ExportRequest(**(defaults | changes))

    return make


def test_export_bundle_files(exported_bundle):
    files = {
        path.relative_to(exported_bundle.folder).as_posix()
        for path in exported_bundle.folder.rglob("*")
        if path.is_file()
    }
    assert files == {"bundle.json", "model.onnx", "deploy/fp32.onnx", "golden.npz"}
    assert set(exported_bundle.manifest.files) == files - {"bundle.json"}
    for file in exported_bundle.manifest.files:
        exported_bundle.checked(file)


def test_export_manifest_in_full(exported_bundle, network_file, checkpoint, photo_folder):
    manifest = exported_bundle.manifest
    assert manifest.name == "colours"
    assert manifest.architecture.name.endswith("networks.py:Net")
    assert manifest.architecture.origin == "user"
    assert manifest.architecture.classes == 3
    module = torch.load(checkpoint, weights_only=True)
    counted = sum(v.numel() for k, v in module.items() if "running" not in k and "num_" not in k)
    assert manifest.architecture.parameters == counted
    assert manifest.checkpoint.path == str(checkpoint.resolve())
    assert manifest.checkpoint.sha256 == sha256_of(checkpoint)
    assert manifest.labels.names == ("blue", "green", "red")
    assert manifest.preprocessing.input_size == (16, 16)
    assert manifest.images == str(photo_folder.resolve())
    assert manifest.deploy == {"fp32": "deploy/fp32.onnx"}
    assert manifest.deploy_input.shape == ("N", 16, 16, 3)
    assert {"torch", "onnx", "python"} <= set(manifest.versions)


def test_export_proves_both_graphs(exported_bundle):
    proofs = {proof.graph: proof for proof in exported_bundle.manifest.verdicts}
    assert set(proofs) == {"model.onnx", "deploy/fp32.onnx"}
    for graph, proof in proofs.items():
        assert proof.graph_sha256 == exported_bundle.manifest.files[graph].sha256
        assert (proof.kind, proof.runtime, proof.precision) == (
            "executed",
            "onnxruntime-cpu",
            "fp32",
        )
        assert (proof.images.kind, proof.images.count) == ("photos", 24)
        assert proof.measurement.batch_sizes == (1, 2, 5, 7, 8)
        assert proof.measurement.flips == 0
        assert proof.measurement.max_relative_error <= 1e-4
        assert proof.tolerance.reasons(proof.measurement) == ()


def test_export_golden_answers_are_of_torch_module(exported_bundle, network_file, checkpoint):
    from deploykit.models.registry import resolve_architecture

    golden = read_golden(exported_bundle)
    assert golden.images.shape == (8, 16, 16, 3)
    module = resolve_architecture(f"{network_file}:Net", allow_user_code=True).build(3).eval()
    module.load_state_dict(torch.load(checkpoint, weights_only=True))
    mean, std = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    batch = ((golden.images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        expected = module(torch.tensor(batch)).numpy()
    assert golden.logits == pytest.approx(expected, abs=1e-5)


def test_export_graphs_carry_labels(exported_bundle):
    for name in ("model.onnx", "deploy/fp32.onnx"):
        model = onnx.load(exported_bundle.folder / name)
        props = {prop.key: prop.value for prop in model.metadata_props}
        assert json.loads(props["deploykit.labels"]) == ["blue", "green", "red"]


def test_export_generated_golden_images(request_for, photo_folder, exported_bundle):
    request = request_for(golden="generated", classes=str(photo_folder))
    bundle = export_bundle(request).bundle
    assert bundle.manifest.golden == "generated"
    golden = read_golden(bundle)
    again = read_golden(export_bundle(request_for(golden="generated", name="other")).bundle)
    assert np.array_equal(golden.images, again.images)
    assert not np.array_equal(golden.images, read_golden(exported_bundle).images)
    assert exported_bundle.manifest.golden == "photos"


def test_load_subject_numbers_duplicates(request_for):
    request = request_for(classes="crane,dog,crane")
    with pytest.raises(UsageError, match="repeats 1: crane"):
        load_subject(request, silent)
    labels = load_subject(replace(request, number_duplicates=True), silent).labels
    assert labels.names == ("crane", "dog", "crane 2")


def test_export_reports_assumptions(request_for):
    notes = []
    result = export_bundle(
        request_for(preprocessing=PreprocessingOptions(), classes=None),
        lambda event: notes.append(event.message) if isinstance(event, Note) else None,
    )
    text = "\n".join(notes)
    assert "class names assumed: class_0" in text
    assert "preprocessing assumed (preset tutorial): resize 224x224" in text
    assert "no photos given" in text
    assert result.images.kind == "generated"
    assert result.bundle.manifest.images is None
    assert set(result.seconds) >= {"exporting", "comparing", "writing"}


def nothing_is_left(request):
    return not request.artifacts.exists() or not any(request.artifacts.iterdir())


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        ("RandomNet", ModelError, "another answer each time"),
        ("MixingNet", ModelError, "depends on the other images"),
        ("PairNet", ModelError, "answers with a tuple"),
        ("Missing", (UsageError, ArchitectureError), "Missing"),
    ],
)
def test_export_refuses_undeployable_networks(request_for, network, error, message):
    request = request_for(network)
    with pytest.raises(error, match=message):
        export_bundle(request)
    assert nothing_is_left(request)


def test_export_refuses_infinite_logits(request_for, tmp_path, checkpoint):
    weights = torch.load(checkpoint, weights_only=True)
    weights["features.0.weight"] *= 1e30
    weights["features.3.weight"] *= 1e30
    torch.save(weights, tmp_path / "huge.pth")
    request = request_for(checkpoint=tmp_path / "huge.pth")
    with pytest.raises(ModelError, match="NaN or infinity"):
        export_bundle(request)
    assert nothing_is_left(request)


def test_export_explains_too_small_images(request_for, tmp_path):
    code = tmp_path / "deep.py"
    code.write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten(), nn.LazyLinear(num_classes)"
        " if False else nn.Linear(4 * 24 * 24, num_classes))\n",
        encoding="utf-8",
    )
    from deploykit.models.registry import resolve_architecture

    module = resolve_architecture(f"{code}:make", allow_user_code=True).build(3)
    torch.save(module.state_dict(), tmp_path / "deep.pth")
    request = request_for(arch=f"{code}:make", checkpoint=tmp_path / "deep.pth")
    with pytest.raises(ArchitectureError, match="fails on images of 16x16") as caught:
        export_bundle(request)
    assert "--input-size" in caught.value.hint
    assert nothing_is_left(request)


def test_export_without_readable_image_is_refused(request_for, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    request = request_for(images=tmp_path / "photos")
    with pytest.raises(ImagesError, match="Not one image"):
        export_bundle(request)
    assert nothing_is_left(request)


def test_export_counts_unreadable_images(request_for, tmp_path, photo_folder):
    (tmp_path / "photos").mkdir()
    for path in sorted((photo_folder / "red").iterdir())[:3]:
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    notes = []
    result = export_bundle(request_for(images=tmp_path / "photos"), notes.append)
    assert result.images.count == 3
    assert Note("skipped: 1 of 4 photos cannot be read") in notes


def test_export_refuses_a_checkpoint_changed_while_read(
    request_for, tmp_path, checkpoint, monkeypatch
):
    """A training may replace it at any moment; then its hash is not that of the weights."""
    path = tmp_path / "best_model.pth"
    path.write_bytes(checkpoint.read_bytes())
    import deploykit.models.loading as loading

    original = loading.load_model

    def load_then_replace(*arguments, **options):
        model = original(*arguments, **options)
        path.write_bytes(checkpoint.read_bytes() + b" ")
        return model

    monkeypatch.setattr(loading, "load_model", load_then_replace)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        export_bundle(request_for(checkpoint=path))


def test_export_refuses_shards_that_change(request_for, checkpoint, tmp_path, monkeypatch):
    import deploykit.models.loading as loading

    state = torch.load(checkpoint)
    torch.save(state, tmp_path / "a.bin")
    index = tmp_path / "a.bin.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "a.bin")}), encoding="utf-8")
    original = loading.load_model

    def load_then_replace(*arguments, **options):
        model = original(*arguments, **options)
        torch.save({**state, "extra": torch.ones(1)}, tmp_path / "a.bin")
        return model

    monkeypatch.setattr(loading, "load_model", load_then_replace)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        export_bundle(request_for(checkpoint=index))


@pytest.mark.parametrize("case", ["len(x) == 1", "torch.compiler.is_exporting()", "len(x) > 2"])
def test_export_of_a_forward_that_ends_the_program(request_for, network_file, tmp_path, case):
    """At once, while it is traced, or only for a batch of the comparison."""
    code = tmp_path / "ending.py"
    text = network_file.read_text(encoding="utf-8") + (
        "\nimport sys\nimport torch\n"
        "class Ending(Net):\n"
        "    def forward(self, x):\n"
        f"        if {case}:\n"
        "            sys.exit(0)\n"
        "        return super().forward(x)\n"
    )
    if case == "len(x) > 2":
        text = text.replace("if len", "if not torch.compiler.is_exporting() and len")
    code.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        export_bundle(request_for(arch=f"{code}:Ending"))
    assert caught.value.exit_code == 4
    assert "it ends the program, by sys.exit(0) (ending.py:" in caught.value.message
    assert not (tmp_path / "artifacts" / "Ending").exists()


def test_export_refuses_nan_on_an_image(request_for, tmp_path, photo_folder):
    code = tmp_path / "nets.py"
    code.write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(3, num_classes)\n"
        "    def forward(self, x):\n"
        "        flat = (x.amax((1, 2, 3)) < 2.0) & (x.amin((1, 2, 3)) > -2.2)\n"
        "        return self.head(x.mean((2, 3))) * torch.where(flat, torch.nan, 1.0)[:, None]\n",
        encoding="utf-8",
    )
    from deploykit.models.registry import resolve_architecture

    module = resolve_architecture(f"{code}:Net", allow_user_code=True).build(3)
    torch.save(module.state_dict(), tmp_path / "net.pth")
    request = request_for(arch=f"{code}:Net", checkpoint=tmp_path / "net.pth", images=photo_folder)
    with pytest.raises(ModelError, match="NaN or infinity on"):
        export_bundle(request)
    assert nothing_is_left(request)


def test_export_refuses_arch_args_that_json_cannot_hold(request_for):
    with pytest.raises(UsageError, match="no plain values"):
        export_bundle(request_for(arch_args={"width": 1j}))


def test_export_refuses_dataset_splits_as_classes(request_for, tmp_path):
    for name in ("train", "val", "test"):
        (tmp_path / "data" / name / "robin").mkdir(parents=True)
    with pytest.raises(ImagesError, match="parts of a data set, not classes") as caught:
        export_bundle(request_for(classes=str(tmp_path / "data")))
    assert caught.value.hint.endswith(str(tmp_path / "data" / "train"))


def test_export_refuses_wrong_number_of_classes(request_for):
    request = request_for(classes="a,b,c,d")
    with pytest.raises(InputError, match="weights have 3 classes"):
        export_bundle(request)
    assert nothing_is_left(request)


def test_export_refuses_existing_bundle_early(request_for, monkeypatch):
    export_bundle(request_for())
    monkeypatch.setattr(export_module, "load_subject", None)  # calling it would fail
    with pytest.raises(BundleError, match="exists"):
        export_bundle(request_for())


def test_export_names_a_missing_checkpoint_before_an_existing_bundle(request_for, tmp_path):
    export_bundle(request_for())
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        export_bundle(request_for(checkpoint=tmp_path / "lost.pth"))


def test_export_overwrite_replaces_the_bundle(request_for):
    first = export_bundle(request_for()).bundle
    second = export_bundle(request_for(overwrite=True, classes="x,y,z")).bundle
    assert first.folder == second.folder
    assert second.manifest.labels.names == ("x", "y", "z")
    left = {path.name for path in first.folder.parent.iterdir()}
    assert left == {"net"}


def test_export_with_failed_parity_publishes_nothing(request_for, monkeypatch):
    """The deploy graph's session is made to answer a little wrong."""
    original = export_module.open_graph

    def open_wrong(graph, *, name, **options):
        session = original(graph, name=name, **options)
        if name == "model.onnx":
            return session
        fake = FakeSession(
            lambda images: session.run(images) * 1.01, classes=3, input_size=(16, 16)
        )
        fake._spec = session.spec
        return fake

    monkeypatch.setattr(export_module, "open_graph", open_wrong)
    request = request_for()
    with pytest.raises(ParityError, match=r"deploy/fp32.onnx: the largest logit error") as caught:
        export_bundle(request)
    assert [path.name for path in request.artifacts.iterdir()] == [".failed"]
    assert (
        "no node adds too much when it is computed alone, but the logits moved by 1.0e-02 of the "
        "scale, more than the 5.0e-04 that rounding may add; onnxruntime-cpu may fuse nodes wrongly"
    ) in caught.value.message


def test_export_failed_by_rounding_blames_no_runtime(request_for, monkeypatch):
    """Twice what FP32 may move is a failure all the same, but no fault of a node or a runtime."""
    original = export_module.open_graph

    def open_rounded(graph, *, name, **options):
        session = original(graph, name=name, **options)
        if name == "model.onnx":
            return session
        fake = FakeSession(
            lambda images: session.run(images) * 1.0002, classes=3, input_size=(16, 16)
        )
        fake._spec = session.spec
        return fake

    monkeypatch.setattr(export_module, "open_graph", open_rounded)
    with pytest.raises(ParityError) as caught:
        export_bundle(request_for())
    assert "the logits moved by 2.0e-04 of the scale: it is the rounding of fp32" in (
        caught.value.message
    )
    assert "fuse" not in caught.value.message


def test_export_interrupted_leaves_nothing(request_for, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "write_golden", interrupt)
    request = request_for()
    with pytest.raises(KeyboardInterrupt):
        export_bundle(request)
    assert nothing_is_left(request)


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("dpn92", "dpn92"),
        ("torchvision/resnet50", "resnet50"),
        ("timm/dpn92", "timm-dpn92"),
        ("my.package:make_net", "make_net"),
        ("models/net.py:Net", "Net"),
    ],
)
def test_default_name_from_architecture(arch, name):
    assert default_name(arch) == name


def test_export_counts_duplicates_once(request_for, tmp_path, photo_folder):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(12):
        shutil.copy(photo_folder / "red" / "00.png", photos / f"{i}.png")
    bundle = export_bundle(request_for(images=photos)).bundle
    for proof in bundle.manifest.verdicts:
        assert (proof.images.count, proof.images.duplicates) == (1, 11)
        assert proof.measurement.flip_rate_bound == pytest.approx(0.95)
