"""DenseNet (Huang et al., https://arxiv.org/abs/1608.06993) with the DenseNet tutorial's ``k``.

In the tutorial a layer appends ``k * growth_rate`` channels. With ``k = 1`` names, shapes and
results are those of torchvision's DenseNet, whose checkpoints then load.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.zoo import register


class DenseLayer(nn.Module):
    """A bottleneck whose output is appended to its input.

    Args:
        channels_in: Channels of the input.
        growth_rate: The unit in which channels grow.
        bn_size: Channels inside the bottleneck, in units of ``growth_rate``.
        k: Channels appended, in units of ``growth_rate``.
        drop_rate: Probability of dropping an appended value in training.
    """

    def __init__(
        self, channels_in: int, growth_rate: int, bn_size: int, k: int, drop_rate: float
    ) -> None:
        width = bn_size * growth_rate
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, k * growth_rate, 3, padding=1, bias=False)
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) => (N, channels_in + k * growth_rate, H, W)."""
        new = self.conv1(functional.relu(self.norm1(x)))
        new = self.conv2(functional.relu(self.norm2(new)))
        new = functional.dropout(new, self.drop_rate, self.training)
        return torch.cat([x, new], dim=1)


def _transition(channels: int) -> nn.Sequential:
    """Halves channels, height and width."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2, 2),
        )
    )


class DenseNet(nn.Module):
    """A stem, dense blocks with transitions between them, global pooling, a linear classifier.

    Args:
        num_classes: Number of logits.
        growth_rate: The unit in which channels grow.
        block_config: Layers, a number a block.
        num_init_features: Channels after the stem.
        bn_size: Channels inside a bottleneck, in units of ``growth_rate``.
        k: Channels that a layer appends, in units of ``growth_rate``.
        drop_rate: Probability of dropping an appended value in training.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        growth_rate: int,
        block_config: Sequence[int],
        num_init_features: int,
        bn_size: int,
        k: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv0=nn.Conv2d(3, num_init_features, 7, 2, padding=3, bias=False),
                norm0=nn.BatchNorm2d(num_init_features),
                relu0=nn.ReLU(inplace=True),
                pool0=nn.MaxPool2d(3, 2, padding=1),
            )
        )
        channels = num_init_features
        for block, depth in enumerate(block_config, start=1):
            if block > 1:
                self.features.add_module(f"transition{block - 1}", _transition(channels))
                channels //= 2
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for layer in range(1, depth + 1):
                layers[f"denselayer{layer}"] = DenseLayer(
                    channels, growth_rate, bn_size, k, drop_rate
                )
                channels += k * growth_rate
            self.features.add_module(f"denseblock{block}", nn.Sequential(layers))
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) => (N, num_classes)."""
        features = functional.relu(self.features(x))
        pooled = functional.adaptive_avg_pool2d(features, 1)
        logits: Tensor = self.classifier(pooled.flatten(1))
        return logits


@register()
def densenet(
    num_classes: int = 1000,
    growth_rate: int = 32,
    block_config: Sequence[int] = (6, 12, 24, 16),
    num_init_features: int = 64,
    bn_size: int = 4,
    k: int = 1,
    drop_rate: float = 0.0,
) -> DenseNet:
    """The DenseNet tutorial's network; the defaults are DenseNet-121."""
    return DenseNet(
        num_classes,
        growth_rate=growth_rate,
        block_config=block_config,
        num_init_features=num_init_features,
        bn_size=bn_size,
        k=k,
        drop_rate=drop_rate,
    )
