"""Dual path networks (Chen et al., https://arxiv.org/abs/1707.01629), as the DPN tutorial has them.

It departs from the paper, and from timm's ``dpn92``, in ways that checkpoints and results depend
on: the stem's max pool has no padding, a stage's shortcut is a 3x3 convolution, and batch
normalisation comes after each convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.models.zoo import register

RESIDUAL_CHANNELS = (256, 512, 1024, 2048)


def _conv_norm(
    channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A convolution that keeps the size at stride 1, and its normalisation."""
    convolution = nn.Conv2d(
        channels_in, channels_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return [convolution, nn.BatchNorm2d(channels_out)]


class DualPathBlock(nn.Module):
    """A bottleneck whose first output channels are added to the input, and whose last are appended.

    Args:
        channels_in: Channels of the input.
        width: Channels inside the bottleneck.
        residual: Channels that are added.
        dense: Channels that are appended.
        stride: Stride of the 3x3 convolution, and of the shortcut.
        groups: Groups of the 3x3 convolution.
        shortcut: Whether the input goes through a convolution first, as in a stage's first block;
            the output then has ``residual + 2 * dense`` channels, else ``channels_in + dense``.
    """

    def __init__(
        self,
        channels_in: int,
        width: int,
        residual: int,
        dense: int,
        *,
        stride: int,
        groups: int,
        shortcut: bool,
    ) -> None:
        super().__init__()
        self.residual = residual
        channels = residual + dense
        self.conv1 = nn.Sequential(*_conv_norm(channels_in, width, 1), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(
            *_conv_norm(width, width, 3, stride=stride, groups=groups), nn.ReLU(inplace=True)
        )
        self.conv3 = nn.Sequential(*_conv_norm(width, channels, 1))
        self.shortcut = (
            nn.Sequential(*_conv_norm(channels_in, channels, 3, stride=stride))
            if shortcut
            else nn.Identity()
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) => (N, channels_out, H / stride, W / stride)."""
        new = self.conv3(self.conv2(self.conv1(x)))
        old = self.shortcut(x)
        added = old[:, : self.residual] + new[:, : self.residual]
        paths = [added, old[:, self.residual :], new[:, self.residual :]]
        joined: Tensor = self.relu(torch.cat(paths, dim=1))
        return joined


def _stage(
    channels: int, width: int, residual: int, dense: int, depth: int, stride: int, groups: int
) -> nn.Sequential:
    """Blocks that give ``residual + (depth + 1) * dense`` channels; the first has the stride."""
    blocks = nn.Sequential()
    for index in range(depth):
        first = index == 0
        block = DualPathBlock(
            channels,
            width,
            residual,
            dense,
            stride=stride if first else 1,
            groups=groups,
            shortcut=first,
        )
        blocks.append(block)
        channels = residual + (index + 2) * dense
    return blocks


class DPN(nn.Module):
    """A dual path network: a stem, four stages, global average pooling and a linear classifier.

    Args:
        num_classes: Number of logits.
        groups: Groups of each 3x3 convolution.
        stem: Channels after the stem.
        widths: Channels inside the bottlenecks, a number a stage.
        dense: Channels that each block appends, a number a stage.
        depths: Blocks, a number a stage.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        groups: int,
        stem: int,
        widths: tuple[int, int, int, int],
        dense: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
    ) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            *_conv_norm(3, stem, 7, stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)
        )
        stages: list[nn.Sequential] = []
        channels = stem
        for stage, (residual, depth) in enumerate(zip(RESIDUAL_CHANNELS, depths, strict=True)):
            stride = 1 if stage == 0 else 2
            stages.append(
                _stage(channels, widths[stage], residual, dense[stage], depth, stride, groups)
            )
            channels = residual + (depth + 1) * dense[stage]
        self.conv2, self.conv3, self.conv4, self.conv5 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) => (N, num_classes)."""
        features = self.conv5(self.conv4(self.conv3(self.conv2(self.conv1(x)))))
        logits: Tensor = self.fc(self.pool(features).flatten(1))
        return logits


@register()
def dpn92(num_classes: int = 4) -> DPN:
    """The tutorial's DPN-92."""
    return DPN(
        num_classes,
        groups=32,
        stem=64,
        widths=(96, 192, 384, 768),
        dense=(16, 32, 24, 128),
        depths=(3, 4, 20, 3),
    )


@register()
def dpn98(num_classes: int = 4) -> DPN:
    """The tutorial's DPN-98."""
    return DPN(
        num_classes,
        groups=40,
        stem=96,
        widths=(160, 320, 640, 1280),
        dense=(16, 32, 32, 128),
        depths=(3, 6, 20, 3),
    )
