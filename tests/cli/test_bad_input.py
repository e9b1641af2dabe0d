"""Every bad input: its exit code, one clear message, no file left behind."""

import json
import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from deploykit.cli.app import run


def good_weights(checkpoint):
    return torch.load(checkpoint, weights_only=True)


def truncated(path, checkpoint):
    data = checkpoint.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path, checkpoint):
    path.touch()


def a_photo(path, checkpoint):
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(200))


def a_web_page(path, checkpoint):
    path.write_text("<!DOCTYPE html><html><body>404</body></html>")


def a_git_lfs_pointer(path, checkpoint):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")


def another_zip(path, checkpoint):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def torchscript(path, checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(str(path))


def a_pickled_module(path, checkpoint):
    torch.save(nn.Linear(2, 2), path)


class Bomb:
    """Runs code when it is unpickled without care."""

    def __reduce__(self):
        return (print, ("this ran",))


def code(path, checkpoint):
    torch.save({"weight": torch.zeros(2), "bomb": Bomb()}, path)


def a_plain_pickle(path, checkpoint):
    path.write_bytes(pickle.dumps(Bomb()))


def nan_weights(path, checkpoint):
    weights = good_weights(checkpoint)
    weights["head.weight"][0, 0] = float("nan")
    torch.save(weights, path)


def missing_keys(path, checkpoint):
    weights = good_weights(checkpoint)
    del weights["features.0.weight"]
    torch.save(weights, path)


def unexpected_keys(path, checkpoint):
    torch.save({**good_weights(checkpoint), "extra.weight": torch.zeros(3)}, path)


def misshapen_keys(path, checkpoint):
    weights = good_weights(checkpoint)
    weights["features.0.weight"] = torch.zeros(8, 3, 5, 5)
    torch.save(weights, path)


def another_network(path, checkpoint):
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4)).state_dict(), path)


def an_optimizer(path, checkpoint):
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters())
    torch.save({"optimizer": optimizer.state_dict(), "epoch": 3}, path)


def a_folder(path, checkpoint):
    path.mkdir()


def nothing(path, checkpoint):
    """No file at all."""


CHECKPOINTS = [
    (truncated, "cut short"),
    (empty, "empty"),
    (a_photo, "JPEG"),
    (a_web_page, "web page"),
    (a_git_lfs_pointer, "LFS"),
    (another_zip, ""),
    (torchscript, "TorchScript"),
    (a_pickled_module, "--trust-pickle"),
    (code, "--trust-pickle"),
    (a_plain_pickle, "a pickle that torch.save did not write"),
    (nan_weights, "NaN"),
    (missing_keys, "features.0.weight"),
    (unexpected_keys, "extra.weight"),
    (misshapen_keys, "features.0.weight"),
    (another_network, ""),
    (an_optimizer, ""),
    (a_folder, "folder"),
    (nothing, "broken.pth"),
]


@pytest.mark.parametrize(
    ("make", "word"), CHECKPOINTS, ids=[make.__name__ for make, _ in CHECKPOINTS]
)
def test_a_bad_checkpoint(make, word, tmp_path, monkeypatch, capsys, network_file, checkpoint):
    (tmp_path / "given").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    path = tmp_path / "given" / "broken.pth"
    make(path, checkpoint)
    arguments = ["export", "--arch", f"{network_file}:Net", "--ckpt", str(path)]
    arguments += ["--input-size", "16"]

    assert run(arguments) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: ") == 1
    assert "Traceback" not in captured.err
    assert "this ran" not in captured.err
    assert word.lower() in captured.err.lower()
    assert len(captured.err.splitlines()) <= 12
    assert list((tmp_path / "work").iterdir()) == []

    assert run([*arguments, "--json"]) == 4
    answer = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == 4
    assert answer["error"]["message"]


SCRIPTS = {
    "trains when it is imported": (
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, num_classes):\n        super().__init__(4, num_classes)\n"
        "model = Net(3)\nprint('epoch 1')\n"
        "model(torch.zeros(2, 4)).sum().backward()\n"
        "torch.save(model.state_dict(), 'trained.pth')\n"
    ),
    "looks for its data": "open('D:/bird_photos/classes.txt')\n",
    "does not parse": "def broken(:\n",
    "exits": "import sys\nsys.exit(3)\n",
    "is without the name": "x = 1\n",
    "names something else": "Net = 3\n",
    "needs an argument": (
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, width, num_classes):\n"
        "        super().__init__(width, num_classes)\n"
    ),
}


@pytest.mark.parametrize("what", SCRIPTS)
def test_a_bad_script(what, tmp_path, monkeypatch, capsys, checkpoint):
    (tmp_path / "given").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    script = tmp_path / "given" / "train_birds.py"
    script.write_text(SCRIPTS[what], encoding="utf-8")
    assert run(["export", "--arch", f"{script}:Net", "--ckpt", str(checkpoint)]) in (2, 4)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: ") == 1
    assert "Traceback" not in captured.err
    assert "train_birds.py" in captured.err
    assert list((tmp_path / "work").iterdir()) == []
