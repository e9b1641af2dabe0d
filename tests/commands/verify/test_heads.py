"""Verify, diagnose, bench and inspect with networks of several labels, and of one logit."""

import csv
import json
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

import deploykit
from deploykit.bundle.folder import open_bundle
from deploykit.commands.app import run
from deploykit.models.user_code import user_callable

NETWORK = """
from torch import nn


class Net(nn.Module):
    '''Each logit is how far a colour's mean is from what it is usually.'''

    def __init__(self, num_classes=3):
        super().__init__()
        self.scale = nn.Conv2d(3, num_classes, 1)

    def forward(self, x):
        return self.scale(x.mean((2, 3), keepdim=True)).flatten(1)
"""
#: In training's order. The photos' folders are of three other names.
NAMES = ("warm", "leafy", "cold")
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def made(tmp_path_factory, photo_folder):
    """Bundles of two networks, exported with right labels; and what each photo is."""
    root = tmp_path_factory.mktemp("heads")
    (root / "net.py").write_text(NETWORK)
    bundles = {}
    for name, width, head in (("many", 3, "multi-label"), ("one", 1, "binary")):
        torch.manual_seed(0)
        module = user_callable(f"{root / 'net.py'}:Net")(width)
        with torch.no_grad():
            module.scale.weight.copy_(4 * torch.eye(3)[:width, :, None, None])
            module.scale.bias.copy_(torch.tensor([1.0, 0.5, -3.0])[:width])
        torch.save(module.state_dict(), root / f"{name}.pth")
        bundles[name] = deploykit.export(
            f"{root / 'net.py'}:Net",
            root / f"{name}.pth",
            head=head,
            classes=[*NAMES] if width > 1 else ["pale", "warm"],
            input_size=16,
            images=photo_folder,
            artifacts=root / "artifacts",
            name=name,
        )
    return root, bundles


def table_of(bundle, photo_folder, path, columns, wrong=()):
    """Write a table that says what the network says, but of some photos."""
    files = sorted(photo_folder.rglob("*.png"))
    with deploykit.load(bundle) as model:
        rows = [
            (file, {*row.decided}) for file, row in zip(files, model.predict(files), strict=True)
        ]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *columns])
        for place, (image, found) in enumerate(rows):
            flags = [(name in found) != (place in wrong) for name in columns]
            writer.writerow([image.relative_to(photo_folder).as_posix(), *map(int, flags)])
    return rows


def words(bundle, photo_folder, *more):
    return ["--bundle", str(bundle.folder), "--images", str(photo_folder), *map(str, more)]


def module_options(bundle):
    manifest = bundle.manifest
    return ["--arch", manifest.architecture.name, "--ckpt", manifest.checkpoint.path]


def test_verify_tells_the_measures_of_several_labels(made, photo_folder, tmp_path, capsys):
    bundle = made[1]["many"]
    rows = table_of(bundle, photo_folder, tmp_path / "labels.csv", NAMES, wrong=(3, 17))
    page, junit = tmp_path / "page.html", tmp_path / "junit.xml"
    options = ["--expected", tmp_path / "labels.csv", "--html", page, "--junit", junit]
    assert run(["verify", *words(bundle, photo_folder, *options)]) == 0
    text = capsys.readouterr().out
    assert "exact match 95.6 % (43 of 45), of such images at least" in text
    assert "mean average precision" in text
    assert "the same in each class: all 2 candidates" in text
    assert "got the same answer" in text
    told = page.read_text(encoding="utf-8")
    assert "labels.csv</bdi> tells what is right" in told
    assert "exact match" in told
    assert "whose probabilities are above their thresholds" in told
    assert "multi-label, decided above 0.5" in told
    properties = {each.get("name"): each.get("value") for each in ET.parse(junit).iter("property")}
    assert "exact match 95.6 %" in properties["accuracy of reference"]
    assert "leafy recall " in properties["accuracy of deploy/fp32.onnx on onnxruntime-cpu"]
    assert run(["verify", *words(bundle, photo_folder, *options[:2]), "--json"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["result"]["accuracy"]["reference"]
    for found in accuracy["classes"]:
        name = found["label"]
        given = np.array([name in labels for _, labels in rows])
        right = given ^ np.isin(np.arange(45), (3, 17))
        assert found["recall"] == (given & right).sum() / right.sum()
        assert found["precision"] == (given & right).sum() / given.sum()
    mean = np.mean([each["average_precision"] for each in accuracy["classes"]])
    assert accuracy["mean_average_precision"] == pytest.approx(mean)


def test_verify_takes_no_folder_for_the_truth_of_several_labels(made, photo_folder, tmp_path):
    bundle = made[1]["many"]
    for name, colour in zip(NAMES, COLOURS, strict=True):
        shutil.copytree(photo_folder / colour, tmp_path / "photos" / name)
    found = deploykit.verify(bundle, images=tmp_path / "photos")
    assert found.passed
    assert found.accuracy == ()


def test_verify_stages_finds_labels_in_another_order(made, photo_folder, tmp_path, capsys):
    root, bundles = made
    table_of(bundles["many"], photo_folder, tmp_path / "labels.csv", NAMES)
    wrong = deploykit.export(
        f"{root / 'net.py'}:Net",
        root / "many.pth",
        head="multi-label",
        classes=["leafy", "warm", "cold"],
        input_size=16,
        images=photo_folder,
        artifacts=tmp_path,
        name="wrong",
    )
    options = ["--expected", tmp_path / "labels.csv", "--stages", *module_options(wrong)]
    assert run(["verify", *words(wrong, photo_folder, *options)]) == 3
    text = capsys.readouterr().out
    assert "training had its labels in the order of the columns of labels.csv" in text
    assert "Export again with --classes warm,leafy,cold" in text
    assert "--head multi-label --threshold 0.5" in text.partition("To mend all")[2]
    # The same bundle and a table in its own order: which of both is wrong, no answer tells.
    rows = (tmp_path / "labels.csv").read_text().splitlines()
    swapped = [",".join(row.split(",")[i] for i in (0, 2, 1, 3)) for row in rows]
    (tmp_path / "labels.csv").write_text("\n".join(swapped))
    assert run(["verify", *words(wrong, photo_folder, *options)]) == 3
    text = capsys.readouterr().out
    assert "with leafy and warm exchanged" in text
    assert "or those of labels.csv are" in text
    assert run(["verify", *words(bundles["many"], photo_folder, *options)]) == 0


def test_verify_stages_finds_exchanged_classes_of_one_logit(made, photo_folder, tmp_path, capsys):
    bundle = made[1]["one"]
    table_of(bundle, photo_folder, tmp_path / "t.csv", ["warm"], wrong=range(45))
    options = ["--expected", tmp_path / "t.csv", "--stages", *module_options(bundle)]
    assert run(["verify", *words(bundle, photo_folder, *options)]) == 3
    text = capsys.readouterr().out
    assert "accuracy   0.0 % (0 of 45)" in text
    assert "with pale and warm exchanged" in text
    assert "Export again with --classes warm,pale" in text


@pytest.mark.parametrize("name", ["many", "one"])
def test_verify_compares_the_closest_of_each_head(made, photo_folder, tmp_path, name):
    bundle = made[1][name]
    found = deploykit.verify(
        bundle, images=photo_folder, lowest_margins=5, runtime="onnxruntime-cpu", precision="fp32"
    )
    assert found.passed
    head = bundle.manifest.labels.head
    margins = head.margins(found.answers.reference)
    assert (np.diff(margins) >= -1e-5).all()
    assert found.mining.smallest_skipped >= margins.max() - 1e-5


@pytest.mark.parametrize("name", ["many", "one"])
def test_changed_thresholds_are_found_by_every_command(made, photo_folder, tmp_path, capsys, name):
    folder = tmp_path / "copy"
    shutil.copytree(made[1][name].folder, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["labels"]["head"]["thresholds"][0] = 0.1
    (folder / "bundle.json").write_text(json.dumps(manifest))
    for command in (
        ["verify", "--bundle", str(folder), "--images", str(photo_folder)],
        ["verify", "--bundle", str(folder), "--self-test"],
        [
            "predict",
            str(photo_folder),
            "--bundle",
            str(folder),
            "--output",
            str(tmp_path / "p.csv"),
        ],
        ["inspect", str(folder)],
    ):
        capsys.readouterr()
        assert run(command) == 4, command
        out, err = capsys.readouterr()
        assert "was exported with deploykit.head" in out + err
    assert "REFUSED" in out


def test_bench_counts_exact_matches(made, photo_folder, tmp_path):
    bundle = made[1]["many"]
    table_of(bundle, photo_folder, tmp_path / "labels.csv", NAMES, wrong=(0, 1, 2))
    found = deploykit.bench(
        open_bundle(bundle.folder),
        images=photo_folder,
        expected=tmp_path / "labels.csv",
        seconds=0.3,
        batch_sizes=(1,),
    )
    assert {(each.correct, each.labelled) for each in found.measured} == {(42, 45)}
