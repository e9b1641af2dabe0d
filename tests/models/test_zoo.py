"""The zoo against numbers that the tutorials' own code gave, in float64.

``golden/*.json``: parameter count, SHA-256 of the state_dict's ``[[name, shape], ...]`` as compact
JSON, and the logits of one input.
"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploykit.models.registry import resolve_architecture
from deploykit.models.zoo import register
from deploykit.models.zoo.densenet import DenseLayer
from deploykit.specs.preprocessing import Preprocessing

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, object]:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def made_weight(name: str, like: Tensor) -> Tensor:
    """The weight that the golden numbers were computed with: a function of its name and shape."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    kind, shape = name.rpartition(".")[2], tuple(like.shape)
    if kind == "num_batches_tracked":
        return torch.zeros_like(like)
    if kind in ("running_mean", "bias"):
        values = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values).to(like.dtype)


def assert_names_and_shapes(module: nn.Module, name: str) -> None:
    expected = golden(name)
    shapes = [[key, list(value.shape)] for key, value in module.state_dict().items()]
    digest = hashlib.sha256(json.dumps(shapes, separators=(",", ":")).encode()).hexdigest()
    assert digest == expected["names_and_shapes_sha256"]
    assert sum(p.numel() for p in module.parameters()) == expected["parameters"]


def assert_golden(module: nn.Module, name: str) -> None:
    assert_names_and_shapes(module, name)
    expected, state = golden(name), module.state_dict()
    module.load_state_dict({key: made_weight(key, value) for key, value in state.items()})
    images = np.random.default_rng(0).standard_normal(expected["input_shape"]).astype(np.float32)
    with torch.inference_mode():
        logits = module.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(
        logits, expected["logits"], rtol=0, atol=10 * expected["float32_max_abs_error"]
    )


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        pytest.param("dpn92", "dpn92", marks=pytest.mark.slow),
        ("resnet_cifar96", "resnet_cifar96"),
        ("densenet", "densenet121"),
        ("torchvision/densenet121", "densenet121"),
    ],
)
def test_zoo_networks_equal_the_tutorials(architecture: str, name: str) -> None:
    num_classes = golden(name)["num_classes"]
    assert_golden(resolve_architecture(architecture, allow_user_code=True).build(num_classes), name)


def test_dpn92_names_and_shapes_of_the_tutorial() -> None:
    with torch.device("meta"):
        assert_names_and_shapes(
            resolve_architecture("dpn92", allow_user_code=False).build(4), "dpn92"
        )


class PooledLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = DenseLayer(64, growth_rate=32, bn_size=4, k=2, drop_rate=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3))


def test_dense_layer_appends_k_growth_rates() -> None:
    assert_golden(PooledLayer(), "dense_layer_k2")


def test_dpn98_shapes() -> None:
    with torch.device("meta"):
        module = resolve_architecture("dpn98", allow_user_code=False).build(7)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert shapes["conv1.0.weight"] == (96, 3, 7, 7)
    assert shapes["conv4.19.conv2.0.weight"] == (640, 640 // 40, 3, 3)
    assert shapes["fc.weight"] == (7, 2048 + 4 * 128)


def test_densenet_arguments_change_the_network() -> None:
    small = {"growth_rate": 8, "block_config": (2, 3), "num_init_features": 16, "bn_size": 2}
    module = resolve_architecture("densenet", allow_user_code=False).build(
        5, {**small, "k": 3, "drop_rate": 0.2}
    )
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    first_block = 16 + 2 * 3 * 8
    assert shapes["features.denseblock1.denselayer2.conv1.weight"] == (16, 16 + 3 * 8, 1, 1)
    assert shapes["features.transition1.conv.weight"] == (first_block // 2, first_block, 1, 1)
    assert shapes["classifier.weight"] == (5, first_block // 2 + 3 * 3 * 8)


def test_dense_layer_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    layer = DenseLayer(4, growth_rate=8, bn_size=1, k=1, drop_rate=0.5)
    images = torch.randn(2, 4, 8, 8)
    assert not torch.equal(layer.train()(images), layer(images))
    assert torch.equal(layer.eval()(images), layer(images))


def test_zoo_preprocessing() -> None:
    preprocessing = resolve_architecture("resnet_cifar96", allow_user_code=False).preprocessing
    assert preprocessing == Preprocessing(
        resize=(96, 96), mean=(0.5,) * 3, std=(0.5,) * 3, source="zoo resnet_cifar96"
    )
    assert resolve_architecture("dpn92", allow_user_code=False).preprocessing is None


def test_register_refuses_a_repeated_name() -> None:
    def dpn92(num_classes: int) -> nn.Module:
        return nn.Linear(1, num_classes)

    with pytest.raises(ValueError, match="two networks named 'dpn92'"):
        register()(dpn92)
