"""``predict`` for models that give several labels, or one of two by a threshold."""

import csv
import json
import tempfile

import msgspec
import numpy as np
import pytest
import torch
from interrupted_runs import interrupt_after
from PIL import Image

import deploykit
from deploykit.commands.app import run
from deploykit.commands.predict.tally import tally_of
from deploykit.errors import InputError, UsageError
from deploykit.models.user_code import user_callable

NETWORKS = """
import torch
from torch import nn


class Several(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.mix = nn.Conv2d(3, num_classes, 1)

    def forward(self, x):
        return self.mix(x).mean((2, 3)).sigmoid()


class Two(Several):
    def __init__(self, num_classes=1):
        super().__init__(1)
"""
NAMES = ("sky", "leaf", "=rose")


def exported(folder, network, classes, photos, **options):
    file = folder / "networks.py"
    file.write_text(NETWORKS)
    torch.manual_seed(1)
    module = user_callable(f"{file}:{network}")()
    with torch.no_grad():
        module.mix.weight *= 3
    torch.save(module.state_dict(), folder / "net.pth")
    return deploykit.export(
        f"{file}:{network}",
        folder / "net.pth",
        classes=classes,
        input_size=8,
        images=photos,
        artifacts=folder / "artifacts",
        **options,
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 plain colours, twenty in each of two folders, and a file that is no image."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(40):
        path = root / ("one", "two")[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        colour = rng.integers(0, 256, 3, np.uint8)
        Image.fromarray(np.tile(colour, (8, 8, 1))).save(path)
    (root / "two" / "broken.png").touch()
    return root


@pytest.fixture(scope="module")
def several(tmp_path_factory, photos):
    return exported(tmp_path_factory.mktemp("s"), "Several", NAMES, photos, threshold=0.4)


@pytest.fixture(scope="module")
def two(tmp_path_factory, photos):
    return exported(tmp_path_factory.mktemp("t"), "Two", ["no", "yes"], photos, threshold=0.7)


@pytest.fixture
def truth(photos):
    """Random classes of all images but the last five."""
    rng = np.random.default_rng(1)
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    return {name: [label for label in NAMES if rng.random() < 0.4] for name in names[:-5]}


@pytest.fixture
def labels_csv(tmp_path, truth):
    path = tmp_path / "labels.csv"
    lines = [f"{name},{'|'.join(classes)}" for name, classes in truth.items()]
    path.write_text("path,labels\n" + "\n".join([*lines, "gone.png,sky"]))
    return path


@pytest.fixture
def predict(capsys, monkeypatch, tmp_path, photos):
    """Run ``predict`` in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(bundle, *options, source=photos):
        code = run(["predict", str(source), "--bundle", str(bundle.folder), *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def read_csv(path):
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_tables_of_several_labels(predict, several, labels_csv, truth, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    outputs = ("--output", "t.csv", "--output", "t.jsonl", "--output", "t.parquet")
    code, _, err = predict(several, *outputs, "--expected", labels_csv, "--top-k", "all")
    assert code == 0
    assert "1 of 37 rows match no image, the first is gone.png" in err
    assert "has no row for 5 of 41 images" in err
    rows = read_jsonl(tmp_path / "t.jsonl")
    assert [*rows[0]] == ["path", "status", "reason", "labels", "margin", "expected", "top"]
    for row in rows:
        expected = truth.get(row["path"])
        assert row["expected"] == expected
        if row["status"] != "ok":
            assert (row["path"], row["labels"], row["top"]) == ("two/broken.png", None, [])
            continue
        found = {each["label"]: each["probability"] for each in row["top"]}
        assert {*found} == {*NAMES}
        assert row["labels"] == [label for label in found if found[label] > 0.4]
        assert [*found.values()] == sorted(found.values(), reverse=True)
    assert {len(row["labels"] or ()) for row in rows} >= {0, 1, 2}

    cells = read_csv(tmp_path / "t.csv")
    assert [*cells[0]][:6] == ["path", "status", "reason", "labels", "margin", "expected"]
    assert [*cells[0]][6:8] == ["label_1", "probability_1"]
    for cell, row in zip(cells, rows, strict=True):
        for name in ("labels", "expected"):
            joined = "|".join(row[name] or ())
            assert cell[name] == ("'" * joined.startswith("=") + joined)
    assert any(cell["labels"].startswith("'=rose|") for cell in cells)
    table = parquet.read_table(tmp_path / "t.parquet")
    assert str(table.schema.field("labels").type).startswith("list<")
    for cell, row in zip(table.to_pylist(), rows, strict=True):
        assert (cell["labels"], cell["expected"]) == (row["labels"], row["expected"])


def test_metrics_are_those_of_scikit_learn(predict, several, photos, labels_csv, truth):
    metrics = pytest.importorskip("sklearn.metrics")
    code, out, _ = predict(several, "--output", "t.jsonl", "--expected", labels_csv, "--json")
    assert code == 0
    result = json.loads(out)["result"]
    rows = [row for row in deploykit.predict(photos, bundle=several, expected=labels_csv) if row.ok]
    known = [row for row in rows if row.expected_labels is not None]
    assert {row.path for row in known} == {*truth}
    right = np.array([[label in truth[row.path] for label in NAMES] for row in known])
    given = np.array([[label in row.labels for label in NAMES] for row in known])
    scores = np.array(
        [[next(t.probability for t in row.top if t.label == n) for n in NAMES] for row in known]
    )
    assert result["accuracy"] == metrics.accuracy_score(right, given)
    assert result["mean_average_precision"] == pytest.approx(
        metrics.average_precision_score(right, scores, average="macro"), abs=1e-12
    )
    for name, score in (("precision", "precision_score"), ("recall", "recall_score")):
        expected = getattr(metrics, score)(right, given, average=None)
        assert [each[name] for each in result["classes"]] == pytest.approx(expected)
    average = metrics.average_precision_score(right, scores, average=None)
    found = [each["average_precision"] for each in result["classes"]]
    assert found == pytest.approx(average, abs=1e-12)


def test_average_precision_of_more_rows_than_memory_keeps(several, photos, labels_csv, monkeypatch):
    def mean():
        tally = tally_of(several.manifest.labels)
        for row in deploykit.predict(photos, bundle=several, expected=labels_csv):
            tally.add(row)
        return tally.classes.mean_average_precision

    expected = mean()
    monkeypatch.setattr("deploykit.commands.predict.tally._SPOOLED_BYTES", 100)
    monkeypatch.setattr("deploykit.commands.predict.tally._READ_BYTES", 300)
    assert mean() == expected
    full = tempfile.SpooledTemporaryFile

    def refusing(*_):
        file = full(10)
        file.rollover = lambda: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        return file

    monkeypatch.setattr("deploykit.commands.predict.tally.tempfile.SpooledTemporaryFile", refusing)
    with pytest.raises(InputError, match=r"cannot be kept in .*: No space left") as caught:
        mean()
    assert "TMPDIR" in caught.value.hint


def test_average_precision_needs_all_probabilities(predict, several, labels_csv):
    short = ("--expected", labels_csv, "--top-k", "2")
    out = predict(several, *short)[1]
    assert "exact match, " in out
    assert "class | images | recall | precision\n" in out
    assert "Average precision needs each class's probability: add --top-k all." in out
    out = predict(several, "--expected", labels_csv, "--top-k", "all", "--overwrite")[1]
    assert "| average precision" in out
    value = json.loads(predict(several, *short, "--overwrite", "--json")[1])["result"]
    assert value["mean_average_precision"] is None
    assert value["classes"][0]["recall"] is not None


def test_folders_are_no_truth_of_several_labels(tmp_path, photos):
    bundle = exported(tmp_path, "Several", ["one", "two", "three"], photos)
    rows = [*deploykit.predict(photos, bundle=bundle)]
    assert {(row.expected, row.expected_labels) for row in rows} == {(None, None)}


def test_binary_rows_and_metrics(predict, two, photos, tmp_path):
    lines = [f"{path.name},{i % 2}" for i, path in enumerate(sorted(photos.rglob("*.png")))]
    (tmp_path / "yes.csv").write_text("\n".join(["file,yes", *lines]))
    code, out, _ = predict(two, "--expected", "yes.csv", "--output", "t.csv")
    assert code == 0
    cells = [row for row in read_csv(tmp_path / "t.csv") if row["status"] == "ok"]
    assert len(cells) == 40
    for cell in cells:
        probability = float(cell["probability"])
        assert cell["label"] == ("yes" if probability > 0.7 else "no") == cell["label_1"]
        first = probability if cell["label"] == "yes" else 1 - probability
        assert float(cell["probability_1"]) == pytest.approx(first, abs=1e-6)
    assert {cell["expected"] for cell in cells} == {"yes", "no"}
    right = sum(cell["label"] == cell["expected"] for cell in cells)
    assert f"accuracy  {100 * right / 40:.1f} % ({right} of 40 labelled images)" in out
    assert "\nyes   | 20 " in out
    out = predict(two, source=photos / "one" / "0.png")[1]
    row = next(row for row in cells if row["path"] == "one/0.png")
    assert f"label     {row['label']}, probability {100 * float(row['probability_1']):.1f} %" in out


@pytest.mark.parametrize("form", ["absolute", "from here", "bare"])
def test_expected_paths_lead_to_images(several, photos, truth, tmp_path, form, monkeypatch):
    monkeypatch.chdir(photos.parent)
    paths = {name: {"absolute": photos / name, "bare": name.rpartition("/")[2]} for name in truth}
    lines = [
        f"{paths[name].get(form, f'{photos.name}/{name}')},{'|'.join(classes)}"
        for name, classes in truth.items()
    ]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    rows = deploykit.predict(photos, bundle=several, expected=tmp_path / "labels.csv")
    found = {row.path: row.expected_labels for row in rows if row.expected_labels is not None}
    assert found == {name: tuple(classes) for name, classes in truth.items()}


def test_expected_of_a_name_that_occurs_twice_is_for_none(several, photos, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("same.png", f"{folder}.png"):
            (tmp_path / folder / name).write_bytes((photos / "one" / "0.png").read_bytes())
    (tmp_path / "labels.csv").write_text("same.png,sky\na.png,leaf\nb/b.png,sky\nb.png,leaf\n")
    notes = []
    rows = deploykit.predict(
        tmp_path, bundle=several, expected=str(tmp_path / "labels.csv"), progress=notes.append
    )
    assert {row.path: row.expected_labels for row in rows} == {
        "a/a.png": ("leaf",),
        "a/same.png": None,
        "b/b.png": ("sky",),
        "b/same.png": None,
    }
    assert any("2 of 4 rows match no image, the first is same.png" in str(each) for each in notes)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("x/y.png,sky\n", "No row of .* matches an image .* is x/y.png, ", "or to the table's"),
        ("one/0.png,cloud\n", "'cloud', which is no class", "a row an image"),
        ("", "no image", "a row an image"),
    ],
)
def test_expected_that_helps_nobody_is_refused(several, photos, tmp_path, text, message, hint):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        [*deploykit.predict(photos, bundle=several, expected=tmp_path / "labels.csv")]
    assert hint in caught.value.hint


def test_expected_of_one_class_takes_one(two, several, exported_bundle, photos, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("0.png,yes|no\n")
    with pytest.raises(InputError, match=r"0\.png is of 2 classes, and the model gives each image"):
        [*deploykit.predict(photos, bundle=two, expected=table)]
    table.write_text("0.png,\n")
    with pytest.raises(InputError, match=r"0\.png is of no classes"):
        [*deploykit.predict(photos, bundle=two, expected=table)]
    table.write_text("0.png,red\n")
    rows = {
        row.path: row for row in deploykit.predict(photos, bundle=exported_bundle, expected=table)
    }
    assert rows["one/0.png"].expected == "red"
    assert {row.expected for row in rows.values()} == {"red", None}


def test_expected_is_never_written_over(predict, several, labels_csv):
    before = labels_csv.read_bytes()
    code, _, err = predict(several, "--expected", labels_csv, "--output", labels_csv, "--overwrite")
    assert (code, labels_csv.read_bytes()) == (2, before)
    assert "are the same file" in err


def test_resume_keeps_rows_of_several_labels(predict, several, labels_csv, monkeypatch, tmp_path):
    options = ("--output", "t.jsonl", "--expected", labels_csv)
    assert predict(several, *options)[0] == 0
    whole = (tmp_path / "t.jsonl").read_bytes()
    interrupt_after(monkeypatch, 30)
    assert predict(several, *options)[0] == 130
    text = labels_csv.read_text()
    labels_csv.write_text(text.replace("gone.png,sky", "gone.png,leaf"))
    code, _, err = predict(several, *options, "--resume")
    assert code == 2
    assert "the SHA-256 of --expected was " in err
    labels_csv.write_text(text)
    code, out, _ = predict(several, *options, "--resume", "--json")
    assert code == 0
    assert (tmp_path / "t.jsonl").read_bytes() == whole
    result = json.loads(out)["result"]
    assert (result["rows"], result["labelled"]) == (41, 36)


def test_resume_with_another_threshold_says_so(predict, several, photos, tmp_path, monkeypatch):
    other = exported(tmp_path, "Several", NAMES, photos, thresholds={"leaf": 0.3}, threshold=0.4)
    interrupt_after(monkeypatch, 3)
    assert predict(several)[0] == 130
    code, _, err = predict(other, "--resume")
    assert code == 2
    assert "the threshold of 'leaf' was 0.4, now 0.3" in err


def test_model_ranks_all_classes(several, photos):
    with deploykit.load(several, top_k="all") as model:
        row = model(photos / "one" / "0.png")
        assert len(row.top) == 3
        given = [f"{each.label} {100 * each.probability:.1f} %" for each in row.top]
        count = len(row.labels)
        assert (
            f": {', '.join(given[:count]) or 'none'}; not {', '.join(given[count:])}; margin"
            in (repr(row))
        )
    with pytest.raises(UsageError, match="top_k must be a whole number, 'all' or None, not 'most'"):
        deploykit.load(several, top_k="most")


def test_record_of_one_label_has_no_head(predict, exported_bundle, several, tmp_path):
    for bundle, table in ((exported_bundle, "one.csv"), (several, "several.csv")):
        assert predict(bundle, "--output", table)[0] == 0
        record = msgspec.json.decode((tmp_path / f".{table}.run").read_bytes())
        assert ("head" in record["fingerprint"]) == (bundle is several)
        assert "expected" not in record["fingerprint"]
