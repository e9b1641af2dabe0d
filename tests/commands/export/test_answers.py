"""What a network must answer and may take to be exported: logits, and grey images, too."""

import shlex

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets.folder import pil_loader

import deploykit
from deploykit.commands.app import run
from deploykit.commands.export.again import export_command
from deploykit.errors import ArchitectureError, ModelError, UsageError
from deploykit.models.user_code import user_callable
from deploykit.parity.diagnosis import Finding

NETWORKS = """
import torch
from torch import nn


class Digits(nn.Module):
    def __init__(self, num_classes=3, channels=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 5)
        self.head = nn.Linear(8 * 144, num_classes)

    def forward(self, x):
        return self.head(nn.functional.max_pool2d(self.conv(x), 2).relu().flatten(1))


class Colours(Digits):
    def __init__(self, num_classes=3):
        super().__init__(num_classes, 3)


class Four(Digits):
    def __init__(self, num_classes=3):
        super().__init__(num_classes, 4)


class Flat(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.head = nn.Linear(784, num_classes)

    def forward(self, x):
        return self.head(x.view(-1, 784))


class Sigmoid(Colours):
    def forward(self, x):
        return super().forward(x).sigmoid()


class HandmadeSigmoid(Colours):
    def forward(self, x):
        return 1 / (1 + torch.exp(-super().forward(x)))


class InPlace(Colours):
    def forward(self, x):
        return super().forward(x.mul_(0.5).add_(0.1))
"""
MNIST = {"mean": 0.1307, "std": 0.3081}


@pytest.fixture
def trained(tmp_path):
    """Make a network with weights, and what exports it."""
    (tmp_path / "net.py").write_text(NETWORKS)

    def make(name):
        torch.manual_seed(0)
        module = user_callable(f"{tmp_path / 'net.py'}:{name}")().eval()
        module.head.weight.data *= 10
        torch.save(module.state_dict(), tmp_path / f"{name}.pth")
        options = {
            "arch": f"{tmp_path / 'net.py'}:{name}",
            "ckpt": tmp_path / f"{name}.pth",
            "input_size": 28,
            "artifacts": tmp_path / "artifacts",
        }
        return module.requires_grad_(False), options

    return make


def test_export_asks_about_what_looks_like_a_sigmoid(trained, photo_folder):
    _, options = trained("HandmadeSigmoid")
    with pytest.raises(ModelError, match="answers with probabilities") as caught:
        deploykit.export(**options, images=photo_folder)
    assert "Take the sigmoid out of forward()" in caught.value.hint
    assert "head='single-label'" in caught.value.hint
    assert not any((options["artifacts"]).glob("[!.]*"))


def test_export_of_what_the_user_calls_logits(trained, photo_folder):
    module, options = trained("HandmadeSigmoid")
    bundle = deploykit.export(**options, images=photo_folder, head="single-label")
    with deploykit.load(bundle) as model:
        image = np.full((1, 28, 28, 3), 200, np.uint8)
        ours = model.logits(image)
    values = torch.tensor(image).permute(0, 3, 1, 2) / 255
    theirs = module(transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(values))
    assert np.abs(ours - theirs.numpy()).max() < 1e-5
    _, options = trained("Sigmoid")  # which no word of the user's makes logits
    with pytest.raises(UsageError, match="ends in a sigmoid"):
        deploykit.export(**options, head="single-label")


def test_export_of_an_input_changed_in_place(trained, photo_folder):
    module, options = trained("InPlace")
    bundle = deploykit.export(**options, images=photo_folder)
    assert all(verdict.passed for verdict in bundle.manifest.verdicts)
    inputs = np.random.default_rng(0).standard_normal((3, 3, 28, 28)).astype(np.float32)
    (ours,) = ort.InferenceSession(bundle.folder / "model.onnx").run(None, {"input": inputs})
    assert np.abs(ours - module(torch.tensor(inputs)).numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("network", "channels", "normalised"),
    [
        ("Digits", 1, MNIST),
        ("Flat", 1, {"mean": 0.0, "std": 1.0}),
        ("Colours", 3, {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "grayscale": True}),
    ],
)
def test_export_of_grey_images_answers_as_torchvision(
    network, channels, normalised, trained, photo_folder
):
    module, options = trained(network)
    bundle = deploykit.export(**options, **normalised, images=photo_folder)
    assert bundle.manifest.preprocessing.grayscale
    assert all(verdict.passed for verdict in bundle.manifest.verdicts)
    mean, std = normalised["mean"], normalised["std"]
    transform = transforms.Compose(
        [
            transforms.Grayscale(channels),
            transforms.Resize((28, 28)),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    files = sorted(photo_folder.rglob("*.jpg")) or sorted(photo_folder.rglob("*.png"))
    expected = torch.cat([module(transform(pil_loader(file))[None]) for file in files]).numpy()
    small = [np.asarray(pil_loader(file).resize((28, 28))) for file in files]
    with deploykit.load(bundle) as model:
        rows = model.predict(files)
        arrays = model.logits(np.stack(small))
        answers = [model.classes.index(row.label) for row in rows]
    probabilities = torch.tensor(expected).softmax(1).max(1).values.numpy()
    assert answers == [*expected.argmax(1)]
    assert np.abs([row.probability for row in rows] - probabilities).max() < 1e-5
    grey = [transform(Image.fromarray(each).resize((28, 28)))[None] for each in small]
    assert np.abs(arrays - torch.cat([*map(module, grey)]).numpy()).max() < 1e-4
    assert len(files) > 3


def test_export_of_one_channel_takes_rgb_in_its_plain_graph(trained):
    module, options = trained("Digits")
    bundle = deploykit.export(**options, **MNIST)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 3), dtype=np.uint8)
    normalised = ((pixels / 255 - 0.1307) / 0.3081).astype(np.float32).transpose(0, 3, 1, 2)
    luma = np.stack([np.asarray(Image.fromarray(each).convert("L")) for each in pixels])
    grey = torch.tensor(((luma[:, None] / 255 - 0.1307) / 0.3081).astype(np.float32))
    expected = module(grey).numpy()
    for graph, feeds in (
        ("model.onnx", {"input": normalised}),
        ("deploy/fp32.onnx", {"images": pixels}),
    ):
        (logits,) = ort.InferenceSession(bundle.folder / graph).run(None, feeds)
        # Pillow rounds the grey to whole levels.
        assert np.abs(logits - expected).max() < 0.02 * np.abs(expected).max()
        equal = np.repeat(luma[..., None], 3, axis=-1)
        if graph == "model.onnx":
            feeds = {"input": np.repeat(grey.numpy(), 3, axis=1)}
        else:
            feeds = {"images": equal}
        (logits,) = ort.InferenceSession(bundle.folder / graph).run(None, feeds)
        assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def test_export_of_one_channel_asks_for_one_mean(trained):
    _, options = trained("Digits")
    with pytest.raises(UsageError, match="takes one channel") as caught:
        deploykit.export(**options)
    assert "mean=0.1307, std=0.3081" in caught.value.hint
    assert not any((options["artifacts"]).glob("[!.]*"))


def test_export_refuses_four_channels(trained):
    _, options = trained("Four")
    with pytest.raises(ArchitectureError, match="takes images of 4 channels"):
        deploykit.export(**options)


def test_export_of_grey_images_can_be_repeated_and_verified(trained, photo_folder, capsys):
    _, options = trained("Digits")
    bundle = deploykit.export(**options, **MNIST, images=photo_folder)
    command = export_command(
        bundle, [Finding(stage="resize", message="", hint="", options=(("--std", "0.3"),))]
    )
    words = shlex.split(command)
    assert "--grayscale" in words
    assert "" not in words
    assert run(words[1:]) == 0
    capsys.readouterr()
    assert run(["inspect", str(bundle.folder)]) == 0
    assert (
        "grey, resize 28x28 (stretch), bilinear, mean 0.1307, std 0.3 " in capsys.readouterr().out
    )
    assert (
        run(
            [
                "verify",
                "--bundle",
                str(bundle.folder),
                "--arch",
                options["arch"],
                "--images",
                str(photo_folder),
            ]
        )
        == 0
    )
    assert "torch module" in capsys.readouterr().out
