import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploykit.commands.predict.run import (
    PredictionRun,
    PredictRequest,
    rows_of,
)
from deploykit.errors import ImagesError, InputError, UsageError
from deploykit.images.scan import ImageFile
from deploykit.inference.pipeline import AnsweredBatch
from deploykit.specs.model import Labels
from deploykit.system.progress import Note, Step

LABELS = Labels(names=("bird", "dog", "food"), source="test")


@pytest.fixture
def broken_folder(tmp_path, photo_folder):
    """Three good photos with bad files between them, so that a shift by one would show."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i, colour in enumerate(("blue", "green", "red")):
        shutil.copy(photo_folder / colour / "00.png", folder / f"{2 * i}_{colour}.png")
    (folder / "1_empty.png").touch()
    (folder / "3_text.jpg").write_text("not an image")
    whole = (photo_folder / "red" / "01.png").read_bytes()
    (folder / "5_half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no row")
    return folder


def predicted(bundle, source, **options):
    with PredictionRun(bundle, PredictRequest(source, **options)) as run:
        rows = list(run)
    return rows, run.tally


def test_predict_labelled_images_have_accuracy(exported_bundle, photo_folder):
    rows, tally = predicted(exported_bundle, photo_folder)
    assert len(rows) == tally.rows == tally.ok == tally.labelled == 45
    assert [row.path for row in rows] == sorted(
        path.relative_to(photo_folder).as_posix() for path in photo_folder.rglob("*.png")
    )
    assert tally.accuracy == sum(row.label == row.expected for row in rows) / 45
    assert tally.accuracy >= 0.9
    assert {row.expected for row in rows} == {"blue", "green", "red"}


def test_predict_agrees_with_torch_module(exported_bundle, network_file, checkpoint, photo_folder):
    import torch
    from torchvision import transforms

    from deploykit.models.registry import resolve_architecture

    module = resolve_architecture(f"{network_file}:Net", allow_user_code=True).build(3).eval()
    module.load_state_dict(torch.load(checkpoint, weights_only=True))
    transform = transforms.Compose(
        [
            transforms.Resize([16, 16]),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    for row in predicted(exported_bundle, photo_folder)[0]:
        with Image.open(photo_folder / row.path) as image, torch.inference_mode():
            logits = module(transform(image.convert("RGB"))[None])[0]
        probabilities = logits.softmax(0)
        best = logits.sort(descending=True)
        assert row.label == exported_bundle.manifest.labels.names[int(best.indices[0])]
        assert row.probability == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert row.margin == pytest.approx(float(best.values[0] - best.values[1]), abs=1e-4)


def test_predict_unreadable_file_has_its_row(exported_bundle, broken_folder):
    rows, tally = predicted(exported_bundle, broken_folder, batch_size=2)
    found = [(row.path, row.status, row.label) for row in rows]
    assert found[0] == ("0_blue.png", "ok", "blue")
    assert found[2] == ("2_green.png", "ok", "green")
    assert found[4] == ("4_red.png", "ok", "red")
    for i in (1, 3, 5):
        assert rows[i].status != "ok"
        assert rows[i].reason
        assert (rows[i].label, rows[i].probability, rows[i].top) == (None, None, ())
    assert (tally.rows, tally.ok, tally.failures.total(), tally.skipped) == (6, 3, 3, 1)
    assert tally.accuracy is None


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_predict_answers_at_any_batch_size(exported_bundle, photo_folder, batch_size):
    expected, _ = predicted(exported_bundle, photo_folder)
    found, _ = predicted(exported_bundle, photo_folder, batch_size=batch_size)
    assert [row.label for row in found] == [row.label for row in expected]
    assert [row.margin for row in found] == pytest.approx(
        [row.margin for row in expected], abs=1e-5
    )


def test_predict_single_file(exported_bundle, photo_folder):
    (row,), tally = predicted(exported_bundle, photo_folder / "red" / "03.png")
    assert (row.path, row.label, tally.rows) == ("03.png", "red", 1)


def test_predict_top_k_is_ranked(exported_bundle, photo_folder):
    rows, _ = predicted(exported_bundle, photo_folder, top_k=2)
    for row in rows:
        assert len(row.top) == 2
        assert row.top[0].label == row.label
        assert row.top[0].probability == row.probability >= row.top[1].probability
    rows, _ = predicted(exported_bundle, photo_folder)
    assert sum(ranked.probability for ranked in rows[0].top) == pytest.approx(1)


@pytest.mark.parametrize("top_k", [0, 4])
def test_predict_refuses_top_k_beyond_classes(exported_bundle, photo_folder, top_k):
    with pytest.raises(UsageError, match="1 to 3"):
        predicted(exported_bundle, photo_folder, top_k=top_k)


def test_predict_of_unreadable_images_has_rows(exported_bundle, tmp_path):
    (tmp_path / "a.png").touch()
    with PredictionRun(exported_bundle, PredictRequest(tmp_path)) as run:
        assert [row.status for row in run] == ["truncated"]


def test_predict_without_image_is_refused(exported_bundle, tmp_path):
    with pytest.raises(ImagesError):
        predicted(exported_bundle, tmp_path)


def rows_from(logits, expected):
    """The rows of images with these logits, whose folders name these classes."""
    files = tuple(ImageFile(Path(), "a", each) for each in expected)
    batch = AnsweredBatch(files, (None,) * len(files), np.array(logits, np.float32))
    return list(rows_of(batch, LABELS, 3))


def test_rows_of_non_finite_logits():
    rows = rows_from([[1, 2, 3], [np.nan, 1, 2], [3, np.inf, 1]], [None, "dog", None])
    assert [row.status for row in rows] == ["ok", "non-finite", "non-finite"]
    assert rows[0].label == "food"
    assert (rows[1].label, rows[1].expected) == (None, "dog")


def test_rows_of_equal_logits():
    (row,) = rows_from([[1, 2, 2]], [None])
    assert [ranked.label for ranked in row.top] == ["dog", "food", "bird"]
    assert row.margin == 0


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_predict_dangling_link_has_its_row(exported_bundle, tmp_path, photo_folder):
    shutil.copy(photo_folder / "red" / "00.png", tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    rows, _ = predicted(exported_bundle, tmp_path)
    assert [row.status for row in rows] == ["ok", "vanished"]


def test_predict_engine_gets_its_largest_batch(engine_bundle, engines, photo_folder):
    rows, _ = predicted(engine_bundle, photo_folder, runtime="tensorrt_rtx", batch_size=64)
    expected, _ = predicted(engine_bundle, photo_folder, runtime="onnxruntime-cpu")
    assert rows == expected
    assert engines.sessions[0].batch_sizes[-2:] == [32, 13]
    assert engines.sessions[0].closed


@pytest.mark.parametrize("option", ["batch_size", "threads"])
@pytest.mark.parametrize("number", [0, -1])
def test_predict_request_refuses_numbers_below_one(exported_bundle, photo_folder, option, number):
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} must be at least 1"):
        PredictRequest(photo_folder, **{option: number})


def test_predict_batch_size_beyond_memory(exported_bundle, photo_folder):
    rows, _ = predicted(exported_bundle, photo_folder, batch_size=10**15)
    assert len(rows) == 45


def test_predict_ends_if_its_drive_vanishes(exported_bundle, photo_folder, tmp_path):
    drive = tmp_path / "drive"
    shutil.copytree(photo_folder, drive)
    request = PredictRequest(drive, batch_size=1, threads=1)
    with PredictionRun(exported_bundle, request) as run:
        rows = iter(run)
        read = [next(rows) for _ in range(5)]
        shutil.rmtree(drive)
        with pytest.raises(InputError, match="drive went away while its images were") as caught:
            read.extend(rows)
    # No ImagesError, which tells of a run that has a row for each file.
    assert not isinstance(caught.value, ImagesError)
    assert 5 <= run.tally.rows < 45
    assert run.tally.ok == run.tally.rows


def test_predict_vanished_files_have_rows(exported_bundle, photo_folder, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    statuses = []
    request = PredictRequest(folder, batch_size=1, threads=1)
    with PredictionRun(exported_bundle, request) as run:
        for row in run:
            statuses.append(row.status)
            if len(statuses) == 5:
                shutil.rmtree(folder / "red")
    assert statuses == ["ok"] * 30 + ["vanished"] * 15


def test_predict_stage_seconds_within_the_run(exported_bundle, photo_folder):
    request = PredictRequest(photo_folder, runtime="onnxruntime-cpu", threads=2)
    with PredictionRun(exported_bundle, request) as run:
        list(run)
    assert 0 < sum(run.clock.seconds.values()) <= run.tally.seconds


def test_predict_progress_counts_every_file(exported_bundle, broken_folder):
    events = []
    request = PredictRequest(broken_folder, batch_size=4)
    with PredictionRun(exported_bundle, request, events.append) as run:
        files = [*run.source]
        assert len([*run.answers(files[1:], 5, done=1)]) == 5
    steps = [event for event in events if not isinstance(event, Note)]
    assert [step.stage for step in steps[:3]] == ["scanning", "opening", "predicting"]
    assert steps[2] == Step("predicting", 1, 6, unit="images")
    assert {(step.stage, step.total, step.unit) for step in steps[2:]} == {
        ("predicting", 6, "images")
    }
    counts = [step.done for step in steps[2:]]
    assert counts == sorted(counts)
    assert counts[-1] == 6


LOADED = """
import sys
from deploykit.commands.app import run

assert run(sys.argv[1:]) == 0
print(*[name for name in sys.modules if name.startswith("deploykit")], file=sys.stderr)
"""


def test_predict_loads_no_unneeded_modules(exported_bundle, photo_folder, tmp_path):
    words = ["predict", photo_folder / "red" / "00.png", "--bundle", exported_bundle.folder]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words, "--output", tmp_path / "rows.csv"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "deploykit.commands.predict.tables" in loaded
    unneeded = ("deploykit.engine", "deploykit.inference.engines", "deploykit.html.document")
    assert not [name for name in loaded if name.startswith(unneeded)]
    unneeded = (
        "deploykit.proof.verdict",
        "deploykit.proof.images",
        "deploykit.commands.predict.page",
    )
    assert not loaded & {*unneeded}
