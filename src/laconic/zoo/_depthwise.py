"""A small network of depthwise separable convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.zoo._seed import seeded


class SeparableBlock(nn.Module):
    """A 3x3 convolution of each channel on its own, then a 1x1 convolution across channels.

    Shapes:
        x (batch, channels, height, width) -> (batch, out, height / stride, width / stride)
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False
        )
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, out, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Filter each channel, then mix them."""
        return F.relu(self.norm2(self.pointwise(F.relu(self.norm1(self.depthwise(x))))))


class DepthwiseNet(nn.Module):
    """A convolution, separable blocks, and a linear head on the mean of all places.

    Shapes:
        x (batch, channels, height, width) -> (batch, classes)
    """

    def __init__(self, channels: int, width: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        widths = [width] + [2 * width] * blocks
        self.blocks = nn.Sequential(
            *(
                SeparableBlock(widths[i], widths[i + 1], stride=2 if i == 0 else 1)
                for i in range(blocks)
            )
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def depthwise_conv(
    *, channels: int = 1, width: int = 16, blocks: int = 3, classes: int = 10, seed: int = 0
) -> nn.Module:
    """Build a small network in the manner of MobileNet (Howard and others, 2017, section 3).

    The first block halves the image and doubles the channels. Images of any size from 2x2 go in.

    Args:
        channels: Channels of the images.
        width: Channels of the stem.
        blocks: Separable blocks.
        classes: Number of classes.
        seed: Seed of the initial weights; the global random state is left alone.

    Raises:
        ConfigError: A number below 1.
    """
    if min(channels, width, blocks, classes) < 1:
        raise ConfigError(
            f"depthwise_conv: channels={channels}, width={width}, blocks={blocks},"
            f" classes={classes}; all must be at least 1. Use for example 1, 16, 3 and 10."
        )
    with seeded(seed):
        return DepthwiseNet(channels, width, blocks, classes).eval()
