"""A network whose training resizes tensors of floats: no part of deploykit rounds its pixels."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import deploykit
from deploykit.bundle.folder import open_bundle
from deploykit.bundle.golden import read_golden
from deploykit.commands.app import run
from deploykit.errors import InputError, UsageError
from deploykit.graph.files import load_graph
from deploykit.images.decode import decode_rgb
from deploykit.images.preprocess import preprocess
from deploykit.inference.candidates import Candidate, open_candidate
from deploykit.models.loading import load_model
from deploykit.models.registry import resolve_architecture

SIZE = (16, 16)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, network_file, checkpoint, photo_folder):
    return deploykit.export(
        f"{network_file}:Net",
        checkpoint,
        classes=photo_folder,
        preset="keras",
        input_size=SIZE,
        std=1 / 64,  # so that answers differ by more than rounding does
        embeddings=True,
        name="colours",
        artifacts=tmp_path_factory.mktemp("artifacts"),
    )


@pytest.fixture
def copied(tmp_path, exported):
    shutil.copytree(exported.folder, tmp_path / "colours")
    return open_bundle(tmp_path / "colours")


@pytest.fixture(scope="module")
def module(network_file, checkpoint):
    architecture = resolve_architecture(f"{network_file}:Net", allow_user_code=True)
    return load_model(architecture, checkpoint, SIZE).module


@pytest.fixture(scope="module")
def files(photo_folder):
    return sorted(photo_folder.rglob("*.png"))


@pytest.fixture(scope="module")
def trained(module, files):
    """(N, K) what training computes, by torchvision and torch alone."""
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Resize(SIZE, antialias=False), lambda x: x * 64]
    )
    batch = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.no_grad():
        return module(batch).numpy()


@pytest.fixture(scope="module")
def pixels(exported, files):
    steps = exported.manifest.preprocessing
    return np.stack([preprocess(decode_rgb(file), steps) for file in files])


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_export_of_float_pixels(exported):
    manifest = exported.manifest
    assert manifest.preprocessing.pixels == "float32"
    assert manifest.deploy_input.dtype == "float32"
    assert manifest.deploy_input.shape[1:] == (*SIZE, 3)
    graph = load_graph(exported.folder / "deploy/fp32.onnx").graph
    assert "Cast" not in [node.op_type for node in graph]
    golden = read_golden(exported)
    assert golden.images.dtype == np.float32
    assert (golden.images % 1 != 0).any()


@pytest.mark.parametrize(
    ("graph", "runtime"),
    [
        ("deploy/fp32.onnx", "onnxruntime-cpu"),
        ("deploy/fp32.onnx", "openvino"),
        ("model.onnx", "onnxruntime-cpu"),
    ],
)
def test_float_pixels_on_every_runtime(exported, trained, pixels, graph, runtime):
    with open_candidate(exported, Candidate(graph, runtime, "fp32")) as session:
        assert error(session.run(pixels), trained) < 2e-5
        rounded = np.rint(pixels).astype(np.uint8)
        assert np.array_equal(session.run(rounded), session.run(rounded.astype(np.float32)))
        assert error(session.run(rounded), trained) > 3e-4  # which is what rounding costs
        with pytest.raises(InputError, match=r"float32 of shape \(N, 16, 16, 3\); got float64"):
            session.run(pixels.astype(np.float64))


def test_float_pixels_in_python(exported, trained, pixels, files):
    with deploykit.load(exported) as model:
        assert error(model.logits(pixels), trained) < 2e-5
        rows = model.predict(files)
        found = np.array([row.margin for row in rows])
        best = np.sort(trained)
        assert error(found, best[:, -1] - best[:, -2]) < 1e-4
        assert model(files[0]).margin == rows[0].margin
        assert model(np.asarray(Image.open(files[0]))).margin == rows[0].margin
        embedded = model.embed(files[:3])
        assert np.allclose(embedded, model.embed(pixels[:3]), atol=1e-5)
        assert np.isfinite(model.logits(np.zeros((1, *SIZE, 3), np.float32))).all()
        with pytest.raises(UsageError, match=r"floats is in 0\.\.255") as caught:
            model.logits(pixels / 255)
        assert "255" in caught.value.hint
        with pytest.raises(UsageError, match="must be float32"):
            model.logits(pixels.astype(np.float16))


def test_float_pixels_are_no_batch_of_a_network_of_bytes(exported_bundle, pixels):
    with deploykit.load(exported_bundle) as model, pytest.raises(UsageError, match="uint8"):
        model.logits(pixels)


def test_predict_and_verify_float_pixels(copied, trained, files, photo_folder, tmp_path, capsys):
    table = tmp_path / "rows.jsonl"
    assert (
        run(["predict", str(photo_folder), "--bundle", str(copied.folder), "--output", str(table)])
        == 0
    )
    rows = map(json.loads, table.read_text(encoding="utf-8").splitlines())
    labels = [row["label"] for row in rows]
    names = copied.manifest.labels.names
    assert labels == [names[index] for index in trained.argmax(1)]
    assert run(["verify", "--bundle", str(copied.folder), "--images", str(photo_folder)]) == 0


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_quantize_a_network_of_float_pixels(copied, photo_folder, precision, trained, pixels):
    words = ["quantize", "--bundle", str(copied.folder), "--precision", precision]
    assert run([*words, "--images", str(photo_folder)]) == 0
    runtime = {"fp16": "rehearsal", "int8": "onnxruntime-cpu"}[precision]
    bundle = open_bundle(copied.folder)
    candidate = Candidate(f"deploy/{precision}.onnx", runtime, precision)
    with open_candidate(bundle, candidate) as session:
        assert error(session.run(pixels), trained) < 0.05


def test_stages_of_float_pixels(copied, photo_folder):
    words = ["verify", "--bundle", str(copied.folder), "--images", str(photo_folder)]
    assert run([*words, "--stages"]) == 0
