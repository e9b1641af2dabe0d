"""What ``predict`` writes where: never over another run's results, and one image's answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deploykit.commands.app import run

TABLE = Path("predictions.csv")
RECORD = Path(".predictions.csv.run")


@pytest.fixture
def predict(capsys, monkeypatch, tmp_path, exported_bundle, photo_folder):
    """Run ``predict`` in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*options, source=photo_folder, bundle=exported_bundle.folder):
        words = ["predict", str(source), "--bundle", str(bundle), *map(str, options)]
        code = run(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def other_bundle(exported_bundle, tmp_path):
    """A bundle with the same classes and another graph."""
    from deploykit.bundle.manifest import record_file, update_manifest

    folder = tmp_path / "other" / "bundle"
    shutil.copytree(exported_bundle.folder, folder)
    graph = folder / "deploy" / "fp32.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x1a\x00")  # an empty field: another hash, no more

    def change(manifest):
        manifest.files["deploy/fp32.onnx"] = record_file(graph)
        return manifest

    update_manifest(folder, change)
    return folder


def test_predict_again_replaces_its_own_outputs(predict, photo_folder, tmp_path):
    photos = shutil.copytree(photo_folder, tmp_path / "photos")
    page = ("--html", "page.html")
    assert predict(*page, source=photos)[0] == 0
    first = TABLE.read_bytes()
    (photos / "red" / "00.png").unlink()
    code, _, err = predict(*page, "--batch-size", "1", source=photos)
    assert code == 0, err
    assert len(TABLE.read_bytes().splitlines()) == len(first.splitlines()) - 1


def test_predict_of_another_bundle_keeps_the_table(predict, other_bundle):
    assert predict()[0] == 0
    before = TABLE.read_bytes(), RECORD.read_bytes()
    options = ("--runtime", "onnxruntime-cpu")
    code, _, err = predict(*options, bundle=other_bundle)
    assert code == 2
    assert "predictions.csv is not from this command: the SHA-256 of deploy/fp32.onnx was" in err
    assert "--overwrite" in err
    assert (TABLE.read_bytes(), RECORD.read_bytes()) == before
    assert not Path("predictions.csv.run").exists()
    assert predict(*options, "--overwrite", bundle=other_bundle)[0] == 0
    assert predict(*options, bundle=other_bundle)[0] == 0
    assert predict()[0] == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda photos: {"source": photos / "red"}, "what is predicted was"),
        (lambda photos: {"options": ("--top-k", "1")}, "--top-k was 3, now 1"),
        (lambda photos: TABLE.write_bytes(TABLE.read_bytes() + b"a note"),
         "is not as that command wrote it"),
        (lambda photos: RECORD.unlink(), "does not tell which run wrote it"),
        (lambda photos: RECORD.write_bytes(b"[" * 100_000), "does not tell which run wrote it"),
        (lambda photos: RECORD.write_bytes(b"{\xff}"), "does not tell which run wrote it"),
        (lambda photos: TABLE.rename("rows.csv") and {"options": ("-q", "--output", "rows.csv")},
         "does not tell which run wrote it"),
        (lambda photos: Path("p.html").touch() or {"options": ("--html", "p.html")},
         "p.html is not from this command"),
    ],
)  # fmt: skip
def test_predict_keeps_what_another_run_wrote(predict, photo_folder, change, said):
    assert predict("--quiet")[0] == 0
    changed = change(photo_folder)
    changed = changed if isinstance(changed, dict) else {}
    options, others = changed.get("options", ()), {"source": changed.get("source", photo_folder)}
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    code, _, err = predict(*options, **others)
    assert (code, said in err) == (2, True), err
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
    assert predict(*options, "--overwrite", **others)[0] == 0


def test_predict_resumed_asks_no_second_time(predict, monkeypatch):
    """The tables are half written when the first run ends: they are this run's own."""
    from deploykit.commands.predict import job

    TABLE.write_text("notes")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(job, "record_run", full)
        code, _, err = predict("--overwrite")
    assert code == 4
    assert "No space left" in err
    assert predict("--resume")[0] == 0
    assert predict()[0] == 0


def test_predict_one_image_prints_its_answer(predict, photo_folder):
    photo = photo_folder / "red" / "00.png"
    code, out, err = predict(source=photo)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "image     00.png"
    assert lines[1].startswith("label     red, probability ")
    assert lines[2].startswith("top 3     red ")
    assert lines[2].count("%") == 3
    assert list(Path().iterdir()) == []
    value = json.loads(predict("--json", source=photo)[1])["result"]
    assert value["answer"]["label"] == "red"
    assert f"probability {100 * value['answer']['probability']:.1f} %" in lines[1]
    assert value["outputs"] == list(Path().iterdir()) == []
    assert json.loads(predict("--json")[1])["result"]["answer"] is None


def test_predict_one_image_keeps_a_folders_table(predict, photo_folder):
    assert predict()[0] == 0
    before = TABLE.read_bytes()
    code, out, _ = predict(source=photo_folder / "blue" / "00.png")
    assert code == 0
    assert "label     blue" in out
    assert TABLE.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "written"),
    [
        (("--output", "a.csv"), ["a.csv"]),
        (("--html", "p.html"), ["p.html", "predictions.csv"]),
        (("--resume",), ["predictions.csv"]),
        (("--output", "-"), []),
    ],
)
def test_predict_one_image_writes_what_is_named(predict, photo_folder, options, written):
    code, out, err = predict(*options, source=photo_folder / "red" / "00.png")
    assert code == 0, err
    assert sorted(path.name for path in Path().iterdir() if path.suffix != ".run") == written
    assert "label     red" in (err if "-" in options else out)


def test_predict_one_unreadable_image_says_why(predict):
    Path("a.jpg").write_text("hi")
    code, _, err = predict(source="a.jpg")
    assert code == 4
    assert 'it begins with "hi"' in err
    assert [path.name for path in Path().iterdir()] == ["a.jpg"]


@pytest.mark.parametrize("number", ["abc", "0", "1.5", "-3", "", "9" * 5000])
@pytest.mark.parametrize("option", ["--top-k", "--batch-size", "--threads"])
def test_predict_refuses_what_is_no_number(predict, option, number):
    code, _, err = predict(f"{option}={number}")
    assert code == 2
    assert f"{number!r} is not a whole number of at least 1." in err


def test_predict_advises_commands_on_the_same_bundle(predict, other_bundle):
    given = f"--bundle {other_bundle}"
    code, _, err = predict(
        "--runtime", "onnxruntime-cpu", "--precision", "int8", bundle=other_bundle
    )
    assert code == 4
    assert f"deploykit quantize {given} --images DIR" in err
    code, out, err = predict("--runtime", "onnxruntime-cpu", bundle=other_bundle)
    assert code == 0, err
    for said in (out, err):  # the summary, and the note before the run
        assert said.count("deploykit verify") == said.count(f"deploykit verify {given} ") == 1
