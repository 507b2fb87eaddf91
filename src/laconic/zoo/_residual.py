"""A small residual network with both kinds of shortcut."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.zoo._seed import seeded


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norms; the shortcut is the input or a 1x1 convolution.

    Shapes:
        x (batch, channels, height, width) -> (batch, out, height / stride, width / stride)
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions say to the shortcut."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ConvBnResidual(nn.Module):
    """A convolution, residual blocks, and a linear head on the mean of all places.

    Shapes:
        x (batch, channels, height, width) -> (batch, classes)
    """

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block1 = ResidualBlock(width, width, 1)
        self.block2 = ResidualBlock(width, 2 * width, 2)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = self.block2(self.block1(F.relu(self.norm(self.stem(x)))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def conv_bn_residual(
    *, channels: int = 1, width: int = 16, classes: int = 10, seed: int = 0
) -> nn.Module:
    """Build two residual blocks (He and others, 2016), of ``width`` and twice as many channels.

    The first block's shortcut is its input, so its channels are tied to those of the stem; the
    second's is a 1x1 convolution with stride 2. Images of any size from 2x2 go in.

    Args:
        channels: Channels of the images.
        width: Channels of the stem.
        classes: Number of classes.
        seed: Seed of the initial weights; the global random state is left alone.

    Raises:
        ConfigError: A number below 1.
    """
    if min(channels, width, classes) < 1:
        raise ConfigError(
            f"conv_bn_residual: channels={channels}, width={width}, classes={classes}; all must"
            " be at least 1. Use for example 1, 16 and 10."
        )
    with seeded(seed):
        return ConvBnResidual(channels, width, classes).eval()
