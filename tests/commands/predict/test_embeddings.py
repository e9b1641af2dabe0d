"""``predict --embeddings``: a row beside each of the table's, whatever happens to the run."""

import json
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupted_runs import interrupt_after

import deploykit
from deploykit.bundle.embeddings import EMBEDDINGS_GRAPH
from deploykit.bundle.folder import open_bundle
from deploykit.commands.app import run
from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.commands.predict import embeddings
from deploykit.errors import UsageError
from deploykit.specs.preprocessing_options import PreprocessingOptions
from deploykit.system.deps import need

SIZE = 8


@pytest.fixture(scope="module")
def embedded_bundle(tmp_path_factory, network_file, checkpoint, photo_folder):
    request = ExportRequest(
        arch=f"{network_file}:Net",
        checkpoint=checkpoint,
        classes=str(photo_folder),
        preprocessing=PreprocessingOptions(input_size=(16, 16)),
        name="colours",
        artifacts=tmp_path_factory.mktemp("artifacts"),
        embeddings=True,
    )
    return export_bundle(request).bundle


@pytest.fixture
def photos(tmp_path, photo_folder):
    """The photos, one of them broken."""
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    (folder / "green" / "07.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def predict(tmp_path, monkeypatch, embedded_bundle, photos, capsys):
    """Predict the photos in an empty folder; gives exit code, stdout and stderr."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def call(*options, runtime="onnxruntime-cpu", source=photos):
        words = ["predict", str(source), "--bundle", str(embedded_bundle.folder)]
        code = run([*words, "--runtime", runtime, *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def rows(name="predictions.csv"):
    lines = Path(name).read_text("utf-8-sig").splitlines()[1:]
    return [line.split(",")[:2] for line in lines]


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "openvino"])
def test_npy_has_the_rows_of_the_table(predict, photos, embedded_bundle, runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    code, out, _ = predict("--embeddings", "e.npy", runtime=runtime)
    assert code == 0
    assert "8 values an image, the input of head" in out
    found = np.load("e.npy")
    assert (found.shape, found.dtype) == ((45, SIZE), np.float32)
    ok = [status == "ok" for _, status in rows()]
    assert ok.count(False) == 1
    assert np.isfinite(found).all(axis=1).tolist() == ok
    with deploykit.load(embedded_bundle, runtime=runtime) as model:
        wanted = model.embed([photos / path for path, status in rows() if status == "ok"])
        # (N, E) times the last layer's weights are the logits
        assert found[ok] == pytest.approx(wanted, abs=1e-5)
    assert sorted(path.name for path in Path().iterdir()) == [
        *(".predictions.csv.run", "e.npy", "predictions.csv")
    ]


def test_embeddings_give_the_logits_through_the_last_layer(predict, checkpoint):
    assert predict("--embeddings", "e.npy")[0] == 0
    state = torch.load(checkpoint)
    logits = np.load("e.npy") @ state["head.weight"].numpy().T + state["head.bias"].numpy()
    labels = [line.split(",")[3] for line in Path("predictions.csv").read_text().splitlines()[1:]]
    names = ("blue", "green", "red")
    for row, label in zip(logits, labels, strict=True):
        assert label == (names[int(row.argmax())] if np.isfinite(row).all() else "")


def test_parquet_has_paths_and_null_for_failed_rows(predict, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(embeddings, "_GROUP_BYTES", 4 * SIZE * 7)  # seven rows a group
    assert predict("--embeddings", "e.npy", "--output", "a.csv")[0] == 0
    assert predict("--embeddings", "e.parquet", "--output", "b.csv")[0] == 0
    table, found = parquet.read_table("e.parquet"), np.load("e.npy")
    assert table["path"].to_pylist() == [path for path, _ in rows("b.csv")]
    assert str(table.schema.field("embedding").type).endswith(f"[{SIZE}]")
    for embedding, row in zip(table["embedding"].to_pylist(), found, strict=True):
        assert embedding is None if np.isnan(row).any() else np.array_equal(embedding, row)


def test_parquet_is_imported_once_by_the_main_thread(predict, monkeypatch):
    pytest.importorskip("pyarrow")
    importing = []

    def noted(name):
        importing.append((name, threading.current_thread() is threading.main_thread()))
        return need(name)

    monkeypatch.setattr("deploykit.commands.predict.outputs.need", noted)
    assert predict("--embeddings", "e.parquet")[0] == 0
    assert importing == [("pyarrow.parquet", True)]


@pytest.mark.parametrize("option", ["--embeddings", "--output"])
@pytest.mark.parametrize("code", [None, "raise ImportError('libarrow.so.2600 is not there')"])
def test_pyarrow_that_is_missing_or_broken_leaves_nothing(predict, monkeypatch, option, code):
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    if code is None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    else:
        Path("fake").mkdir()
        Path("fake/pyarrow.py").write_text(code)
        monkeypatch.syspath_prepend("fake")
    rc, _, err = predict(option, "e.parquet")
    assert rc == 5
    assert ("is not installed" if code is None else "libarrow.so.2600 is not there") in err
    assert 'pip install "deploykit[parquet]"' in err
    assert [path.name for path in Path().iterdir() if path.name != "fake"] == []


def test_table_is_the_same_without_embeddings(predict):
    assert predict("--output", "a.csv")[0] == 0
    assert predict("--output", "b.csv", "--embeddings", "e.npy")[0] == 0
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()


@pytest.mark.parametrize("ending", ["npy", "parquet"])
@pytest.mark.parametrize("count", [1, 30])
def test_resumed_run_ends_with_the_same_embeddings(predict, monkeypatch, ending, count):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    options = "--embeddings", f"e.{ending}", "--batch-size", "1"
    assert predict(*options)[0] == 0
    whole = Path(f"e.{ending}").read_bytes(), Path("predictions.csv").read_bytes()
    for path in [*Path().iterdir()]:
        path.unlink()
    interrupt_after(monkeypatch, count)
    assert predict(*options)[0] == 130
    assert not Path(f"e.{ending}").exists()
    assert predict(*options, "--resume")[0] == 0
    assert whole == (Path(f"e.{ending}").read_bytes(), Path("predictions.csv").read_bytes())
    assert not Path("predictions.csv.run").exists()


def test_resume_without_embeddings_is_refused(predict, monkeypatch):
    interrupt_after(monkeypatch, 10)
    assert predict("--embeddings", "e.npy")[0] == 130
    code, _, err = predict("--resume")
    assert code == 2
    assert "--embeddings FILE" in err


def test_embeddings_of_another_program_are_kept(predict):
    Path("e.npy").write_bytes(b"mine")
    code, _, err = predict("--embeddings", "e.npy")
    assert (code, Path("e.npy").read_bytes()) == (2, b"mine")
    assert "--overwrite" in err
    assert predict("--embeddings", "e.npy", "--overwrite")[0] == 0
    assert np.load("e.npy").shape == (45, SIZE)
    assert predict("--embeddings", "e.npy")[0] == 0  # its own it replaces


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--embeddings", "e.csv"), "does not say its format"),
        (("--embeddings", "e.npy", "--output", "-"), "--output - is none"),
        (("--embeddings", "e.npy", "--precision", "int8"), "computed in FP32"),
        (("--embeddings", "e.npy", "--runtime", "tensorrt"), "gives no embeddings"),
        (("--embeddings", "e.parquet", "--output", "e.parquet"), "same file"),
        (("--embeddings", "none/e.npy"), "does not exist"),
    ],
)
def test_embeddings_that_cannot_be_are_refused(predict, options, words):
    code, _, err = predict(*options)
    assert code == 2
    assert words in err
    assert not [*Path().iterdir()]


def test_embeddings_of_a_bundle_without_tells_the_export(photos, tmp_path, capsys, exported_bundle):
    table = tmp_path / "rows.csv"
    words = ["predict", str(photos), "--bundle", str(exported_bundle.folder)]
    code = run([*words, "--output", str(table), "--embeddings", str(tmp_path / "e.npy")])
    assert code == 4
    err = capsys.readouterr().err
    assert "--embeddings --overwrite" in err
    assert not table.exists()


def test_embeddings_of_one_image(predict, photos):
    code, out, _ = predict("--embeddings", "e.npy", "--json", source=photos / "red" / "00.png")
    assert code == 0
    value = json.loads(out)["result"]
    assert (value["embedding"]["size"], value["embedding"]["module"]) == (SIZE, "head")
    assert value["embedding"]["similarity"]["smallest"] > 0.99999
    assert np.load("e.npy").shape == (1, SIZE)


def test_embeddings_of_a_full_disk(predict, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array_header_1_0", full)
        code, _, err = predict("--embeddings", "e.npy")
    assert code == 4
    assert "Writing e.npy failed: No space left on device" in err
    assert predict("--embeddings", "e.npy", "--resume")[0] == 0
    assert np.load("e.npy").shape == (45, SIZE)


def test_auto_takes_the_fp32_graph_beside_another_precision(
    embedded_bundle, tmp_path, photos, capsys, monkeypatch
):
    """Where INT8 would run, the note says what runs instead, and on what."""
    folder = tmp_path / "int8"
    shutil.copytree(embedded_bundle.folder, folder)
    bundle = open_bundle(folder)
    from deploykit.proof import embeddings as proof

    opened = proof.open_best

    def open_best(*args, **options):
        session = opened(*args, **options)
        if "runtime" not in options:  # auto
            session._spec = replaced(session.spec)
        return session

    def replaced(spec):
        from msgspec.structs import replace

        return replace(spec, graph="deploy/int8.onnx", precision="int8")

    monkeypatch.setattr(proof, "open_best", open_best)
    monkeypatch.chdir(tmp_path)
    assert run(["predict", str(photos), "--bundle", str(folder), "--embeddings", "e.npy"]) == 0
    err = capsys.readouterr().err
    assert (
        f"deploy/int8.onnx on onnxruntime-cpu gives no embeddings: taking {EMBEDDINGS_GRAPH}" in err
    )
    assert np.load("e.npy").shape == (45, SIZE)
    with pytest.raises(UsageError, match="FP32"):
        proof.open_with_embeddings(bundle, precision="int8")
