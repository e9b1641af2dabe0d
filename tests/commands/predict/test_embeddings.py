"""``predict --embeddings``: a row beside each of the table's, whatever happens to the run."""

import json
import pickle
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupted_runs import interrupt_after
from msgspec.structs import replace

import deploykit
from deploykit.bundle.embeddings import EMBEDDINGS_GRAPH
from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import update_manifest
from deploykit.commands.app import run
from deploykit.commands.predict import embeddings
from deploykit.errors import ParityError, UsageError
from deploykit.inference.candidates import open_candidate
from deploykit.parity.similarity import Similarity
from deploykit.parity.tolerance import tolerance_for
from deploykit.proof import auto
from deploykit.proof.auto import open_with_embeddings
from deploykit.system.deps import need

SIZE = 8


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
    assert str(table.schema.field("embedding").type.value_type) == "float"
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
        (("--embeddings", "none/e.npy"), "The embeddings file's folder none does not exist"),
        (("--embeddings", "e.npy", "--embeddings", "f.parquet"), "--embeddings is given 2 times"),
        (("--html", "a.html", "--html", "b.html"), "--html is given 2 times"),
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


@pytest.fixture
def changed_bundle(embedded_bundle, tmp_path):
    """A copy of the bundle whose manifest is changed, as ``(change) -> bundle``."""

    def make(change):
        shutil.copytree(embedded_bundle.folder, tmp_path / "changed")
        return update_manifest(tmp_path / "changed", change) and open_bundle(tmp_path / "changed")

    return make


def with_bf16_on_openvino(manifest):
    """FP32 and BF16 passed on OpenVINO without embeddings, and the graph with them on the CPU."""
    (fp32,) = (each for each in manifest.verdicts if each.graph == manifest.deploy["fp32"])
    photos = replace(fp32.images, kind="photos", count=45)
    measured = replace(fp32.measurement, images=45)
    there = replace(fp32, runtime="openvino", images=photos, measurement=measured, among=45)
    for verdict in there, replace(there, precision="bf16", tolerance=tolerance_for("bf16")):
        manifest = manifest.with_verdict(verdict)
    return manifest


@pytest.mark.parametrize("way", ["predict", "embed", "copy"])
def test_auto_embeds_where_that_is_proven(changed_bundle, photos, capsys, tmp_path, way):
    """Of what is proven on OpenVINO nothing gives embeddings: their graph is on ONNX Runtime."""
    pytest.importorskip("openvino")
    bundle = changed_bundle(with_bf16_on_openvino)
    if way == "predict":
        output = ["--output", str(tmp_path / "a.csv"), "--embeddings", str(tmp_path / "e.npy")]
        assert run(["predict", str(photos), "--bundle", str(bundle.folder), *output, "--json"]) == 0
        told = capsys.readouterr().err
        assert np.load(tmp_path / "e.npy").shape == (45, SIZE)
    else:
        notes = []
        with deploykit.load(bundle, progress=notes.append) as model:
            assert model.spec.runtime == "openvino"
            other = pickle.loads(pickle.dumps(model)) if way == "copy" else model
            with other:
                other.embed([photos / "red" / "00.png"])
                assert other._embedding.spec.runtime == "onnxruntime-cpu"
        told = "" if way == "copy" else "\n".join(str(note) for note in notes)
    if way != "copy":
        assert "embeddings are computed in FP32" in told
        assert f"taking {EMBEDDINGS_GRAPH} on onnxruntime-cpu" in told


def test_embeddings_open_no_other_session(changed_bundle, monkeypatch):
    """What would run without embeddings is not opened only to tell what it is."""
    pytest.importorskip("openvino")
    bundle, opened = changed_bundle(with_bf16_on_openvino), []

    def counted(bundle, candidate, **options):
        opened.append(candidate.file)
        return open_candidate(bundle, candidate, **options)

    monkeypatch.setattr(auto, "open_candidate", counted)
    with open_with_embeddings(bundle) as session:
        assert opened == [session.spec.graph] == [EMBEDDINGS_GRAPH]


def test_precision_below_fp32_has_no_embeddings(embedded_bundle):
    with pytest.raises(UsageError, match="FP32"):
        open_with_embeddings(embedded_bundle, precision="int8")


def test_auto_refuses_embeddings_that_are_proven_nowhere(changed_bundle, photos, capsys, tmp_path):
    bundle = changed_bundle(
        lambda manifest: replace(
            manifest, verdicts=tuple(v for v in manifest.verdicts if v.graph != EMBEDDINGS_GRAPH)
        )
    )
    output = ["--output", str(tmp_path / "a.csv"), "--embeddings", str(tmp_path / "e.npy")]
    assert run(["predict", str(photos), "--bundle", str(bundle.folder), *output]) == 3
    err = capsys.readouterr().err
    assert "The graph with embeddings of bundle changed is not proven here." in err
    assert "verify --bundle" in err
    assert not (tmp_path / "e.npy").exists()
    named = ["--runtime", "onnxruntime-cpu"]
    assert run(["predict", str(photos), "--bundle", str(bundle.folder), *output, *named]) == 0
    assert f"{EMBEDDINGS_GRAPH} on onnxruntime-cpu" in capsys.readouterr().err


def similar(manifest, **fields):
    """A manifest whose only similarity has other fields."""
    (kept,) = manifest.embeddings.similarities
    found = replace(kept, **fields)
    return replace(manifest, embeddings=replace(manifest.embeddings, similarities=(found,)))


FAILED = Similarity(images=45, smallest=0.5, path="red/\n00.png")


@pytest.mark.parametrize("runtime", ["auto", "onnxruntime-cpu"])
@pytest.mark.parametrize("kind", ["module", "graph"])
def test_embeddings_that_failed_are_refused(
    changed_bundle, photos, capsys, tmp_path, runtime, kind
):
    bundle = changed_bundle(lambda m: similar(m, similarity=FAILED, reference_kind=kind))
    words = ["predict", str(photos), "--bundle", str(bundle.folder), "--runtime", runtime]
    words += ["--output", str(tmp_path / "a.csv"), "--embeddings", str(tmp_path / "e.npy")]
    assert run(words) == 3
    err = capsys.readouterr().err
    whose = "torch's" if kind == "module" else "model.onnx's"
    assert f"the cosine to {whose} embeddings is 0.50000000 for red/\\n00.png; at" in err
    assert "export the bundle again" in err
    # The module of somebody's own code is compared with only where that is named.
    assert ("--arch" in err) is (kind == "module")
    assert not (tmp_path / "e.npy").exists()
    with deploykit.load(bundle, runtime=runtime) as model:
        model(photos / "red" / "00.png")  # the other graph still answers
        with pytest.raises(ParityError, match="are not the trained network's: the cosine"):
            model.embed([photos / "red" / "00.png"])


@pytest.mark.parametrize(
    "stale",
    [{"graph_sha256": "0" * 64}, {"versions": {"onnxruntime": "1.0"}}, {"device": "another CPU"}],
)
@pytest.mark.parametrize("smallest", [0.5, 1.0])
def test_similarity_of_something_else_counts_for_nothing(
    changed_bundle, photos, capsys, tmp_path, stale, smallest
):
    found = Similarity(images=45, smallest=smallest, path="red/00.png")
    bundle = changed_bundle(lambda manifest: similar(manifest, similarity=found, **stale))
    words = ["predict", str(photos), "--bundle", str(bundle.folder)]
    words += ["--output", str(tmp_path / "a.csv"), "--embeddings", str(tmp_path / "e.npy")]
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["embedding"]["similarity"] is None
    assert run(["inspect", str(bundle.folder)]) == 0
    told = capsys.readouterr().out
    assert ("cosine to torch's" in told) is ("graph_sha256" not in stale)
