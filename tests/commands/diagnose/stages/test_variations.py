"""Labelled photos tell the order of the labels, and what lost the accuracy."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from deploykit.commands.diagnose.request import DiagnosisRequest
from deploykit.commands.diagnose.stages.run import diagnose_stages, prepare_stages
from deploykit.errors import UsageError
from deploykit.proof.reference import ReferenceRequest
from deploykit.specs.preprocessing_options import PreprocessingOptions
from deploykit.system.progress import Note

ORIENTATION = 0x0112
TURN_AROUND = 3
#: The grey level of each class, and its index among the labels.
LEVELS = {"a dark": 50, "b middling": 147, "c bright": 205}


def test_labels_exchanged(diagnose, export, photo_folder):
    report = diagnose(export(classes="blue,red,green"), max_images=None)
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
    assert report.variations == ()


def test_labels_with_exchanged_folders(diagnose, photo_folder, tmp_path):
    folder = tmp_path / "exchanged"
    for colour, name in (("blue", "blue"), ("green", "red"), ("red", "green")):
        shutil.copytree(photo_folder / colour, folder / name)
    (finding,) = diagnose(images=folder, max_images=None).findings
    assert "with green and red exchanged 45 of 45 photos" in finding.message
    assert "or the photos' folders are" in finding.message
    assert "Where they are not what the folder says, move them." in finding.hint


def test_labels_of_few_images(diagnose, export):
    """Four photos that are crossed may be chance: the table shows them, and nothing is named."""
    report = diagnose(export(classes="blue,red,green"), max_images=6)
    assert report.findings == ()
    assert (report.correct, report.labelled) == (2, 6)
    assert report.variations


def test_labels_in_natural_order(diagnose, export, tmp_path, photo_folder):
    """Training had class_10 before class_2, as ImageFolder lists them."""
    folder = tmp_path / "numbered"
    for colour, name in (("blue", "class_1"), ("green", "class_10"), ("red", "class_2")):
        shutil.copytree(photo_folder / colour, folder / name)
    report = diagnose(export(classes="class_1,class_2,class_10"), images=folder)
    finding = report.findings[0]
    assert finding.stage == "labels"
    assert "training had its labels sorted by code point, as ImageFolder does" in finding.message
    assert "the bundle's are in natural order" in finding.message
    assert finding.options == (("--classes", str(folder)),)
    assert finding.labels == ("class_1", "class_10", "class_2")


def test_labels_made_up(diagnose, export):
    report = diagnose(export(classes=None))
    assert [finding.stage for finding in report.findings] == ["labels"]
    message = report.findings[0].message
    assert message.startswith("the bundle's labels are made-up names (class_0, class_1, class_2): ")
    assert "15 of 15 photos get their folder's class instead of 0" in message
    assert "--classes" in report.findings[0].hint


NETWORK = """
import torch
from torch import nn


class Brightness(nn.Module):
    '''The class whose level, in -1 to 1, is nearest: -0.6, 0 or 0.6.'''

    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(1, num_classes)

    def forward(self, x):
        return self.head(({level})[:, None])
"""
BRIGHTNESS = "x.mean((1, 2, 3))"


def save_network(folder, level):
    (folder / "net.py").write_text(NETWORK.replace("{level}", level), encoding="utf-8")
    centres = torch.tensor([-0.6, 0.0, 0.6])
    weights = {"head.weight": 2 * centres[:, None], "head.bias": -(centres**2)}
    torch.save(weights, folder / "best_model.pth")


@pytest.fixture(scope="session")
def brightness(tmp_path_factory):
    """A folder of dark, middling and bright photos, and the network that tells them."""
    root = tmp_path_factory.mktemp("brightness")
    save_network(root, BRIGHTNESS)
    rng = np.random.default_rng(2)
    for name, level in LEVELS.items():
        (root / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(level - 12, level + 13) + rng.integers(-20, 21, (20, 24, 3))
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(root / "photos" / name / f"{i}.png")
    return root


@pytest.fixture
def dim(export, brightness):
    """The brightness network, exported as if training had only scaled photos to 0..1."""

    def run(mean=0.0, std=1.0, root=brightness):
        return export(
            arch=f"{root / 'net.py'}:Brightness",
            checkpoint=root / "best_model.pth",
            classes=str(root / "photos"),
            images=root / "photos",
            preprocessing=PreprocessingOptions(
                input_size=(16, 16), mean=(mean,) * 3, std=(std,) * 3
            ),
        )

    return run


def test_variations_name_mean_and_std(dim):
    report = diagnose_stages(dim(), DiagnosisRequest())
    assert report.first is None
    (finding,) = report.findings
    assert finding.stage == "normalise"
    assert "36 of 36 photos get their folder's class instead of 12" in finding.message
    assert finding.hint == "Export again with --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"
    assert finding.options == (("--mean", "0.5,0.5,0.5"), ("--std", "0.5,0.5,0.5"))
    best = report.variations[0]
    assert (best.correct, best.images, best.gained) == (36, 36, 24)
    assert best.option == "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"
    correct = [each.correct for each in report.variations]
    assert correct == sorted(correct, reverse=True)
    recorded = next(each for each in report.variations if each.change == "as recorded")
    assert (recorded.correct, recorded.gained) == (12, 0)


def blue_only(level, pixels):
    """Only the blue channel tells the class."""
    pixels[..., :2] = 115
    pixels[..., 2] += level - 127


def middle_only(level, pixels):
    """The middle third tells the class; the rest is bright."""
    pixels += 90
    pixels[:, 16:32] += level - 217


def top_less_bottom(level, pixels):
    """The top half is above the bottom half by what tells the class."""
    pixels[:8] += (level - 127) // 2
    pixels[8:] -= (level - 127) // 2


@pytest.mark.parametrize(
    ("level", "paint", "stage", "cause", "recorded"),
    [
        ("x[:, 0].mean((1, 2))", blue_only, "colour", "BGR", 12),
        (
            *(BRIGHTNESS, middle_only, "resize"),
            *("resize 18 (shorter side), centre crop 16x16", 12),
        ),
        (
            *("x[:, :, :8].mean((1, 2, 3)) - x[:, :, 8:].mean((1, 2, 3))", top_less_bottom),
            *("decode", "photos rotated by EXIF", 24),
        ),
    ],
)
def test_variations_name_a_planted_fault(dim, tmp_path, level, paint, stage, cause, recorded):
    """Training did it, and the bundle does not; half of the photos lie upside down for EXIF."""
    save_network(tmp_path, level)
    rng = np.random.default_rng(4)
    for name, grey in LEVELS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = 127 + rng.integers(-20, 21, (16, 48, 3))
            paint(grey, pixels)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            exif = Image.Exif()
            if i % 2:
                image = image.rotate(180)
                exif[ORIENTATION] = TURN_AROUND
            image.save(tmp_path / "photos" / name / f"{i}.png", exif=exif)
    report = diagnose_stages(dim(0.5, 0.5, tmp_path), DiagnosisRequest())
    (finding,) = report.findings
    assert finding.stage == stage
    assert finding.message.startswith(
        f"{cause}: 36 of 36 photos get their folder's class instead of {recorded}"
    )
    assert report.variations[0].gained == 36 - recorded


def test_variations_that_restore_nothing(dim, brightness, tmp_path):
    """Photos in folders that have nothing to do with them."""
    photos = sorted((brightness / "photos").rglob("*.png"))
    np.random.default_rng(3).shuffle(photos)
    for place, photo in enumerate(photos):
        folder = tmp_path / "shuffled" / list(LEVELS)[place % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder / f"{place}.png")
    bundle = dim(0.5, 0.5)
    report = diagnose_stages(bundle, DiagnosisRequest(images=tmp_path / "shuffled"))
    assert report.variations
    assert report.passed
    lost = DiagnosisRequest(images=tmp_path / "shuffled", trained_accuracy=0.97)
    report = diagnose_stages(bundle, lost)
    (finding,) = report.findings
    assert finding.stage == "accuracy"
    assert f"{report.correct} of 36 photos get their folder's class" in finding.message
    assert "training had 97.0% right; none of the 1" in finding.message
    assert (report.labelled, report.trained_accuracy) == (36, 0.97)
    assert not report.passed


def test_variations_shown_by_one_class(dim, brightness, tmp_path):
    """Another mean makes them all right, as it would with a network that says one thing only."""
    shutil.copytree(brightness / "photos" / "b middling", tmp_path / "b middling")
    report = diagnose_stages(dim(), DiagnosisRequest(images=tmp_path))
    assert (report.correct, report.labelled) == (0, 12)
    assert report.variations[0].correct == 12
    assert report.findings == ()


def test_trained_accuracy_decides_on_variations(dim):
    """A third of the photos is right, which is as it was in training."""
    assert diagnose_stages(dim(), DiagnosisRequest(trained_accuracy=0.35)).variations == ()


def test_accuracy_lost_on_more_images_than_are_diagnosed(dim):
    """What few photos hide, a lost accuracy, the comparison of many has shown."""
    bundle = dim()
    lost = DiagnosisRequest(trained_accuracy=0.35, right=(300, 1000))
    assert diagnose_stages(bundle, lost).variations
    kept = DiagnosisRequest(trained_accuracy=0.35, right=(350, 1000))
    assert diagnose_stages(bundle, kept).variations == ()


def test_trained_accuracy_out_of_range(diagnose):
    for accuracy in (97.0, -0.1, math.nan):
        with pytest.raises(UsageError, match=f"between 0 and 1, not {accuracy:g}"):
            diagnose(trained_accuracy=accuracy)


def test_trained_accuracy_needs_labelled_images(exported_bundle, photo_folder):
    request = DiagnosisRequest(images=photo_folder / "red", trained_accuracy=0.9)
    with pytest.raises(UsageError, match="named after a class") as caught:
        prepare_stages(exported_bundle, request)
    assert "--trained-accuracy" in caught.value.hint


def test_accuracy_skips_images_named_first(diagnose, photo_folder):
    name = min(photo_folder.glob("red/*.png")).name
    assert diagnose(first=(f"red/{name}",)).labelled == 14
    notes = []
    report = diagnose(first=(f"red/{name}",), max_images=1, progress=notes.append)
    assert report.labelled == 0
    assert any(
        each.startswith("labels and accuracy are not checked")
        for each in (each.message for each in notes if isinstance(each, Note))
    )


def test_diagnose_stages_of_undecidable_images(dim, tmp_path):
    """Four of seven lie right between two classes: mean -0.3 in -1 to 1."""
    tie = np.full((16, 16, 3), 89, np.uint8)
    tie[::2, ::2] = 90
    for place in range(7):
        other = np.full_like(tie, 40 + 80 * (place % 3) + place)
        pixels = np.roll(tie, divmod(place, 2), axis=(0, 1)) if place < 4 else other
        Image.fromarray(pixels).save(tmp_path / f"{place}.png")
    report = diagnose_stages(dim(0.5, 0.5), DiagnosisRequest(images=tmp_path))
    assert report.first is None
    (finding,) = report.findings
    assert finding.stage == "images"
    assert "the reference does not decide 4 of 7 images" in finding.message
    assert not report.passed


def test_diagnose_stages_of_a_network_that_gives_nan(dim, brightness, tmp_path):
    bundle = dim(0.5, 0.5)
    save_network(tmp_path, f"(0.3 - {BRIGHTNESS}).sqrt() * 0 + {BRIGHTNESS}")
    reference = ReferenceRequest(
        arch=f"{tmp_path / 'net.py'}:Brightness", checkpoint=brightness / "best_model.pth"
    )
    request = DiagnosisRequest(reference=reference)
    report = diagnose_stages(bundle, request)
    assert report.first is None
    (finding,) = report.findings
    assert finding.stage == "network"
    assert "answers NaN or infinity to 12 of 36 photos: c bright/0.png, " in finding.message
    assert not report.passed
    alone = dataclasses.replace(request, max_images=1, first=("c bright/7.png", "not/there.png"))
    (finding,) = diagnose_stages(bundle, alone).findings
    assert "1 of 1 photos: c bright/7.png" in finding.message
