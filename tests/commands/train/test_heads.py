"""Training of heads with sigmoids: several labels a photo out of a table, and one logit."""

import json
import shlex

import numpy as np
import pytest
import torch
from sklearn import metrics
from torchvision import transforms
from torchvision.datasets.folder import pil_loader
from training_runs import composed_photos, epoch, equal, interrupt_at_epoch, notes, weights

import deploykit
from deploykit.commands.app import run
from deploykit.commands.train.state import best_epoch, read_training
from deploykit.errors import ArchitectureError, ImagesError, InputError, UsageError
from deploykit.images.label_tables import read_label_table
from deploykit.models.user_code import user_callable


@pytest.fixture
def composed(tmp_path):
    """Photos of colours, of which ``labels.csv`` beside the folder says several each."""
    return composed_photos(tmp_path / "composed")


@pytest.fixture
def labels(tmp_path):
    return tmp_path / "labels.csv"


@pytest.fixture
def own_answers(tmp_path):
    """What a network with saved weights answers itself, preprocessed by torchvision."""

    def answers(state, files, network="Tiny"):
        count = state["head.bias"].shape[0]
        module = user_callable(f"{tmp_path / 'networks.py'}:{network}")(num_classes=count).eval()
        module.load_state_dict(state)
        transform = transforms.Compose(
            [
                transforms.Resize((8, 8)),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )
        with torch.no_grad():
            return module(torch.stack([transform(pil_loader(file)) for file in files]))

    return answers


def split_of(photos, fraction):
    """The photos of the split's second part."""
    count = int(len(photos) * fraction)
    parts = torch.utils.data.random_split(
        photos, [len(photos) - count, count], torch.Generator().manual_seed(0)
    )
    return [*parts[1]]


def test_train_multi_label_measures_as_scikit_learn(train, composed, labels, own_answers, tmp_path):
    result = train(folder=composed, labels=labels, epochs=6, test_fraction=0.5)
    assert (result.head, result.classes) == ("multi-label", ("red", "green", "blue"))
    files = split_of(sorted(composed.iterdir()), 0.5)
    rows = read_label_table(labels).rows
    truth = np.array([[name in rows[file.name] for name in result.classes] for file in files])
    logits = own_answers(weights(tmp_path / "run", "training.pt"), files)
    probabilities = logits.double().sigmoid().numpy()
    last = result.history[-1]
    assert last.test_accuracy == metrics.accuracy_score(truth, probabilities > 0.5)
    assert last.test_mean_average_precision == pytest.approx(
        metrics.average_precision_score(truth, probabilities, average="macro"), abs=1e-9
    )
    each = [metrics.log_loss(truth[:, i], probabilities[:, i]) for i in range(3)]
    assert last.test_loss == pytest.approx(np.mean(each), rel=1e-5)
    assert 0.5 < last.train_mean_average_precision <= 1
    assert last.train_loss < result.history[0].train_loss


def test_best_epoch_of_several_labels_has_the_best_mean_average_precision():
    values = ((0.9, 0.5, 0.1), (0.2, 0.8, 0.3), (0.3, 0.8, 0.2))
    history = [
        epoch(
            number,
            test_accuracy=accuracy,
            test_mean_average_precision=precision,
            test_loss=loss,
        )
        for number, (accuracy, precision, loss) in enumerate(values, start=1)
    ]
    assert best_epoch(history).number == 3


def test_export_of_a_multi_label_training_needs_no_head(
    train, composed, labels, own_answers, tmp_path, monkeypatch, capsys, posix_shell
):
    monkeypatch.chdir(tmp_path)
    train(folder=composed, labels=labels, epochs=1)  # writes the code of the network
    words = ["--arch", "networks.py:Tiny", "--input-size", "8", "--epochs", "2", "--overwrite"]
    command = ["train", "composed", "--labels", "labels.csv", *words, "--output", "run"]
    assert run(command) == 0
    captured = capsys.readouterr()
    assert "head: multi-label; in table labels.csv" in captured.err
    assert "Epoch 2/2: train mean average precision " in captured.err
    best, _, _, following, _, then = captured.out.splitlines()
    assert ": test mean average precision " in best
    assert ", exact match " in best
    assert shlex.split(then) == [*("deploykit", "predict", "composed", "--expected", "labels.csv")]
    saved = torch.load(tmp_path / "run/best_model.pth", weights_only=True)
    assert saved.keys() == {"state_dict", "head"}
    assert (tmp_path / "run/classes.txt").read_text() == "red\ngreen\nblue\n"

    assert run([*shlex.split(following)[1:], "--name", "colours"]) == 0
    files = sorted(composed.iterdir())
    with deploykit.load("colours") as model:
        rows, classes = model.predict(files), model.classes
    expected = own_answers(saved["state_dict"], files).sigmoid().numpy()
    for row, answer in zip(rows, expected, strict=True):
        found = {each.label: each.probability for each in row.top}
        assert [found[name] for name in classes] == pytest.approx(answer, abs=1e-6)
        assert {*row.labels} == {name for name in classes if found[name] > 0.5}


@pytest.mark.parametrize("network", ["Tiny", "Sigmoid"])
@pytest.mark.parametrize("table", [False, True])
def test_train_binary_has_one_logit(train, photos, labels, own_answers, tmp_path, network, table):
    files = sorted(photos.rglob("*.png"))
    if table:
        names = {"red": "other", "blue": "blue"}
        lines = [f"{file.relative_to(photos)},{names[file.parent.name]}\n" for file in files]
        labels.write_text("".join(lines))
    result = train(
        network=network, labels=labels if table else None, head="binary", epochs=6, arch_args={}
    )
    classes = ("blue", "other" if table else "red")
    assert (result.head, result.classes) == ("binary", classes)
    assert result.best.test_accuracy == 1
    assert result.best.test_mean_average_precision is None
    saved = torch.load(result.checkpoint, weights_only=True)
    assert saved["head"] == "binary"
    assert saved["state_dict"]["head.bias"].shape == (1,)
    answers = own_answers(saved["state_dict"], files).sigmoid()[:, 0]
    # The blue ones, which come first, are the negatives.
    test = split_of(files, 0.2)
    found = own_answers(saved["state_dict"], test)[:, 0] > 0
    assert found.tolist() == [file.parent.name == "red" for file in test]
    bundle = deploykit.export(
        f"{tmp_path / 'networks.py'}:{network}",
        result.checkpoint,
        input_size=8,
        artifacts=tmp_path / "artifacts",
    )
    assert bundle.manifest.labels.head.name == "binary"
    with deploykit.load(bundle) as model:
        rows = model.predict(files)
    assert [row.probability for row in rows] == pytest.approx(answers.numpy(), abs=1e-6)


@pytest.mark.parametrize(
    ("header", "classes"),
    [("", ("0", "1")), ("path,label\n", ("0", "1")), ("path,red\n", ("not red", "red"))],
)
def test_train_binary_takes_a_column_of_0_and_1(train, photos, labels, tmp_path, header, classes):
    files = sorted(photos.rglob("*.png"))
    rows = (f"{file.relative_to(photos)},{int(file.parent.name == 'red')}\n" for file in files)
    labels.write_text(header + "".join(rows))
    result = train(labels=labels, head="binary", epochs=6)
    assert (result.head, result.classes) == ("binary", classes)
    bundle = deploykit.export(
        f"{tmp_path / 'networks.py'}:Tiny",
        result.checkpoint,
        input_size=8,
        artifacts=tmp_path / "artifacts",
    )
    found = deploykit.predict(photos, bundle=bundle, expected=labels)
    assert {(row.path[:3], row.label, row.expected) for row in found} == {
        ("blu", classes[0], classes[0]),
        ("red", classes[1], classes[1]),
    }


def test_train_by_a_table_of_one_class_each_is_that_of_folders(train, photos, labels, tmp_path):
    files = sorted(photos.rglob("*.png"))
    labels.write_text("".join(f"{f.relative_to(photos)},{f.parent.name}\n" for f in files))
    told = []
    train("folders")
    table = train("table", labels=labels, progress=told.append)
    assert table.head == "single-label"
    assert notes(told)[0] == (
        "head: single-label; in table labels.csv every photo is of exactly one class (--head takes "
        "another)"
    )
    assert equal(weights(tmp_path / "folders"), weights(tmp_path / "table"))
    assert train("sigmoids", labels=labels, head="multi-label").head == "multi-label"
    assert train("folders too", head="multi-label").head == "multi-label"


def test_train_skips_what_the_table_or_the_folder_has_not(train, composed, labels):
    text = labels.read_text()
    labels.write_text(text.replace("03.png,", "gone.png,").replace("07.png,", "also.png,"))
    told = []
    result = train(folder=composed, labels=labels, epochs=1, progress=told.append)
    assert result.train_images + result.test_images == 22
    assert notes(told)[:2] == [
        f"{labels}: 2 of 24 rows match no image, the first is gone.png",
        f"{labels} has no row for 2 of 24 images, the first is 03.png",
    ]


@pytest.mark.parametrize(
    ("table", "options", "error", "said"),
    [
        ("00.png,a|b\n01.png,a\n", {"head": "single-label"}, UsageError, "photo is of several"),
        (
            "00.png,a\n01.png,b\n02.png,\n",
            {"head": "binary"},
            UsageError,
            "photo is of no class",
        ),
        (
            "00.png,a\n01.png,b\n02.png,c\n",
            {"head": "binary"},
            UsageError,
            "got 3 classes",
        ),
        ("path,a\n00.png,1\n01.png,0\n", {"head": "multi-label"}, ImagesError, "1 class: a"),
        ("path,a\n00.png,1\n01.png,1\n", {"head": "binary"}, ImagesError, "1 class: a"),
        ("00.png,\n01.png,\n", {}, ImagesError, "has 0 classes"),
        ("path,a,\n00.png,1,0\n01.png,0,1\n", {}, InputError, "no list of names can hold: ''"),
        ('00.png,"a\nb"\n01.png,c\n', {}, InputError, "no list of names can hold"),
        ("path,a,b,c\n00.png,1,0,0\n01.png,0,1,0\n", {}, ImagesError, "readable photo: c"),
        (
            "photos/00.png,a\nphotos/01.png,b\n",
            {},
            InputError,
            r"the first row is photos/00\.png, the first image 00\.png",
        ),
        (
            "00.png,a|b\n01.png,\n02.png,\n",
            {"test_fraction": 0.4},
            ImagesError,
            "Of 1 photo to test on none",
        ),
        ("00.png,maybe,a\n00.png,b\n", {}, InputError, "00.png twice"),
        ("path,a|b,c\n00.png,1,1\n01.png,0,1\n", {}, UsageError, r"'a\|b' has a \|"),
        ("path,a,b\n00.png,1,\n01.png,0,1\n", {}, InputError, "'' in the column 'b'"),
        ("00.png\n01.png\n", {}, InputError, "only paths"),
        ("", {}, InputError, "no image"),
    ],
)
def test_train_refuses_unsuitable_tables(
    train, composed, labels, tmp_path, table, options, error, said
):
    labels.write_text(table)
    with pytest.raises(error, match=said) as caught:
        train(folder=composed, labels=labels, **options)
    assert caught.value.hint
    assert not (tmp_path / "run").exists()


def test_train_refuses_a_head_that_does_not_fit(train, composed, labels, tmp_path):
    with pytest.raises(ArchitectureError, match="ends in a softmax"):
        train(folder=composed, labels=labels, network="Softmax")
    with pytest.raises(InputError, match="cannot be read"):
        train(folder=composed, labels=tmp_path / "missing.csv")
    with pytest.raises(UsageError):
        deploykit.train(composed, labels=labels, head="multilabel")


def test_train_leaves_a_last_sigmoid_out(train, composed, labels, tmp_path):
    told = []
    train("inside", folder=composed, labels=labels, network="Sigmoid", progress=told.append)
    train("outside", folder=composed, labels=labels)
    assert "the network ends in a sigmoid, which is left out: the loss has its own" in notes(told)
    one, other = (
        torch.load(tmp_path / name / "best_model.pth")["state_dict"]
        for name in ("inside", "outside")
    )
    assert equal(one, other)


def test_resume_of_a_multi_label_training(train, composed, labels, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(
            folder=composed,
            labels=labels,
            epochs=3,
            progress=lambda event: interrupt_at_epoch(event, 2),
        )
    before = read_training(tmp_path / "run").history
    resumed = train(folder=composed, labels=labels, epochs=3, resume=True)
    assert resumed.history[:1] == before
    assert (len(resumed.history), resumed.head) == (3, "multi-label")
    text = labels.read_text()
    first = text.splitlines()[1]
    turned = first[:-5] + first[-5:].translate({ord("0"): "1", ord("1"): "0"})
    swapped = text.replace("red,green", "green,red")
    for content, options, said in (
        (text.replace(first, turned), {}, r"1 photo of other classes: 00\.png \(was "),
        (swapped, {}, "the classes was red, green, blue, and is now green, red, blue"),
        (text.replace("23.png", "24.png"), {}, r"1 photo gone, .*: 23\.png"),
    ):
        labels.write_text(content)
        with pytest.raises(UsageError, match=said):
            train(folder=composed, labels=labels, epochs=3, resume=True, **options)


def test_resume_refuses_another_head(train, photos):
    train(head="binary")
    with pytest.raises(UsageError, match="the head was binary, and is now single-label"):
        train(resume=True)


def test_train_tells_the_head_as_json(train, photos, tmp_path, capsys):
    train(epochs=1)
    arguments = ["--arch", f"{tmp_path / 'networks.py'}:Tiny", "--input-size", "8", "--epochs", "1"]
    output = ["--output", str(tmp_path / "json"), "--json"]
    assert run(["train", str(photos), *arguments, *output, "--head", "binary"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["head"] == "binary"
    assert "test_mean_average_precision" not in result["best"]
    assert run(["train", str(photos), *arguments, *output, "--head", "bynary"]) == 2
    assert "binary" in json.loads(capsys.readouterr().out)["error"]["message"]
