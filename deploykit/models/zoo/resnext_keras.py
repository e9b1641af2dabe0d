"""The ResNeXt-50 of the Keras tutorial, as Keras runs it.

The tutorial makes the 32 groups of a convolution in a loop over ``c``, each with a layer
``Lambda(lambda x: x[..., c*width:(c+1)*width])``. When the network runs, ``c`` is what the loop
left, so that all groups convolve the last slice: together they are one dense convolution of it.
Whoever bound ``c`` has a grouped convolution (Xie et al. 2017), with weights of the same shapes.

Against torchvision's ``resnext50_32x4d``: the stem's convolution has a bias, epsilon is 1.001e-5,
and a stride of 2 pads as TensorFlow's "same" does, which differs by one pixel.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.zoo import register
from deploykit.specs.preprocessing_options import KERAS

GROUPS = 32
NORM_EPS = 1.001e-5
#: Of each stage: channels within a block, blocks, the first block's stride.
STAGES = ((128, 3, 1), (256, 4, 2), (512, 6, 2), (1024, 3, 2))
_STEM_CHANNELS = 64


class SameConv2d(nn.Conv2d):
    """A 3x3 convolution that pads as TensorFlow's "same": an odd row goes to the end."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        """(N, C, H, W) => (N, C', ceil(H / stride), ceil(W / stride))."""
        padding: list[int] = []
        for length, stride in zip(input.shape[:1:-1], self.stride[::-1], strict=True):
            total = max((-(-length // stride) - 1) * stride + 3 - length, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(functional.pad(input, padding))


class LastSliceConv2d(SameConv2d):
    """What the tutorial's groups are together: a dense convolution of the last slice.

    Args:
        channels: Channels of the input and of the output.
        stride: In both directions.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels // GROUPS, channels, 3, stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        """(N, channels, H, W) => (N, channels, ceil(H / stride), ceil(W / stride))."""
        return super().forward(input[:, -self.in_channels :])


class GroupedConv2d(SameConv2d):
    """A convolution in groups, each of a slice of its own; weights as in the other.

    Args:
        channels: Channels of the input and of the output.
        stride: In both directions.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride, groups=GROUPS, bias=False)


class Block(nn.Module):
    """Three convolutions beside a shortcut, in the order in which the tutorial makes them.

    Args:
        channels_in: Channels of the input.
        channels: Channels within; the output has twice as many.
        stride: Of the convolution in groups.
        projects: Whether the shortcut has a 1x1 convolution.
        kind: How the groups are convolved.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        *,
        projects: bool,
        kind: type[LastSliceConv2d | GroupedConv2d],
    ) -> None:
        super().__init__()
        self.shortcut = (
            nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(channels_in, 2 * channels, 1, stride, bias=False),
                    norm=nn.BatchNorm2d(2 * channels, eps=NORM_EPS),
                )
            )
            if projects
            else nn.Identity()
        )
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels, eps=NORM_EPS)
        self.conv2 = kind(channels, stride)
        self.norm2 = nn.BatchNorm2d(channels, eps=NORM_EPS)
        self.conv3 = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(2 * channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) => (N, 2 channels, ceil(H / stride), ceil(W / stride))."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = functional.relu(self.norm2(self.conv2(y)))
        return functional.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class KerasResNeXt(nn.Module):
    """A stem, four stages of blocks, global average pooling and a linear classifier.

    Args:
        num_classes: The number of logits.
        kind: How the groups are convolved.
    """

    def __init__(self, num_classes: int, kind: type[LastSliceConv2d | GroupedConv2d]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, _STEM_CHANNELS, 7, 2, padding=3)
        self.norm = nn.BatchNorm2d(_STEM_CHANNELS, eps=NORM_EPS)
        # The tutorial pads with 0, which after a ReLU is what leaving the border out gives.
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        channels_in = _STEM_CHANNELS
        stages = []
        for channels, blocks, stride in STAGES:
            first = Block(channels_in, channels, stride, projects=True, kind=kind)
            channels_in = 2 * channels
            others = [
                Block(channels_in, channels, 1, projects=False, kind=kind)
                for _ in range(blocks - 1)
            ]
            stages.append(nn.Sequential(first, *others))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), in 0..255 => (N, num_classes)."""
        x = self.pool(functional.relu(self.norm(self.conv(x))))
        logits: Tensor = self.classifier(torch.mean(self.stages(x), (2, 3)))
        return logits


@register(preprocessing=KERAS)
def resnext50_keras(num_classes: int = 4) -> KerasResNeXt:
    """The Keras tutorial's ResNeXt-50, whose groups all convolve the last slice."""
    return KerasResNeXt(num_classes, LastSliceConv2d)


@register(preprocessing=KERAS)
def resnext50_keras_grouped(num_classes: int = 4) -> KerasResNeXt:
    """The same with ``c`` bound: each group convolves a slice of its own."""
    return KerasResNeXt(num_classes, GroupedConv2d)
