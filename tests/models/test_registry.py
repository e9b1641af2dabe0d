"""Architectures by name, their arguments, and the preprocessing that timm documents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deploykit.errors import ArchitectureError, UsageError
from deploykit.models.registry import (
    list_architectures,
    parse_arch_args,
    resolve_architecture,
    timm_preprocessing,
)
from deploykit.specs.preprocessing import IMAGENET_MEAN, Preprocessing

IMAGES = torch.zeros(1, 3, 64, 64)


def logits_of(name: str, num_classes: int, **arch_args: object) -> torch.Size:
    module = resolve_architecture(name, allow_user_code=True).build(num_classes, arch_args)
    with torch.inference_mode():
        return module.eval()(IMAGES).shape


@pytest.mark.parametrize(
    ("asked", "canonical", "origin"),
    [
        ("dpn92", "dpn92", "zoo"),
        ("densenet", "densenet", "zoo"),
        ("densenet121", "torchvision/densenet121", "torchvision"),
        ("torchvision/mnasnet1_0", "torchvision/mnasnet1_0", "torchvision"),
        ("resnext50_32x4d", "torchvision/resnext50_32x4d", "torchvision"),
        ("timm/dpn92", "timm/dpn92", "timm"),
        ("timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k", "timm"),
    ],
)
def test_names_and_their_precedence(asked: str, canonical: str, origin: str) -> None:
    architecture = resolve_architecture(asked, allow_user_code=True)
    assert (architecture.name, architecture.origin) == (canonical, origin)


@pytest.mark.parametrize("name", ["mnasnet0_5", "efficientnet_b0", "timm/mobilenetv3_small_050"])
def test_library_networks_have_the_number_of_classes_asked_for(name: str) -> None:
    assert logits_of(name, 7) == (1, 7)


def test_networks_with_training_heads_give_plain_logits() -> None:
    assert logits_of("googlenet", 3) == (1, 3)


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("dnp92", "dpn92"),
        ("densnet121", "torchvision/densenet121"),
        ("tf_efficientnet_b0", "timm/tf_efficientnet_b0"),
        ("timm/resnet18.never_trained", "resnet18"),
        ("torchvision/dpn92", "dpn92"),
    ],
)
def test_an_unknown_name_gets_the_closest(name: str, closest: str) -> None:
    with pytest.raises(UsageError, match="no architecture") as caught:
        resolve_architecture(name, allow_user_code=True)
    assert closest in caught.value.hint


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "torchvision/fcn_resnet50", "r3d_18"])
def test_only_classifiers_are_offered(name: str) -> None:
    with pytest.raises(UsageError, match="no architecture"):
        resolve_architecture(name, allow_user_code=True)


def test_the_list_names_what_can_be_resolved() -> None:
    names = list_architectures()
    assert {"dpn92", "dpn98", "densenet", "resnet_cifar96"} <= set(names["zoo"])
    assert "torchvision/densenet121" in names["torchvision"]
    assert "timm/dpn92" in names["timm"]
    assert all(
        resolve_architecture(name, allow_user_code=True).name == name
        for name in names["torchvision"]
    )


def test_arguments_reach_the_network() -> None:
    module = resolve_architecture("mobilenet_v2", allow_user_code=False).build(
        2, {"width_mult": 0.35}
    )
    assert isinstance(module, nn.Module)
    assert module.get_parameter("features.0.0.weight").shape[0] == 16


@pytest.mark.parametrize(
    ("name", "argument", "accepted"),
    [
        ("densenet", "growth", "growth_rate"),
        ("densenet121", "growth", "growth_rate"),
        ("timm/resnet18", "groups", "cardinality"),
    ],
)
def test_an_unknown_argument_gets_the_accepted_ones(
    name: str, argument: str, accepted: str
) -> None:
    with pytest.raises(UsageError, match=f"takes no argument {argument}") as caught:
        resolve_architecture(name, allow_user_code=True).build(2, {argument: 1})
    assert accepted in caught.value.hint
    assert "num_classes" not in caught.value.hint


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("resnet18", "weights"),
        ("googlenet", "aux_logits"),
        ("timm/resnet18", "pretrained"),
        ("timm/efficientvit_b0", "pretrained"),
        ("timm/efficientvit_b0", "checkpoint_path"),
    ],
)
def test_nothing_is_downloaded_or_read_by_an_argument(name: str, argument: str) -> None:
    with pytest.raises(UsageError, match=f"takes no argument {argument}"):
        resolve_architecture(name, allow_user_code=True).build(2, {argument: True})


def test_the_number_of_classes_is_no_argument_of_the_user() -> None:
    with pytest.raises(UsageError, match="num_classes of densenet") as caught:
        resolve_architecture("densenet", allow_user_code=False).build(2, {"num_classes": 4})
    assert "read off the weights" in caught.value.hint


def test_a_value_that_the_network_refuses_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot be made with block_config=6: TypeError"):
        resolve_architecture("densenet", allow_user_code=False).build(2, {"block_config": 6})


def test_a_network_that_cannot_be_made_at_all_is_not_the_users_mistake() -> None:
    with pytest.raises(ArchitectureError, match="vit_b_16 cannot be made: "):
        resolve_architecture("vit_b_16", allow_user_code=False).build(-1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("0.25", 0.25),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", False),
        ("none", None),
        ("6,12,24,16", (6, 12, 24, 16)),
        ("[2, 2]", [2, 2]),
        ("{'group': 32, 'num': (3, 4)}", {"group": 32, "num": (3, 4)}),
        ("relu", "relu"),
        ("basic,true,3", ("basic", True, 3)),
        ("a=b", "a=b"),
        ("007", "007"),
    ],
)
def test_values(text: str, value: object) -> None:
    parsed = parse_arch_args([f"key={text}"])["key"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_several_items_keep_their_order() -> None:
    assert list(parse_arch_args(["k = 2", "bn_size=4"]).items()) == [("k", 2), ("bn_size", 4)]


@pytest.mark.parametrize("item", ["k", "k=", "=2", "a b=2", "2k=1"])
def test_what_is_not_key_value_is_refused(item: str) -> None:
    with pytest.raises(UsageError, match="is not KEY=VALUE"):
        parse_arch_args([item])


def test_a_key_comes_once() -> None:
    with pytest.raises(UsageError, match="k is given twice"):
        parse_arch_args(["k=1", "k=2"])


def applied(preprocessing: Preprocessing, photo: Image.Image) -> torch.Tensor:
    """Do what a Preprocessing says, with torchvision's transforms."""
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    filter_name = InterpolationMode(preprocessing.interpolation)
    steps = [
        transforms.Resize(preprocessing.resize, filter_name),
        transforms.CenterCrop(preprocessing.crop_size),
        transforms.ToTensor(),
        transforms.Normalize(preprocessing.mean, preprocessing.std),
    ]
    return transforms.Compose(steps)(photo)


@pytest.mark.parametrize(
    "name",
    ["resnet18.tv_in1k", "dpn92", "dm_nfnet_f0", "coat_lite_medium_384"],
)
def test_it_is_timms_own_transform(name: str) -> None:
    import timm.data

    pixels = np.random.default_rng(0).integers(0, 256, (300, 417, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    settings = timm.get_pretrained_cfg(name).to_dict()
    config = timm.data.resolve_data_config(pretrained_cfg=settings)
    theirs = timm.data.create_transform(**config)(photo)
    ours = applied(
        timm_preprocessing(resolve_architecture(f"timm/{name}", allow_user_code=False)), photo
    )
    assert torch.equal(ours, theirs)


def test_its_values_and_their_source() -> None:
    assert timm_preprocessing(
        resolve_architecture("timm/resnet18.tv_in1k", allow_user_code=False)
    ) == Preprocessing(
        resize=256, crop_size=(224, 224), mean=IMAGENET_MEAN, source="timm resnet18.tv_in1k"
    )


def test_only_timm_has_it() -> None:
    with pytest.raises(UsageError, match="dpn92 is not a timm network"):
        timm_preprocessing(resolve_architecture("dpn92", allow_user_code=False))


def test_what_a_preprocessing_cannot_say_is_refused() -> None:
    with pytest.raises(UsageError, match="3x546x546, crop mode border"):
        timm_preprocessing(resolve_architecture("timm/deepseek_vit_412m", allow_user_code=False))
