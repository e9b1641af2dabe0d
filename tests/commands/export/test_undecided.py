"""What decides nothing, or always the same, is told by ``export`` and not published as proven."""

import pytest
import torch

from deploykit.commands.app import run
from deploykit.models.registry import resolve_architecture


@pytest.fixture
def export(tmp_path, photo_folder, network_file, monkeypatch):
    """Export the network with its head scaled and biased; gives the exit code."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def call(scale, bias, *options):
        arch = f"{network_file}:Net"
        module = resolve_architecture(arch, allow_user_code=True).build(3)
        with torch.no_grad():
            module.head.weight.mul_(scale)
            module.head.bias.copy_(torch.tensor(bias))
        torch.save(module.state_dict(), "net.pth")
        words = ["export", "--arch", arch, "--ckpt", "net.pth", "--classes", str(photo_folder)]
        return run([*words, "--input-size", "16x16", "--name", "net", *options])

    return call


def test_export_of_an_untrained_network_publishes_nothing(export, tmp_path, capsys):
    """Every probability is a third; the last bits of the margins differ."""
    assert export(1e-13, [0.0, 0.0, 0.0]) == 3
    said = capsys.readouterr().err
    assert "the network decides too little: the reference does not decide 24 of 24 images" in said
    assert "untrained" in said
    assert "does not give the checkpoint's answers" not in said  # it does
    assert not (tmp_path / "artifacts" / "net").exists()


def test_export_tells_one_class_for_all_images(export, capsys):
    assert export(1e-2, [0.0, 3.0, 0.0]) == 0
    said = capsys.readouterr().err
    assert "The network gives all 24 photos the same class" in said
    assert run(["verify"]) == 0
    assert "gives all 45 photos the same class" in capsys.readouterr().out
