"""``deploykit train``: its options, its result, and how it ends."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import random_split
from torchvision.datasets import ImageFolder
from training_runs import NETWORKS, odd_photos

from deploykit.commands.app import run


@pytest.fixture
def arguments(photos, tmp_path):
    """A training of a second, into ``run``."""
    code = tmp_path / "networks.py"
    code.write_text(NETWORKS, encoding="utf-8")
    return [
        *("train", str(photos), "--arch", f"{code}:Tiny", "--input-size", "8", "--lr", "0.02"),
        *("--epochs", "2", "--arch-arg", "width=5", "--output", str(tmp_path / "run")),
    ]


def test_train_names_the_files_and_the_next_command(arguments, capsys, tmp_path, posix_shell):
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err.count("Epoch 2/2: train ") == 1
    best, written, label, following = captured.out.splitlines()
    assert best.startswith("best epoch  ")
    assert f"{tmp_path / 'run' / 'curves.png'}" in written
    words = shlex.split(following)
    assert label == "next        export it:"
    checkpoint = str(tmp_path / "run" / "best_model.pth")
    assert words[4:] == ["--ckpt", checkpoint, "--input-size", "8", "--arch-arg", "width=5"]

    assert run([*arguments, "--resume", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert [epoch["number"] for epoch in result["history"]] == [1, 2]
    assert result["best"] in result["history"]
    assert (result["classes"], result["train_images"]) == (["blue", "red"], 16)


def test_train_accuracy_equals_predict_accuracy(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = odd_photos(tmp_path / "odd", 20)
    arguments[1] = str(folder)
    assert run([*arguments, "--epochs", "1", "--test-fraction", "0.5", "--json"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["result"]["best"]["test_accuracy"]
    assert 0 < accuracy < 1

    paths = [Path(path) for path, _ in ImageFolder(folder).samples]
    _, test = random_split(paths, [20, 20], torch.Generator().manual_seed(0))
    for path in test:
        copy = Path("test") / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    options = ("--ckpt", "run/best_model.pth", "--input-size", "8", "--arch-arg", "width=5")
    assert run(["export", *arguments[2:4], *options, "--name", "tiny"]) == 0
    capsys.readouterr()
    assert run(["predict", "test", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert (result["correct"], result["labelled"]) == (round(20 * accuracy), 20)


def test_train_without_matplotlib(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    assert run(arguments) == 5
    assert 'pip install "deploykit[train]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_train_continues_without_curves(arguments, capsys, tmp_path):
    (tmp_path / "run" / "curves.png").mkdir(parents=True)
    assert run([*arguments, "--overwrite"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("curves.png was not written, the training continues: ") == 2
    assert "best epoch" in captured.out
    assert (tmp_path / "run" / "best_model.pth").is_file()


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_train_interrupted_exits_with_130(arguments, tmp_path):
    arguments[3] = arguments[3].replace("Tiny", "Slow")
    command = [sys.executable, "-m", "deploykit", *arguments, "--epochs", "50", "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("Epoch 1/50"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "Interrupted" in rest
    assert "Traceback" not in rest
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"best_model.pth", "training.pt"}
