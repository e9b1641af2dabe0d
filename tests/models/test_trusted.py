"""Checkpoints that need code: whole networks that a script saved."""

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models import checkpoint
from deploykit.models.checkpoint import Weights
from deploykit.models.contents import read_contents
from deploykit.models.loading import LoadedModel, load_model
from deploykit.models.registry import resolve_architecture
from deploykit.system.text import command_line

TINY = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2, 2))


def read_weights(path: Path, *, trust_pickle: bool = False) -> Weights:
    """The first set of weights in a file."""
    return checkpoint.read_weights(path, trust_pickle=trust_pickle)[0]


def saved(content: object, folder: Path, **options: object) -> Path:
    path = folder / "best.pth"
    torch.save(content, path, **options)
    return path


def assert_state(weights: Weights, expected: dict[str, Tensor]) -> None:
    assert list(weights.state_dict) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(weights.state_dict[name], tensor)


def refusal(path: Path, **options: bool) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_weights(path, **options)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("content", [TINY, {"epoch": 1, "model": TINY}])
def test_read_weights_of_a_trusted_network(tmp_path: Path, content: object) -> None:
    weights = read_weights(saved(content, tmp_path), trust_pickle=True)
    assert_state(weights, TINY.state_dict())
    assert not any(tensor.requires_grad for tensor in weights.state_dict.values())


class Elsewhere(nn.Linear):
    """Pickled by a module that the test then hides."""


def test_read_weights_trusted_without_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(Elsewhere(1, 1), tmp_path)
    monkeypatch.delitem(globals(), "Elsewhere")
    error = refusal(path, trust_pickle=True)
    assert "needs code that is not found here" in error.message
    assert "Elsewhere" in error.message


@pytest.fixture
def pickled_by_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A whole module saved by a script in the current folder, which ends as given."""

    def make(ending: str) -> Path:
        definition = "import sys\nimport torch\n\nclass Net(torch.nn.Linear):\n    pass\n\n"
        script = types.ModuleType("train_birds")
        exec(definition, script.__dict__)
        monkeypatch.setitem(sys.modules, "train_birds", script)
        path = saved(script.Net(2, 2), tmp_path)
        monkeypatch.delitem(sys.modules, "train_birds")
        (tmp_path / "train_birds.py").write_text(definition + ending, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        return path

    return make


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("sys.exit(0)", "ends the program when it is loaded"),
        ("Net(2, 2)(torch.zeros(1, 2)).sum().backward()", "trains when it is loaded"),
        ("next(iter(torch.utils.data.DataLoader([1])))", "reads its data when it is loaded"),
        ("open('birds/classes.txt')", "fails when it is loaded"),
        ("def broken(:", "fails when it is loaded"),
    ],
)
def test_read_weights_trusted_of_a_script_that_runs(
    pickled_by_script: Callable[[str], Path], ending: str, said: str
) -> None:
    path = pickled_by_script(ending)
    error = refusal(path, trust_pickle=True)
    assert error.message.startswith(f"{path} {said}, at ")
    assert "train_birds.py:7" in error.message
    assert "if __name__ ==" in error.hint


def test_read_weights_trusted_of_a_guarded_script(
    pickled_by_script: Callable[[str], Path],
) -> None:
    path = pickled_by_script("if __name__ == '__main__':\n    sys.exit(0)")
    assert set(read_weights(path, trust_pickle=True).state_dict) == {"weight", "bias"}


def test_read_weights_trusted_and_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(TINY, tmp_path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-8])
    monkeypatch.chdir(tmp_path)
    assert "cut short or damaged" in refusal(path, trust_pickle=True).message


SCRIPT = """
import dataclasses
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x)

class Net(nn.Module):
    def __init__(self, num_classes=2, parallel=False):
        super().__init__()
        self.block = nn.DataParallel(Block()) if parallel else Block()
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(self.block(x).mean((2, 3)))

@dataclasses.dataclass
class Config:
    lr: float = 0.1

if __name__ == "__main__":
    torch.manual_seed(5)
    model = Net(3)
    torch.save(model, "whole.pth")
    torch.save(model, "older.pth", _use_new_zipfile_serialization=False)
    torch.save(nn.DataParallel(model), "parallel.pth")
    torch.save({"net": model, "config": Config()}, "entry.pth")
    torch.save(Net(3, parallel=True), "inside.pth")
    torch.save(model.state_dict(), "weights.pth")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a script that was run, and saved whole networks as classes of __main__."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "train.py").write_text(SCRIPT, encoding="utf-8")
    (folder / "other.py").write_text("from torch.nn import Linear as Net", encoding="utf-8")
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True)
    return folder


def load(folder: Path, file: str, script: str = "train.py", **arch_args: object) -> LoadedModel:
    architecture = resolve_architecture(f"{folder / script}:Net", allow_user_code=True)
    path = folder / file
    return load_model(architecture, path, (8, 8), arch_args=arch_args, trust_pickle=True)


@pytest.mark.parametrize("file", ["whole.pth", "older.pth", "parallel.pth", "entry.pth"])
def test_load_model_of_a_whole_network_of_a_script(trained: Path, file: str) -> None:
    loaded = load(trained, file)
    expected = torch.load(trained / "weights.pth")
    assert loaded.num_classes == 3
    assert all(torch.equal(loaded.module.state_dict()[k], v) for k, v in expected.items())
    assert type(loaded.module).__name__ == "Net"
    assert loaded.notes[0].startswith("loaded with its code: __main__.Net, __main__.Block")
    assert loaded.notes[0].endswith(f"as in {trained / 'train.py'}")


def test_load_model_of_a_whole_network_with_a_parallel_part(trained: Path) -> None:
    assert load(trained, "inside.pth", parallel=True).num_classes == 3
    assert load(trained, "inside.pth").num_classes == 3


def test_load_model_of_a_whole_network_of_another_script(trained: Path) -> None:
    with pytest.raises(CheckpointError, match=r"needs Block of the script .*other.py has none"):
        load(trained, "whole.pth", "other.py")


def test_read_weights_names_the_command_for_a_whole_network(trained: Path) -> None:
    path = trained / "parallel.pth"
    error = refusal(path)
    assert "would run code (__main__.Net, __main__.Block, torch.nn." in error.message
    assert error.hint.endswith("in this command: --arch SCRIPT.py:Net --trust-pickle")
    error = refusal(path, trust_pickle=True)
    assert "was saved by a script, whose classes it needs: __main__.Net" in error.message
    assert error.hint.endswith("in this command: --arch SCRIPT.py:Net --trust-pickle")


@pytest.mark.parametrize("trust_pickle", [True, False])
def test_read_contents_of_a_whole_network_leads_to_export(
    trained: Path, trust_pickle: bool
) -> None:
    path = trained / "whole.pth"
    with pytest.raises(CheckpointError) as caught:
        read_contents(path, trust_pickle=trust_pickle)
    assert "this command" not in caught.value.hint  # inspect and identify can name no script
    export = command_line(["--arch", "SCRIPT.py:Net", "--ckpt", str(path), "--trust-pickle"])
    assert caught.value.hint.endswith(f"deploykit export {export}")


def test_load_model_trusts_a_whole_network_in_the_same_command(trained: Path) -> None:
    name = f"{trained / 'train.py'}:Net"
    architecture = resolve_architecture(name, allow_user_code=True)
    with pytest.raises(CheckpointError) as caught:
        load_model(architecture, trained / "whole.pth", (8, 8))
    assert caught.value.hint.endswith("add --trust-pickle to this command.")
