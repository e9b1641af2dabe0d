"""The picture of a training run."""

from pathlib import Path

import pytest
from PIL import Image
from training_runs import epoch

from deploykit.commands.train.curves import draw_curves, write_curves
from deploykit.commands.train.state import Epoch
from deploykit.specs.heads import MultiLabel, SingleLabel


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
    accuracy, loss = draw_curves(run_of(0.5, 0.75, 0.25), SingleLabel()).axes
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


def test_curves_of_several_labels_show_mean_average_precision():
    history = [
        epoch(
            number,
            test_accuracy=match,
            train_mean_average_precision=precision / 2,
            test_mean_average_precision=precision,
        )
        for number, (match, precision) in enumerate(((0.5, 0.75), (0.25, 1.0)), start=1)
    ]
    precision, match, loss = draw_curves(history, MultiLabel(thresholds=(0.5, 0.5))).axes
    assert lines(precision) == {
        "training": ([1, 2], [37.5, 50.0]),
        "test": ([1, 2], [75.0, 100.0]),
        "best: epoch 2, 100.0%": ([2], [100.0]),
    }
    assert lines(match)["best: epoch 2, 25.0%"] == ([2], [25.0])
    titles = [axes.get_title() for axes in (precision, match, loss)]
    assert titles == ["Mean average precision", "Exact match", "Loss"]
    assert loss.get_ylabel() == "binary cross-entropy"


def test_write_curves_replaces_the_png(tmp_path):
    path = tmp_path / "curves.png"
    write_curves(run_of(0.5, 0.6), path, SingleLabel())
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (1500, 600))
        first = picture.convert("RGB").tobytes()
    write_curves(run_of(0.5, 0.6, 0.9), path, SingleLabel())
    with Image.open(path) as picture:
        assert picture.convert("RGB").tobytes() != first


def test_write_curves_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    write_curves(run_of(0.5), path, SingleLabel())
    before = path.read_bytes()

    def held_open(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", held_open)
    with pytest.raises(PermissionError):
        write_curves(run_of(0.5, 0.6), path, SingleLabel())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
