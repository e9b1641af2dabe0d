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
def test_resolve_architecture_names_and_precedence(asked: str, canonical: str, origin: str) -> None:
    architecture = resolve_architecture(asked, allow_user_code=True)
    assert (architecture.name, architecture.origin) == (canonical, origin)


@pytest.mark.parametrize("name", ["mnasnet0_5", "efficientnet_b0", "timm/mobilenetv3_small_050"])
def test_architecture_build_with_number_of_classes(name: str) -> None:
    assert logits_of(name, 7) == (1, 7)


def test_architecture_build_without_auxiliary_heads() -> None:
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
def test_resolve_architecture_suggests_the_closest(name: str, closest: str) -> None:
    with pytest.raises(UsageError, match="no architecture") as caught:
        resolve_architecture(name, allow_user_code=True)
    assert closest in caught.value.hint


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "torchvision/fcn_resnet50", "r3d_18"])
def test_resolve_architecture_offers_only_classifiers(name: str) -> None:
    with pytest.raises(UsageError, match="no architecture"):
        resolve_architecture(name, allow_user_code=True)


def test_list_architectures_can_all_be_resolved() -> None:
    names = list_architectures()
    assert {"dpn92", "dpn98", "densenet", "resnet_cifar96"} <= set(names["zoo"])
    assert "torchvision/densenet121" in names["torchvision"]
    assert "timm/dpn92" in names["timm"]
    assert all(
        resolve_architecture(name, allow_user_code=True).name == name
        for name in names["torchvision"]
    )


def test_architecture_build_passes_arguments() -> None:
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
def test_architecture_build_refuses_unknown_arguments(
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
def test_architecture_build_refuses_arguments_that_download(name: str, argument: str) -> None:
    with pytest.raises(UsageError, match=f"takes no argument {argument}"):
        resolve_architecture(name, allow_user_code=True).build(2, {argument: True})


def test_architecture_build_refuses_number_of_classes_as_argument() -> None:
    with pytest.raises(UsageError, match="num_classes of densenet") as caught:
        resolve_architecture("densenet", allow_user_code=False).build(2, {"num_classes": 4})
    assert "read off the weights" in caught.value.hint


def test_architecture_build_refused_value_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot be made with block_config=6: TypeError"):
        resolve_architecture("densenet", allow_user_code=False).build(2, {"block_config": 6})


def test_architecture_build_impossible_is_an_architecture_error() -> None:
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
def test_parse_arch_args_values(text: str, value: object) -> None:
    parsed = parse_arch_args([f"key={text}"])["key"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_parse_arch_args_keeps_order() -> None:
    assert list(parse_arch_args(["k = 2", "bn_size=4"]).items()) == [("k", 2), ("bn_size", 4)]


@pytest.mark.parametrize("item", ["k", "k=", "=2", "a b=2", "2k=1"])
def test_parse_arch_args_refuses_other_items(item: str) -> None:
    with pytest.raises(UsageError, match="is not KEY=VALUE"):
        parse_arch_args([item])


def test_parse_arch_args_refuses_repeated_keys() -> None:
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
def test_timm_preprocessing_equals_transform_of_timm(name: str) -> None:
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


def test_timm_preprocessing_values_and_source() -> None:
    assert timm_preprocessing(
        resolve_architecture("timm/resnet18.tv_in1k", allow_user_code=False)
    ) == Preprocessing(
        resize=256, crop_size=(224, 224), mean=IMAGENET_MEAN, source="timm resnet18.tv_in1k"
    )


def test_timm_preprocessing_of_other_networks() -> None:
    with pytest.raises(UsageError, match="dpn92 is not a timm network"):
        timm_preprocessing(resolve_architecture("dpn92", allow_user_code=False))


def test_timm_preprocessing_refuses_what_it_cannot_express() -> None:
    with pytest.raises(UsageError, match="3x546x546, crop mode border"):
        timm_preprocessing(resolve_architecture("timm/deepseek_vit_412m", allow_user_code=False))
