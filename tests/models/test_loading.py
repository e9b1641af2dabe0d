"""A checkpoint becomes a network: names, shapes and classes must fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from deploykit.errors import ArchitectureError, CheckpointError, UsageError
from deploykit.models import loading
from deploykit.models.loading import LoadedModel
from deploykit.models.names import align_names
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

class NoLayers(nn.Module):
    """No layer tells how many classes there are: six."""

    def __init__(self):
        super().__init__()
        self.act = nn.PReLU(3)

    def forward(self, x):
        return self.act(x).mean((2, 3)).repeat(1, 2)


class Dann(nn.Module):
    """Four classes; another head, which only training uses, is defined last."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(3, 4)
        self.domain = nn.Linear(3, 2)

    def forward(self, x):
        return self.classifier(x.mean((2, 3)))


class Normed(nn.Module):
    """With a norm that renames the weights of an older torch while they are loaded."""

    norm = staticmethod(torch.nn.utils.parametrizations.weight_norm)

    def __init__(self, num_classes):
        super().__init__()
        self.fc = self.norm(nn.Linear(3, num_classes))

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


class Masked(nn.Module):
    """With a mask of -inf that is meant."""

    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf"), 0.0]))

    def forward(self, x):
        x = x.mean((2, 3))
        return self.fc(x * (x + self.mask).softmax(1))


class Doubled(nn.Linear):
    """Its first version kept half of the weights."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version", 1) < 2:
            state_dict[prefix + "weight"] = 2 * state_dict[prefix + "weight"]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Versioned(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = Doubled(3, num_classes)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


class Scaled(nn.Module):
    """With a number for a weight; it ends the program, or fails, where it is told to."""

    def __init__(self, num_classes, ends=""):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.ends = ends

    def load_state_dict(self, state, strict=True):
        if self.ends == "load":
            raise SystemExit(0)
        return super().load_state_dict(state, strict)

    def train(self, mode=True):
        if self.ends == "eval":
            raise Exception("only training")
        return super().train(mode)

    def forward(self, x):
        return self.scale * self.fc(x.mean((2, 3)))
'''

Make = Callable[[str], Architecture]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    path = tmp_path / "tiny.py"
    path.write_text(TINY, encoding="utf-8")
    return lambda name: resolve_architecture(f"{path}:{name}", allow_user_code=True)


def load_model(architecture: Architecture, path: Path, **options: Any) -> LoadedModel:
    return loading.load_model(architecture, path, (16, 16), **options)


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


def test_load_model_of_one_logit(make: Make, tmp_path: Path) -> None:
    module = make("Tiny").build(1)
    model = load_model(make("Tiny"), saved(module.state_dict(), tmp_path))
    assert (model.num_classes, model.activation) == (1, "")
    assert_same(model, module)


def test_load_model_refuses_lazy_layers(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="lazy layers") as caught:
        load_model(make("lazy"), saved(nn.Linear(2, 2).state_dict(), tmp_path))
    assert "model(torch.zeros(1, 3" in caught.value.hint


@pytest.mark.parametrize(("name", "classes"), [("NoLayers", 6), ("Dann", 4)])
def test_load_model_counts_the_outputs_of_fixed_classes(
    make: Make, tmp_path: Path, name: str, classes: int
) -> None:
    state = make(name).build(2).state_dict()
    assert load_model(make(name), saved(state, tmp_path)).num_classes == classes


def test_load_model_renames_as_load_hooks_do(make: Make, tmp_path: Path) -> None:
    module = make("Normed").build(4)
    module.load_state_dict({k: torch.randn_like(v) for k, v in module.state_dict().items()})
    new = "fc.parametrizations.weight.original"
    older = {"0": "fc.weight_g", "1": "fc.weight_v"}
    state = {
        older[name[-1]] if name.startswith(new) else name: tensor
        for name, tensor in module.state_dict().items()
    }
    assert_same(load_model(make("Normed"), saved(state, tmp_path)), module)


@pytest.mark.parametrize("prefix", ["", "module.", "model.net."])
@pytest.mark.parametrize(("version", "factor"), [(1, 2), (2, 1)])
def test_load_model_reads_the_versions_of_layers(
    make: Make, tmp_path: Path, prefix: str, version: int, factor: int
) -> None:
    state = make("Versioned").build(4).state_dict(prefix=prefix)
    state._metadata[f"{prefix}fc"]["version"] = version
    loaded = load_model(make("Versioned"), saved(state, tmp_path))
    weight = loaded.module.state_dict()["fc.weight"]
    assert torch.equal(weight, factor * state[f"{prefix}fc.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_load_model_converts_to_float32(make: Make, tmp_path: Path, dtype: torch.dtype) -> None:
    state = trained(make("Tiny").build(3)).to(dtype).state_dict()
    loaded = load_model(make("Tiny"), saved(state, tmp_path))
    for name, tensor in loaded.module.state_dict().items():
        expected = state[name].float() if state[name].is_floating_point() else state[name]
        assert torch.equal(tensor, expected)


def test_load_model_refuses_whole_numbers_for_weights(make: Make, tmp_path: Path) -> None:
    state = make("Tiny").build(3).state_dict()
    state["fc.weight"] = state["fc.weight"].to(torch.int8)  # by a tool that quantises
    error = misfit(make("Tiny"), state, tmp_path)
    assert error.message.endswith("has whole numbers for weights: fc.weight.")


def test_load_model_counts_no_classes_of_empty_weights(make: Make, tmp_path: Path) -> None:
    state = {**make("Tiny").build(3).state_dict(), "fc.weight": torch.zeros(200_000_000, 0)}
    del state["fc.bias"]
    error = misfit(make("Tiny"), state, tmp_path)
    assert "fc.weight is 200000000x0 in the file, 10x4 in the network" in error.message


def test_load_model_takes_meant_infinities(make: Make, tmp_path: Path) -> None:
    module = make("Masked").build(4)
    assert_same(load_model(make("Masked"), saved(module.state_dict(), tmp_path)), module)


@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_load_model_refuses_nan_and_infinite_weights(
    make: Make, tmp_path: Path, value: str
) -> None:
    state = make("Masked").build(4).state_dict()
    state["fc.bias"][1] = float(value)
    error = misfit(make("Masked"), state, tmp_path)
    assert error.message.endswith("best.pth have NaN or infinite values: fc.bias.")


EXTRAS = {
    "criterion.weight": torch.ones(4),
    "train_acc.total": torch.ones(1),
    "center_loss.centers": torch.ones(4, 2),
    "total_ops": torch.zeros(1, dtype=torch.float64),
    "conv.total_params": torch.zeros(1, dtype=torch.float64),
    "conv.activation_post_process.min_val": torch.tensor(float("inf")),
    "conv.fake_quant_enabled": torch.tensor([1]),
}


def test_load_model_skips_what_training_kept(make: Make, tmp_path: Path) -> None:
    module = trained(make("Tiny").build(3))
    loaded = load_model(make("Tiny"), saved({**module.state_dict(), **EXTRAS}, tmp_path))
    assert_same(loaded, module)
    *_, note = loaded.notes
    assert note.startswith("not used: 7 entries, ")
    assert "criterion (criterion.weight)" in note


@pytest.mark.parametrize("name", ["attention.weight", "conv.se.weight", "center.weight"])
def test_load_model_refuses_layers_that_the_network_lacks(
    make: Make, tmp_path: Path, name: str
) -> None:
    state = {**make("Tiny").build(3).state_dict(), name: torch.ones(3)}
    error = misfit(make("Tiny"), state, tmp_path)
    assert f"1 not in the network: {name.split('.')[0]} ({name})" in error.message


@pytest.mark.parametrize(
    ("name", "said", "call"),
    [
        ("fc.lora_A.default.weight", "adapters (LoRA)", "merge_and_unload()"),
        ("conv.weight_mask", "pruned weights", "prune.remove("),
    ],
)
def test_load_model_names_weights_to_merge(
    make: Make, tmp_path: Path, name: str, said: str, call: str
) -> None:
    state = {**make("Tiny").build(3).state_dict(), name: torch.ones(3)}
    error = misfit(make("Tiny"), state, tmp_path)
    assert said in error.message
    assert call in error.hint


def test_load_model_takes_the_set_that_fits(make: Make, tmp_path: Path) -> None:
    module = trained(make("Tiny").build(3))
    average = {k: v + 1 if v.is_floating_point() else v for k, v in module.state_dict().items()}
    path = saved({**module.state_dict(), "ema": average}, tmp_path)
    loaded = load_model(make("Tiny"), path)
    assert_same(loaded, module)
    assert loaded.weights == ""
    assert loaded.notes == ("other weights in the file fit, too: --weights ema",)
    loaded = load_model(make("Tiny"), path, weights="ema")
    assert loaded.weights == "ema"
    assert torch.equal(loaded.module.state_dict()["fc.bias"], average["fc.bias"])
    with pytest.raises(UsageError, match="has no weights 'emma'") as caught:
        load_model(make("Tiny"), path, weights="emma")
    assert caught.value.hint == "It has: '' (the file itself), 'ema'."
    with pytest.raises(UsageError) as caught:
        load_model(make("Tiny"), saved(module.state_dict(), tmp_path), weights="ema")
    assert caught.value.hint == "The file itself is its only set of weights: leave out --weights."


UNUSABLE = [
    (torch.zeros(3, dtype=torch.complex64), "fc.bias is complex"),
    (torch.zeros(3, device="meta"), "fc.bias is a meta tensor, which has no values"),
    (torch.ones(3, dtype=torch.int8), "has whole numbers for weights: fc.bias"),
    ([0.0, 0.0, 0.0], "1 missing from the file: fc (fc.bias)"),
    (torch.zeros(1, 3), "fc.bias is 1x3 in the file, 3 in the network"),
]


@pytest.mark.parametrize(("bad", "reason"), UNUSABLE)
def test_load_model_tells_that_it_takes_another_set(
    make: Make, tmp_path: Path, bad: object, reason: str
) -> None:
    module = trained(make("Tiny").build(3))
    content = {"model": {**module.state_dict(), "fc.bias": bad}, "ema": module.state_dict()}
    path = saved(content, tmp_path)
    loaded = load_model(make("Tiny"), path)
    assert loaded.weights == "ema"
    (told,) = (note for note in loaded.notes if "of the entry 'model' are not taken" in note)
    assert reason in told
    assert "\n" not in told
    with pytest.raises(CheckpointError) as caught:
        load_model(make("Tiny"), path, weights="model")
    assert reason in caught.value.message


def test_load_model_tells_of_a_set_beside_it_that_is_unusable(make: Make, tmp_path: Path) -> None:
    state = make("Tiny").build(3).state_dict()
    bad = {**state, "fc.bias": torch.zeros(3, dtype=torch.complex64)}
    loaded = load_model(make("Tiny"), saved({"first": state, "second": bad}, tmp_path))
    assert loaded.weights == "first"
    assert any("of the entry 'second' are not taken" in note for note in loaded.notes)


def test_load_model_says_first_why_the_network_s_own_weights_do_not_fit(
    make: Make, tmp_path: Path
) -> None:
    state = make("Tiny").build(3).state_dict()
    del state["fc.bias"]
    content = {"model": nn.Linear(2, 2).state_dict(), "my_net": state}
    assert (
        "1 missing from the file: fc (fc.bias)" in misfit(make("Tiny"), content, tmp_path).message
    )


def test_load_model_prefers_what_fits_to_usual_names(make: Make, tmp_path: Path) -> None:
    module = trained(make("Tiny").build(3))
    content = {"model": nn.Linear(2, 2).state_dict(), "bird_net": module.state_dict()}
    loaded = load_model(make("Tiny"), saved(content, tmp_path))
    assert_same(loaded, module)
    assert loaded.notes == ("taken from the entry 'bird_net'",)


def test_load_model_passes_over_a_set_with_nan(make: Make, tmp_path: Path) -> None:
    module = trained(make("Tiny").build(3))
    broken = {**module.state_dict(), "fc.bias": torch.full((3,), float("nan"))}
    content = {"first": broken, "second": module.state_dict()}
    loaded = load_model(make("Tiny"), saved(content, tmp_path))
    assert_same(loaded, module)
    assert any("have NaN or infinite values: fc.bias" in note for note in loaded.notes)


def test_load_model_refuses_to_guess_among_sets(make: Make, tmp_path: Path) -> None:
    state = make("Tiny").build(3).state_dict()
    error = misfit(make("Tiny"), {"generator": state, "critic": dict(state)}, tmp_path)
    assert "several sets of weights that fit: generator, critic" in error.message
    assert error.hint == "Name one: --weights generator"


def without_counts(state: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in state.items() if not name.endswith("batches_tracked")}


@pytest.mark.parametrize(
    "change",
    [
        without_counts,
        lambda state: {**state, "criterion.weight": torch.ones(3)},
        lambda state: {f"net.{name}": each for name, each in state.items()},
    ],
)
def test_load_model_refuses_to_guess_among_sets_that_differ_by_name_alone(
    make: Make, tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    state = make("Tiny").build(3).state_dict()
    for content in ({"a b": state, "c": change(state)}, {"a b": change(state), "c": state}):
        error = misfit(make("Tiny"), content, tmp_path)
        assert "several sets of weights that fit: a b, c" in error.message
        assert "'a b'" in error.hint.replace('"', "'")


def test_load_model_of_sets_of_which_one_fits(make: Make, tmp_path: Path) -> None:
    module = trained(make("Tiny").build(3))
    wider = make("Tiny").build(3, {"width": 5}).state_dict()  # the same names
    loaded = load_model(make("Tiny"), saved({"net": module.state_dict(), "x": wider}, tmp_path))
    assert_same(loaded, module)
    assert loaded.notes == ("taken from the entry 'net'",)


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


def test_align_names_of_many_prefixes() -> None:
    found = [f"part{number}.scale" for number in range(20_000)]  # without end, were each tried
    assert align_names(found, NETWORK)[1] == ""


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


@pytest.mark.parametrize("scale", [torch.tensor(3.0), torch.tensor([3.0])])
def test_load_model_takes_a_number_in_a_list_as_torch_does(
    make: Make, tmp_path: Path, scale: torch.Tensor
) -> None:
    module = make("Scaled").build(4)
    state = {**module.state_dict(), "scale": scale}
    loaded = load_model(make("Scaled"), saved(state, tmp_path))
    assert float(loaded.module.state_dict()["scale"]) == 3.0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("scale", torch.tensor([3.0, 4.0]), "scale is 2 in the file, a single number in the"),
        ("scale", torch.zeros(0), "scale is 0 in the file, a single number in the network"),
        ("scale", torch.tensor([[3.0]]), "scale is 1x1 in the file, a single number in the"),
        ("fc.bias", torch.tensor(1.0), "fc.bias is a single number in the file, 4 in the"),
    ],
)
def test_load_model_refuses_other_shapes_of_a_number(
    make: Make, tmp_path: Path, name: str, value: torch.Tensor, said: str
) -> None:
    state = {**make("Scaled").build(4).state_dict(), name: value}
    assert said in misfit(make("Scaled"), state, tmp_path).message


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ("load", "it ends the program, by sys.exit(0) (tiny.py:"),
        ("eval", "Exception: only training (tiny.py:"),
    ],
)
def test_load_model_of_a_network_whose_code_fails(
    make: Make, tmp_path: Path, ends: str, said: str
) -> None:
    path = saved(make("Scaled").build(4).state_dict(), tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_model(make("Scaled"), path, arch_args={"ends": ends})
    assert said in caught.value.message
