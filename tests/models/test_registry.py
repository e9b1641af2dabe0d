import pytest
import torch
from torch import nn

from deploykit.errors import ArchitectureError, UsageError
from deploykit.models.registry import list_architectures, resolve_architecture

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
