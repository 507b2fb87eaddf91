"""Residual networks for CIFAR, with the names of the weights that are published for them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.zoo._seed import seeded


class Shortcut(nn.Module):
    """Option A: every second pixel, and zeros for the channels that are new. No weights.

    Shapes:
        x (batch, channels, height, width) -> (batch, channels + added, height / 2, width / 2)
    """

    def __init__(self, added: int) -> None:
        super().__init__()
        self.before = added // 2
        self.after = added - added // 2

    def forward(self, x: Tensor) -> Tensor:
        """Subsample by two and pad the channels on both sides."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(out - channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions say to what came in."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A residual network for 32x32 images: three stages of 16, 32 and 64 channels.

    Shapes:
        x (batch, 3, 32, 32) -> (batch, classes)

    Source: K. He and others, 2016, Deep Residual Learning for Image Recognition, section 4.2.
    """

    def __init__(self, blocks: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


def _stage(channels: int, out: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(channels, out, stride)
    return nn.Sequential(first, *(BasicBlock(out, out, 1) for _ in range(blocks - 1)))


def resnet20(*, classes: int = 10, seed: int = 0) -> nn.Module:
    """Build ResNet-20 for CIFAR, 269 722 parameters for ten classes.

    ``zoo.pretrained("resnet20")`` has published weights; they want images whose channels are
    normalised as by ``datasets.load("cifar10", normalise=True)``.

    Args:
        classes: Number of classes.
        seed: Seed of the initial weights; the global random state is left alone.

    Example:
        >>> sum(p.numel() for p in resnet20().parameters())
        269722
    """
    return _resnet(3, classes, seed)


def resnet32(*, classes: int = 10, seed: int = 0) -> nn.Module:
    """Build ResNet-32 for CIFAR, 464 154 parameters for ten classes.

    Args:
        classes: Number of classes.
        seed: Seed of the initial weights; the global random state is left alone.
    """
    return _resnet(5, classes, seed)


def resnet56(*, classes: int = 10, seed: int = 0) -> nn.Module:
    """Build ResNet-56 for CIFAR, 853 018 parameters for ten classes.

    Args:
        classes: Number of classes.
        seed: Seed of the initial weights; the global random state is left alone.
    """
    return _resnet(9, classes, seed)


def _resnet(blocks: int, classes: int, seed: int) -> nn.Module:
    if classes < 1:
        raise ConfigError(
            f"resnet{6 * blocks + 2}: classes={classes} must be at least 1. Use 10 for CIFAR-10."
        )
    with seeded(seed):
        return CifarResNet(blocks, classes).eval()
