"""``deploykit train``: what the command adds to the job, the picture of the curves."""

import sys

import pytest

from deploykit.commands.app import run


@pytest.fixture
def arguments(photo_folder, tmp_path):
    """A training of a second, into ``run``."""
    return [
        *("train", str(photo_folder), "--arch", "densenet", "--input-size", "32"),
        *("--arch-arg", "block_config=1,1", "--arch-arg", "growth_rate=4"),
        *("--epochs", "2", "--batch-size", "8", "--output", str(tmp_path / "run")),
    ]


def test_a_missing_matplotlib_is_told_before_it_trains(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(arguments) == 5
    assert 'pip install "deploykit[train]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_curves_that_cannot_be_written_do_not_end_a_training(arguments, capsys, tmp_path):
    in_the_way = tmp_path / "run" / "curves.png"
    in_the_way.mkdir(parents=True)
    assert run([*arguments, "--overwrite"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("no curves.png this time, the training goes on: ") == 2
    assert "best epoch" in captured.out
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["best_model.pth", "classes.txt", "curves.png", "training.pt"]
