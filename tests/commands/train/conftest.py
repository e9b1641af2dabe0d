"""Fixtures of the tests of training."""

import pytest
from training_runs import NETWORKS, make_photos

from deploykit.commands.train.run import TrainingResult
from deploykit.commands.train.run import train as train_network


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


@pytest.fixture
def train(tmp_path, photos, monkeypatch):
    """``train`` with small defaults; its curves, which take long to draw, are empty."""
    draw = "deploykit.commands.train.run.write_curves"
    monkeypatch.setattr(draw, lambda history, path, head: path.touch())
    code = tmp_path / "networks.py"
    code.write_text(NETWORKS, encoding="utf-8")

    def run(output="run", *, network="Tiny", folder=photos, **options) -> TrainingResult:
        defaults = {"epochs": 2, "learning_rate": 0.02, "input_size": 8, "device": "cpu"}
        return train_network(
            folder,
            arch=f"{code}:{network}",
            output=tmp_path / output,
            **(defaults | options),
        )

    return run
