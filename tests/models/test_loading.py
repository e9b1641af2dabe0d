"""A checkpoint becomes a network: names, shapes and classes must fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from deploykit.errors import ArchitectureError, CheckpointError
from deploykit.models.loading import LoadedModel, align_names, load_model
from deploykit.models.registry import Architecture, resolve_architecture

TINY = '''
import torch
from torch import nn

class Tiny(nn.Module):
    """Has what a fast build could get wrong: a hidden buffer, a plain tensor, a tied weight."""

    def __init__(self, num_classes, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)
        self.again = nn.Conv2d(width, width, 1, bias=False)
        self.tied = nn.Conv2d(width, width, 1, bias=False)
        self.tied.weight = self.again.weight
        self.register_buffer("scale", torch.full((1,), 3.0), persistent=False)
        self.shift = torch.tensor([0.25])

    def forward(self, x):
        x = self.tied(self.again(self.norm(self.conv(x)).relu()))
        return self.fc(x.mean((2, 3))) * self.scale + self.shift

def fixed(): return Tiny(5)

def half(num_classes): return Tiny(num_classes).half()

def lazy(num_classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

def two_heads(num_classes): return nn.ModuleDict(dict(a=nn.Linear(2, num_classes),
                                                      b=nn.Linear(2, num_classes)))
def background(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(3, 2 * num_classes + 2))

def no_layers(): return nn.PReLU(4)
'''

Make = Callable[[str], Architecture]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    path = tmp_path / "tiny.py"
    path.write_text(TINY, encoding="utf-8")
    return lambda name: resolve_architecture(f"{path}:{name}", allow_user_code=True)


def saved(state: object, folder: Path) -> Path:
    path = folder / "best.pth"
    torch.save(state, path)
    return path


def trained(module: nn.Module) -> nn.Module:
    """A module whose buffers have left their initial values too."""
    module.train()(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    return module.eval()


def assert_same(loaded: LoadedModel, module: nn.Module) -> None:
    expected = module.state_dict()
    state = loaded.module.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_load_model_equals_a_strict_load(make: Make, tmp_path: Path) -> None:
    architecture = make("Tiny")
    module = trained(architecture.build(7))
    loaded = load_model(architecture, saved(module.state_dict(), tmp_path))
    images = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), module(images))
    assert_same(loaded, module)
    assert loaded.num_classes == 7
    assert loaded.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert loaded.notes == ()


def test_load_model_is_frozen_fp32_on_cpu(make: Make, tmp_path: Path) -> None:
    state = make("Tiny").build(2).half().state_dict()
    module = load_model(make("half"), saved(state, tmp_path)).module
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"cpu"}


def test_load_model_copies_the_weights(make: Make, tmp_path: Path) -> None:
    module = make("Tiny").build(3)
    path = saved(module.state_dict(), tmp_path)
    loaded = load_model(make("Tiny"), path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert_same(loaded, module)


@pytest.mark.parametrize(
    ("name", "num_classes"), [("mnasnet0_5", 3), ("resnet_cifar96", 4), ("timm/resnet18", 2)]
)
def test_load_model_of_library_networks(name: str, num_classes: int, tmp_path: Path) -> None:
    architecture = resolve_architecture(name, allow_user_code=True)
    module = architecture.build(num_classes)
    loaded = load_model(architecture, saved({"model": module.state_dict()}, tmp_path))
    assert_same(loaded, module)
    assert loaded.num_classes == num_classes


def test_load_model_of_densenet_with_arguments(tmp_path: Path) -> None:
    arch_args = {"growth_rate": 4, "block_config": (1, 2), "num_init_features": 8, "k": 2}
    architecture = resolve_architecture("densenet", allow_user_code=False)
    module = architecture.build(3, arch_args)
    path = saved(module.state_dict(), tmp_path)
    assert_same(load_model(architecture, path, arch_args=arch_args), module)
    with pytest.raises(CheckpointError, match="of another shape"):
        load_model(architecture, path, arch_args={**arch_args, "k": 1})


def test_load_model_without_version_metadata(tmp_path: Path) -> None:
    architecture = resolve_architecture("mnasnet0_5", allow_user_code=False)
    module = architecture.build(2)
    assert_same(load_model(architecture, saved(dict(module.state_dict()), tmp_path)), module)


def test_load_model_skips_auxiliary_heads(tmp_path: Path) -> None:
    theirs = torchvision.models.googlenet(weights=None, init_weights=False, num_classes=3).eval()
    theirs.aux1.fc2 = nn.Linear(1024, 1000)  # fine-tuning often forgets them
    loaded = load_model(
        resolve_architecture("googlenet", allow_user_code=False),
        saved(theirs.state_dict(), tmp_path),
    )
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), theirs(images))
    assert loaded.num_classes == 3
    assert "only training uses: 'aux1.', 'aux2.'" in loaded.notes[0]
    assert "--arch-arg transform_input=true" in loaded.notes[1]
    decided = load_model(
        resolve_architecture("googlenet", allow_user_code=False),
        tmp_path / "best.pth",
        arch_args={"transform_input": True},
    )
    assert len(decided.notes) == 1


def test_load_model_removes_foreign_prefixes(make: Make, tmp_path: Path) -> None:
    module = make("Tiny").build(3)
    state = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    loaded = load_model(make("Tiny"), saved({"state_dict": state}, tmp_path))
    assert_same(loaded, module)
    assert loaded.notes == ("taken from the entry 'state_dict'", "prefix 'model.' removed")


def test_load_model_without_num_batches_tracked(make: Make, tmp_path: Path) -> None:
    module = make("Tiny").build(3)
    state = module.state_dict()
    del state["norm.num_batches_tracked"]
    assert_same(load_model(make("Tiny"), saved(state, tmp_path)), module)


def test_load_model_of_fixed_classes(make: Make, tmp_path: Path) -> None:
    state = make("Tiny").build(5).state_dict()
    assert load_model(make("fixed"), saved(state, tmp_path)).num_classes == 5


def test_load_model_classes_with_more_outputs(make: Make, tmp_path: Path) -> None:
    state = nn.Sequential(nn.Flatten(), nn.Linear(3, 2 * 6 + 2)).state_dict()
    assert load_model(make("background"), saved(state, tmp_path)).num_classes == 6


def test_load_model_of_disagreeing_heads(make: Make, tmp_path: Path) -> None:
    state = nn.ModuleDict({"a": nn.Linear(2, 4), "b": nn.Linear(2, 9)}).state_dict()
    with pytest.raises(CheckpointError, match="disagree") as caught:
        load_model(make("two_heads"), saved(state, tmp_path))
    assert "a.weight says 4" in caught.value.message
    assert "b.bias says 9" in caught.value.message


def test_load_model_refuses_one_logit(make: Make, tmp_path: Path) -> None:
    state = make("Tiny").build(1).state_dict()
    with pytest.raises(CheckpointError, match="no classes to choose among"):
        load_model(make("Tiny"), saved(state, tmp_path))


def test_load_model_refuses_lazy_layers(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="lazy layers") as caught:
        load_model(make("lazy"), saved(nn.Linear(2, 2).state_dict(), tmp_path))
    assert "model(torch.zeros(1, 3" in caught.value.hint


def test_load_model_without_a_layer_to_count(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="would tell the number of classes"):
        load_model(make("no_layers"), saved(nn.PReLU(4).state_dict(), tmp_path))


def misfit(architecture: Architecture, state: object, folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_model(architecture, saved(state, folder))
    return caught.value


def test_load_model_explains_a_changed_head(make: Make, tmp_path: Path) -> None:
    module = make("Tiny").build(3)
    module.fc = nn.Sequential(nn.Dropout(), nn.Linear(4, 3))
    error = misfit(make("Tiny"), module.state_dict(), tmp_path)
    assert error.message.splitlines()[1:] == [
        "  2 missing from the file: fc (fc.weight, fc.bias)",
        "  2 not in the network: fc (fc.1.weight, fc.1.bias)",
    ]
    assert "does not fit" in error.message
    assert "Only 'fc' differs" in error.hint


def test_load_model_names_other_shapes(make: Make, tmp_path: Path) -> None:
    state = make("Tiny").build(3).state_dict() | {"conv.weight": torch.zeros(4, 1, 3, 3)}
    error = misfit(make("Tiny"), state, tmp_path)
    assert "conv.weight is 4x1x3x3 in the file, 4x3x3x3 in the network" in error.message


def test_load_model_recognises_another_architecture(tmp_path: Path) -> None:
    state = resolve_architecture("resnet18", allow_user_code=False).build(3).state_dict()
    error = misfit(resolve_architecture("densenet121", allow_user_code=False), state, tmp_path)
    assert "best.pth does not fit torchvision/densenet121: 0 entries fit" in error.message
    assert len(error.message.splitlines()) == 3
    assert max(map(len, error.message.splitlines())) < 300
    assert "layer1 (24 as layer1.0.conv1.weight)" in error.message
    assert "deploykit identify " in error.hint
    assert "best.pth" in error.hint


def test_load_model_of_weights_without_head(make: Make, tmp_path: Path) -> None:
    state = make("Tiny").build(3).state_dict()
    del state["fc.weight"], state["fc.bias"]
    error = misfit(make("Tiny"), state, tmp_path)
    assert "2 missing from the file: fc (fc.weight, fc.bias)" in error.message


NETWORK = ("conv.weight", "head.fc.weight", "head.fc.bias")


@pytest.mark.parametrize(
    ("found", "expected", "note"),
    [
        (NETWORK, NETWORK, ""),
        ([f"model.{n}" for n in NETWORK], NETWORK, "prefix 'model.' removed"),
        ([f"a.module.b.{n}" for n in NETWORK], NETWORK, "prefix 'a.b.' removed"),
        (NETWORK, [f"net.{n}" for n in NETWORK], "prefix 'net.' added"),
        (
            [f"model.{n}" for n in NETWORK],
            [f"net.{n}" for n in NETWORK],
            "prefix 'model.' removed, prefix 'net.' added",
        ),
        (
            ["conv.module.weight", "head._orig_mod.fc.weight", "head._orig_mod.fc.bias"],
            NETWORK,
            "wrappers' names (module, _orig_mod) removed",
        ),
        (
            ["backbone.conv.weight", "head.fc.weight", "head.fc.bias"],
            NETWORK,
            "prefix 'backbone.' removed",
        ),
    ],
)
def test_align_names_adds_or_removes_prefixes(
    found: list[str], expected: list[str], note: str
) -> None:
    names, changed = align_names(found, expected)
    assert list(names) == list(found)
    assert list(names.values()) == list(expected)
    assert changed == note


def test_align_names_without_better_fit() -> None:
    names, changed = align_names(["model.a.weight", "model.b.weight"], NETWORK)
    assert names == {"model.a.weight": "model.a.weight", "model.b.weight": "model.b.weight"}
    assert changed == ""


def test_align_names_keeps_a_module_named_module() -> None:
    names = ["module.weight", "weight"]
    assert align_names(names, names)[0] == {"module.weight": "module.weight", "weight": "weight"}


def test_align_names_keeps_names_distinct() -> None:
    found = ["model.conv.weight", "conv.weight"]
    assert len(set(align_names(found, NETWORK)[0].values())) == 2
