"""Every bad input: its exit code, one clear message, no file left behind."""

import json
import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from deploykit.commands.app import run


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


NOT_ONE = "FILE is not a PyTorch checkpoint: it is"
MISFIT = "FILE does not fit NETWORKS:Net:"
CHECKPOINTS = [
    (truncated, "FILE is cut short or damaged: File is not a zip file.\n"),
    (empty, "FILE is empty.\n"),
    (a_photo, f"{NOT_ONE} a JPEG image.\n"),
    (a_web_page, f"{NOT_ONE} a web page.\n"),
    (a_git_lfs_pointer, f"{NOT_ONE} a Git LFS pointer to the file.\n"),
    (another_zip, f"{NOT_ONE} a zip archive that torch.save did not write.\n"),
    (torchscript, f"{NOT_ONE} a TorchScript archive: a program, not weights.\n"),
    (
        a_pickled_module,
        "FILE holds more than weights: loading it would run code (torch.nn.modules.linear.Linear).",
    ),
    (code, "FILE holds more than weights: loading it would run code ("),
    (a_plain_pickle, f"{NOT_ONE} a pickle that torch.save did not write.\n"),
    (nan_weights, "1 of 11 entries in FILE have NaN or infinite values: head.weight.\n"),
    (
        missing_keys,
        f"{MISFIT} 10 entries fit; the others do not:\n"
        "  1 missing from the file: features (features.0.weight)\n",
    ),
    (
        unexpected_keys,
        f"{MISFIT} 11 entries fit; the others do not:\n"
        "  1 not in the network: extra (extra.weight)\n",
    ),
    (
        misshapen_keys,
        f"{MISFIT} 10 entries fit; the others do not:\n"
        "  1 of another shape: features.0.weight is 8x3x5x5 in the file, 8x3x3x3 in the network\n",
    ),
    (another_network, f"{MISFIT} 0 entries fit; the others do not:\n"),
    (an_optimizer, "FILE holds no weights; its entries: optimizer, epoch.\n"),
    (a_folder, "FILE is a folder, not a checkpoint.\n"),
    (nothing, "There is no checkpoint FILE.\n"),
]


@pytest.mark.parametrize(
    ("make", "said"), CHECKPOINTS, ids=[make.__name__ for make, _ in CHECKPOINTS]
)
def test_export_of_bad_checkpoints(
    make, said, tmp_path, monkeypatch, capsys, network_file, checkpoint
):
    (tmp_path / "given").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    path = tmp_path / "given" / "broken.pth"
    make(path, checkpoint)
    arguments = ["export", "--arch", f"{network_file}:Net", "--ckpt", str(path)]
    arguments += ["--input-size", "16"]

    assert run(arguments) == 4
    captured = capsys.readouterr()
    # The paths have the test's name in them, and with it many a word that is looked for.
    message = captured.err.replace(str(path), "FILE").replace(str(network_file), "NETWORKS")
    assert captured.out == ""
    assert message.startswith(f"error: {said}")
    assert message.count("error: ") == 1
    assert "Traceback" not in message
    assert "this ran" not in message
    assert 2 <= len(message.splitlines()) <= 12, "what failed, and what to do about it"
    assert list((tmp_path / "work").iterdir()) == []

    assert run([*arguments, "--json"]) == 4
    answer = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == 4
    assert captured.err.startswith(f"error: {answer['error']['message']}\n")


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
    "needs a package": "import no_such_package_1\n",
    "is part of a package": "from .layers import Net\n",
    "is without the name": "x = 1\n",
    "names something else": "Net = 3\n",
    "needs an argument": (
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, width, num_classes):\n"
        "        super().__init__(width, num_classes)\n"
    ),
}


REFUSALS = {
    "trains when it is imported": (4, "SCRIPT trains when it is imported, at SCRIPT:8.\n"),
    "looks for its data": (4, "SCRIPT fails when it is imported, at SCRIPT:1: FileNotFoundError: "),
    "does not parse": (4, "SCRIPT fails when it is imported, at SCRIPT:1: SyntaxError: "),
    "needs a package": (
        5,
        "SCRIPT fails when it is imported, at SCRIPT:1: ModuleNotFoundError: ",
    ),
    "is part of a package": (4, "SCRIPT fails when it is imported, at SCRIPT:1: ImportError: "),
    "exits": (4, "SCRIPT ends the program when it is imported, at SCRIPT:2.\n"),
    "is without the name": (2, "There is no Net in SCRIPT.\n"),
    "names something else": (4, "SCRIPT:Net is of type int; it does not make a network.\n"),
    "needs an argument": (4, "SCRIPT:Net needs width, which has no default.\n"),
}


@pytest.mark.parametrize("what", SCRIPTS)
def test_export_of_bad_scripts(what, tmp_path, monkeypatch, capsys, checkpoint):
    (tmp_path / "given").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    script = tmp_path / "given" / "train_birds.py"
    script.write_text(SCRIPTS[what], encoding="utf-8")
    code, said = REFUSALS[what]
    assert run(["export", "--arch", f"{script}:Net", "--ckpt", str(checkpoint)]) == code
    captured = capsys.readouterr()
    message = captured.err.replace(str(script), "SCRIPT").removeprefix("epoch 1\n")
    assert captured.out == ""
    assert message.startswith(f"error: {said}")
    assert message.count("error: ") == 1
    assert "Traceback" not in message
    assert list((tmp_path / "work").iterdir()) == []
