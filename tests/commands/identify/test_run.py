"""Identify: the architecture that was trained is among those that fit, and others say why not."""

import json
from types import SimpleNamespace

import msgspec
import pytest
import torch

from deploykit.commands.app import run
from deploykit.commands.identify.run import identify
from deploykit.commands.identify.text import export_command, identification_text
from deploykit.errors import CheckpointError
from deploykit.models.registry import resolve_architecture

KNOWN = {
    "zoo": ["densenet", "dpn92", "resnet_cifar96"],
    "torchvision": [
        "torchvision/resnet18",
        "torchvision/resnet34",
        "torchvision/squeezenet1_1",
        "torchvision/googlenet",
    ],
    "timm": ["timm/efficientnet_b0", "timm/tf_efficientnet_b0", "timm/test_resnet"],
}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """A handful of all the networks there are."""
    monkeypatch.setattr("deploykit.models.registry.list_architectures", lambda: KNOWN)


@pytest.fixture
def save(tmp_path):
    """Save an untrained network's weights."""

    def checkpoint(name, classes=7, prefix="", **arguments):
        state = (
            resolve_architecture(name, allow_user_code=True).build(classes, arguments).state_dict()
        )
        path = tmp_path / "best_model.pth"
        torch.save({prefix + key: value for key, value in state.items()}, path)
        return path

    return checkpoint


@pytest.mark.parametrize("name", ["resnet_cifar96", "torchvision/resnet18", "timm/test_resnet"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_identify_finds_trained_network(save, name, prefix):
    found = identify(save(name, prefix=prefix))
    assert found.fits == {name: 7}
    assert found.near_misses == ()
    assert f"\ndeploykit export --arch {name} --ckpt " in identification_text(found)


def test_identify_ignores_auxiliary_heads(tmp_path):
    import torchvision

    module = torchvision.models.googlenet(
        weights=None, num_classes=5, aux_logits=True, init_weights=False
    )
    torch.save(module.state_dict(), tmp_path / "best_model.pth")
    assert identify(tmp_path / "best_model.pth").fits == {"torchvision/googlenet": 5}


def test_identify_names_equal_networks(save):
    found = identify(save("timm/tf_efficientnet_b0"))
    assert found.fits == {"timm/efficientnet_b0": 7, "timm/tf_efficientnet_b0": 7}
    assert "Names and shapes alone cannot tell these apart" in identification_text(found)


def test_identify_skips_timm_if_another_fits(save):
    path = save("torchvision/resnet18")
    found = identify(path)
    assert "timm's 3 networks, since another fits: --timm" in found.skipped
    assert found.compared == 2  # ResNets
    everything = identify(path, timm=True)
    assert everything.compared == 5
    assert not any("timm" in reason for reason in everything.skipped)


def test_identify_near_miss_of_other_arguments(save):
    path = save("densenet", growth_rate=8, block_config=(2, 2), num_init_features=16)
    found = identify(path)
    assert found.fits == {}
    closest = found.near_misses[0]
    assert closest.architecture == "densenet"
    assert closest.mismatch.missing
    text = identification_text(found)
    assert "fits        none" in text
    assert "--arch-arg" in text


def test_identify_user_network(tmp_path, checkpoint):
    found = identify(checkpoint)
    assert found.fits == {}
    assert "--arch train.py:Net" in identification_text(found)
    assert json.loads(json.dumps(msgspec.to_builtins(found)))["fits"] == {}


@pytest.mark.parametrize(("system", "quote"), [("posix", "'"), ("nt", '"')])
def test_identify_quotes_paths_with_spaces(tmp_path, save, monkeypatch, system, quote):
    folder = tmp_path / "my run"
    folder.mkdir()
    path = save("torchvision/squeezenet1_1").rename(folder / "best_model.pth")
    found = identify(path)
    monkeypatch.setattr("deploykit.system.text.os", SimpleNamespace(name=system))
    assert export_command(found).endswith(f"--ckpt {quote}{path}{quote} --classes DIR")


def test_identify_trusted_pickle(tmp_path, capsys):
    path = tmp_path / "whole.pth"
    torch.save(
        resolve_architecture("torchvision/resnet18", allow_user_code=False).build(7, {}), path
    )
    assert run(["identify", str(path)]) == 4
    assert "add --trust-pickle to this command" in capsys.readouterr().err
    assert run(["identify", str(path), "--trust-pickle"]) == 0
    told = capsys.readouterr().out
    assert "fits        torchvision/resnet18, 7 classes" in told
    assert told.splitlines()[-1].endswith("--classes DIR --trust-pickle")


def test_identify_missing_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        identify(tmp_path / "nonsuch.pth")


def test_identify_exit_codes_and_json(save, checkpoint, capsys):
    assert run(["identify", str(save("torchvision/resnet34")), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["fits"] == {"torchvision/resnet34": 7}
    assert run(["identify", str(checkpoint)]) == 4
    assert "fits        none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.zeros(1).expand(200_000_000, 512), "claims far more than it holds"),
        (torch.zeros(4, 512, device="meta"), "fc.weight is a meta tensor, which has no values"),
        (torch.zeros(4, 512, dtype=torch.complex64), "fc.weight is complex"),
    ],
)
def test_identify_inspect_and_export_refuse_made_checkpoints(tmp_path, capsys, weight, said):
    path = str(tmp_path / "made.pth")
    torch.save({"fc.weight": weight, "fc.bias": torch.zeros(4)}, path)
    export = ["export", "--arch", "resnet18", "--artifacts", str(tmp_path), "--ckpt", path]
    for words in (["identify", path], ["inspect", path], export):
        assert run(words) == 4
        error, hint = capsys.readouterr().err.splitlines()[-2:]
        assert error.startswith(f"error: {path}")
        assert said in error
        assert hint.startswith("Save ")


def test_identify_refuses_more_tensors_than_any_network_has(tmp_path):
    torch.save({f"p{n}.w": torch.zeros(1) for n in range(10_001)}, tmp_path / "many.pth")
    with pytest.raises(CheckpointError, match="has 10,001 tensors, more than any"):
        identify(tmp_path / "many.pth")
