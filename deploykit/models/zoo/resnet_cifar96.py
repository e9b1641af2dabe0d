"""The residual network of the ResNet tutorial, which trains CIFAR-10 at 96x96 (He et al. 2015).

Against torchvision's ResNet-18: the stem's convolution has a bias and no padding, a block applies
a ReLU before the sum too, and a shortcut's convolution has a bias and no normalisation.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.zoo import register
from deploykit.specs.preprocessing import Preprocessing

STEM_NORM_EPS = 1e-3


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        downsample: Whether to halve height and width, with a 1x1 convolution in the shortcut.
    """

    def __init__(self, channels_in: int, channels_out: int, *, downsample: bool = False) -> None:
        super().__init__()
        stride = 2 if downsample else 1
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv3 = (
            nn.Conv2d(channels_in, channels_out, 1, stride) if downsample else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) => (N, channels_out, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(y + self.conv3(x))


class ResNetCifar96(nn.Module):
    """A stem, four stages of two blocks each, 3x3 average pooling and a linear classifier."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.block1 = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2),
            nn.BatchNorm2d(64, eps=STEM_NORM_EPS),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )
        self.block2 = nn.Sequential(ResidualBlock(64, 64), ResidualBlock(64, 64))
        self.block3 = nn.Sequential(
            ResidualBlock(64, 128, downsample=True), ResidualBlock(128, 128)
        )
        self.block4 = nn.Sequential(
            ResidualBlock(128, 256, downsample=True), ResidualBlock(256, 256)
        )
        self.block5 = nn.Sequential(
            ResidualBlock(256, 512, downsample=True),
            ResidualBlock(512, 512),
            nn.AvgPool2d(3),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 96, 96) => (N, num_classes); the pooling fits an input of about this size only."""
        features = self.block5(self.block4(self.block3(self.block2(self.block1(x)))))
        logits: Tensor = self.classifier(features)
        return logits


@register(
    preprocessing=Preprocessing(
        resize=(96, 96), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), source="zoo resnet_cifar96"
    )
)
def resnet_cifar96(num_classes: int = 10) -> ResNetCifar96:
    """The ResNet tutorial's network."""
    return ResNetCifar96(num_classes)
