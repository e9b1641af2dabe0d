"""The picture of a training run."""

from pathlib import Path

import pytest
from PIL import Image
from training_runs import epoch

from deploykit.commands.train.curves import draw_curves, write_curves
from deploykit.commands.train.state import Epoch


def run_of(*accuracies: float) -> list[Epoch]:
    return [
        epoch(i, train_accuracy=each / 2, train_loss=2.0 / i, test_accuracy=each, test_loss=3.0 / i)
        for i, each in enumerate(accuracies, start=1)
    ]


def lines(axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
    }


def test_curves_show_training_test_and_the_best_epoch():
    accuracy, loss = draw_curves(run_of(0.5, 0.75, 0.25)).axes
    assert lines(accuracy) == {
        "training": ([1, 2, 3], [25.0, 37.5, 12.5]),
        "test": ([1, 2, 3], [50.0, 75.0, 25.0]),
        "best: epoch 2, 75.0%": ([2], [75.0]),
    }
    assert lines(loss) == {
        "training": ([1, 2, 3], [2.0, 1.0, 2.0 / 3]),
        "test": ([1, 2, 3], [3.0, 1.5, 1.0]),
        "best: epoch 2, 1.500": ([2], [1.5]),
    }
    assert (accuracy.get_title(), loss.get_title()) == ("Accuracy", "Loss")
    assert all(tick == int(tick) for axes in (accuracy, loss) for tick in axes.get_xticks())


def test_write_curves_replaces_the_png(tmp_path):
    path = tmp_path / "curves.png"
    write_curves(run_of(0.5, 0.6), path)
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (1500, 600))
        first = picture.convert("RGB").tobytes()
    write_curves(run_of(0.5, 0.6, 0.9), path)
    with Image.open(path) as picture:
        assert picture.convert("RGB").tobytes() != first


def test_write_curves_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    write_curves(run_of(0.5), path)
    before = path.read_bytes()

    def held_open(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", held_open)
    with pytest.raises(PermissionError):
        write_curves(run_of(0.5, 0.6), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
