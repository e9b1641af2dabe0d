"""Heads from network to prediction: the probabilities that come out are training's own."""

import json

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.datasets.folder import pil_loader

import deploykit
from deploykit.commands.app import run
from deploykit.commands.export.heads import read_thresholds
from deploykit.errors import BundleError, DeploykitError, InputError, ModelError, UsageError
from deploykit.models.user_code import user_callable
from deploykit.specs.heads import head_of

NETWORKS = """
import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=2)
        self.head = nn.Linear(8 * 36, num_classes)

    def forward(self, x):
        return self.head(nn.functional.max_pool2d(self.conv(x), 2).relu().flatten(1))


class Sigmoid(Plain):
    def forward(self, x):
        return torch.sigmoid(super().forward(x))


class Softmax(Plain):
    def forward(self, x):
        return torch.softmax(super().forward(x), dim=1)


class One(Plain):
    def __init__(self, num_classes=1):
        super().__init__(1)


class OneSigmoid(One):
    def forward(self, x):
        return super().forward(x).sigmoid().squeeze(1)


class OneSoftmax(One):
    def forward(self, x):
        return super().forward(x).softmax(1)
"""


@pytest.fixture
def trained(tmp_path):
    """Export one of the networks; those of as many logits have the same weights."""
    (tmp_path / "net.py").write_text(NETWORKS)

    def export(name, saved=lambda state: state, **options):
        torch.manual_seed(0)
        module = user_callable(f"{tmp_path / 'net.py'}:{name}")().eval()
        torch.save(saved(module.state_dict()), tmp_path / f"{name}.pth")
        bundle = deploykit.export(
            f"{tmp_path / 'net.py'}:{name}",
            tmp_path / f"{name}.pth",
            input_size=28,
            artifacts=tmp_path / "artifacts",
            overwrite=True,
            **options,
        )
        return module.requires_grad_(False), bundle

    return export


def own_answers(module, files):
    """What the module itself answers, preprocessed by torchvision."""
    transform = transforms.Compose(
        [
            transforms.Resize((28, 28)),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return module(torch.stack([transform(pil_loader(file)) for file in files])).numpy()


def photos(folder):
    return sorted(folder.rglob("*.jpg")) or sorted(folder.rglob("*.png"))


def test_export_of_several_sigmoids_gives_trainings_own_numbers(trained, photo_folder):
    files = photos(photo_folder)
    inside, bundle = trained("Sigmoid", images=photo_folder, classes=["cat", "dog", "owl"])
    expected = own_answers(inside, files)
    labels = bundle.manifest.labels
    assert (labels.head.name, bundle.manifest.architecture.activation) == ("multi-label", "sigmoid")
    _, outside = trained("Plain", images=photo_folder, classes=labels.names, head="multi-label")
    for each in (bundle, outside):
        with deploykit.load(each) as model:
            rows = model.predict(files)
        for row, answer in zip(rows, expected, strict=True):
            found = {ranked.label: ranked.probability for ranked in row.top}
            assert [found[name] for name in labels.names] == pytest.approx(answer, abs=1e-6)
            above = [name for name in labels.names if found[name] > 0.5]
            assert {*row.labels} == {*above}
            assert row.label is None
            assert row.probability is None
            assert row.margin == pytest.approx(
                np.abs(np.log(answer) - np.log1p(-answer)).min(), abs=1e-4
            )


def test_export_of_one_logit_gives_trainings_own_numbers(trained, photo_folder):
    files = photos(photo_folder)
    module, bundle = trained("OneSigmoid", images=photo_folder, classes=["cat", "dog"])
    assert module(torch.zeros(2, 3, 28, 28)).shape == (2,)
    expected = own_answers(module, files)
    _, outside = trained("One", images=photo_folder, classes=["cat", "dog"])
    for each in (bundle, outside):
        assert each.manifest.labels.head.name == "binary"
        with deploykit.load(each) as model:
            rows = model.predict(files)
        assert [row.probability for row in rows] == pytest.approx(expected, abs=1e-6)
        assert [row.label for row in rows] == ["dog" if p > 0.5 else "cat" for p in expected]
        assert all(len(row.top) == 2 and row.labels is None for row in rows)


def test_export_of_a_softmax_is_that_of_its_logits(trained, photo_folder):
    files = photos(photo_folder)
    module, bundle = trained("Softmax", images=photo_folder)
    assert bundle.manifest.labels.head.name == "single-label"
    assert bundle.manifest.architecture.activation == "softmax"
    with deploykit.load(bundle) as model:
        rows = model.predict(files)
    expected = own_answers(module, files)
    assert [row.probability for row in rows] == pytest.approx(expected.max(1), abs=1e-6)


def test_verify_compares_with_the_module_that_ends_in_a_sigmoid(trained, photo_folder, capsys):
    _, bundle = trained("Sigmoid", images=photo_folder)
    name, ckpt = bundle.manifest.architecture.name, bundle.manifest.checkpoint.path
    capsys.readouterr()
    words = ["--bundle", str(bundle.folder), "--images", str(photo_folder)]
    assert run(["verify", *words, "--arch", name, "--ckpt", ckpt]) == 0
    assert "torch module" in capsys.readouterr().out


def test_export_says_what_it_found(trained, photo_folder, capsys, tmp_path):
    trained("Sigmoid", images=photo_folder)
    words = ["--artifacts", str(tmp_path / "more"), "--images", str(photo_folder)]
    arch, ckpt = f"{tmp_path / 'net.py'}:Sigmoid", str(tmp_path / "Sigmoid.pth")
    asked = ["export", "--arch", arch, "--ckpt", ckpt, "--input-size", "28", *words]
    assert run([*asked, "--threshold", "0.3"]) == 0
    out, err = capsys.readouterr()
    assert "head: multi-label, for the network ends in a sigmoid" in err
    assert "multi-label, decided above 0.3" in out
    assert "left out of the graphs: the same to" in out


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("Sigmoid", {"head": "single-label"}, UsageError, "ends in a sigmoid"),
        ("Softmax", {"head": "multi-label"}, UsageError, "ends in a softmax"),
        ("Plain", {"head": "binary"}, UsageError, "has one logit; the network gives 3"),
        ("One", {"head": "multi-label"}, UsageError, "gives one logit"),
        ("OneSoftmax", {}, ModelError, "is 1 whatever the image shows"),
        ("Plain", {"threshold": 0.3}, UsageError, "has no thresholds"),
        ("Sigmoid", {"threshold": 1.5}, UsageError, "above 0 and below 1; got 1.5"),
        ("Sigmoid", {"threshold": 1}, UsageError, "above 0 and below 1; got 1"),
        ("Sigmoid", {"thresholds": {"class_1": 1}}, UsageError, "of 'class_1' has to be above 0"),
        ("Sigmoid", {"classes": ["a|b", "b", "c"]}, UsageError, r"'a\|b' has a \|"),
        ("Sigmoid", {"thresholds": {"emu": 0.5}}, UsageError, "'emu', which is no class"),
        ("One", {"classes": ["a", "b"], "thresholds": {"a": 0.5}}, UsageError, "second class"),
        ("One", {"classes": ["a", "b", "c"]}, InputError, "2 classes"),
    ],
)
def test_export_refuses_heads_that_do_not_fit(trained, name, options, error, message):
    with pytest.raises(error, match=message):
        trained(name, **options)


@pytest.mark.parametrize("key", ["head", "problem_type"])
def test_export_believes_the_checkpoint(trained, photo_folder, key):
    word = "multi-label" if key == "head" else "multi_label_classification"
    _, bundle = trained(
        "Plain", lambda state: {"state_dict": state, key: word}, images=photo_folder
    )
    assert bundle.manifest.labels.head.name == "multi-label"
    with pytest.raises(ModelError, match="says multi-label, but the network ends in a softmax"):
        trained("Softmax", lambda state: {"state_dict": state, key: word})


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("t.csv", "class,threshold\ncat,0.25\nowl,0.75\n"),
        ("t.json", '{"cat": 0.25, "owl": 0.75}'),
    ],
)
def test_thresholds_decide(trained, photo_folder, tmp_path, file, text):
    (tmp_path / file).write_text(text)
    _, bundle = trained(
        "Sigmoid",
        images=photo_folder,
        classes=["cat", "dog", "owl"],
        threshold=0.4,
        thresholds=tmp_path / file,
    )
    assert bundle.manifest.labels.head.thresholds == (0.25, 0.4, 0.75)
    with deploykit.load(bundle) as model:
        for row in model.predict(photos(photo_folder)):
            above = {"cat": 0.25, "dog": 0.4, "owl": 0.75}
            assert {*row.labels} == {r.label for r in row.top if r.probability > above[r.label]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it has no class"),
        ("class,threshold\n", "it has no class"),
        ("{}", "it has no class"),
        ("cat,0.5\ncat,0.4\n", "line 2: 'cat' has a threshold twice"),
        ('{"cat": 0.5, "cat": 0.4}', "'cat' has a threshold twice"),
        ("cat\n", "line 1, 'cat', has 1 cell"),
        ("class,threshold\ncat: 0.3\n", "line 2, 'cat: 0.3', has 1 cell"),
        ("cat,0.1,2,3\n", "line 1, 'cat,0.1,2,3', has 4 cells"),
        ("cat,0.3o\ndog,0.4\n", "line 1: the threshold of 'cat' is '0.3o', which is no number"),
        ("cat,0.3\ndog,high\n", "line 2: the threshold of 'dog' is 'high'"),
        ("cat,nan\n", "line 1: the threshold of 'cat' has to be above 0 and below 1; got nan"),
        ("cat,0.3\rdog,1\r", "line 2: the threshold of 'dog' .* got 1"),
        ('{"cat": NaN}', "the threshold of 'cat' has to be above 0 and below 1; got nan"),
        (f'{{"cat": {"9" * 5000}}}', "got inf"),
        ('{"cat": true}', "the threshold of 'cat' is true, which is no number"),
        ('{"cat": "x"}', "the threshold of 'cat' is \"x\", which is no number"),
        ('{"cat": {"dog": 0.3}}', "the threshold of 'cat' is an object"),
        ('{"cat": 0.3,}', "it is no JSON"),
        (f'{{"cat": {"[" * 100_000}', "nested too deeply"),
    ],
)
def test_thresholds_that_are_not_clear_are_refused(tmp_path, text, reason):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=rf"t\.csv are not clear: .*{reason}") as error:
        read_thresholds(tmp_path / "t.csv")
    assert "robin,0.4" in error.value.hint


def test_thresholds_in_a_json_list_are_refused(tmp_path):
    (tmp_path / "t.json").write_text("[0.3, 0.4]")
    with pytest.raises(InputError, match="no object with a threshold for each class"):
        read_thresholds(tmp_path / "t.json")


def test_describe_tells_the_threshold_of_each_class_where_it_fits():
    head = head_of("multi-label", (0.25, 0.4, 0.75))
    said = "multi-label, decided above 0.25 for cat, 0.4 for dog, 0.75 for owl"
    assert head.describe(["cat", "dog", "owl"]) == said
    assert head.describe(["cat" * 9, "dog" * 9, "owl" * 9]).endswith("above 0.25 to 0.75")
    assert head_of("multi-label", (0.5, 0.5)).describe(["cat", "dog"]).endswith("above 0.5")


def test_export_of_one_logit_asks_for_two_names(trained):
    for classes in ("a", "a,"):
        with pytest.raises(DeploykitError) as error:
            trained("One", classes=classes)
        assert "takes two names, the negative class first" in error.value.hint


@pytest.mark.parametrize("change", ["threshold", "head"])
def test_a_changed_head_is_found(trained, photo_folder, change):
    _, bundle = trained("Sigmoid", images=photo_folder)
    path = bundle.folder / "bundle.json"
    manifest = json.loads(path.read_text())
    if change == "threshold":
        manifest["labels"]["head"]["thresholds"][1] = 0.1
    else:
        manifest["labels"]["head"] = {"kind": "single-label"}
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"was exported with deploykit\.head"):
        deploykit.load(bundle.folder)
