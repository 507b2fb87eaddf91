"""A small vision transformer for 8x8 digits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.zoo._seed import seeded


class Attention(nn.Module):
    """Attention with four plain linear layers, so that each is a site of its own.

    Args:
        width: Channels; must be a multiple of ``heads``.
        heads: Attention heads.

    Shapes:
        x (batch, tokens, width) -> the same
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Let every token look at every token."""
        q, k, v = self._split(self.q(x)), self._split(self.k(x)), self._split(self.v(x))
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        width = x.size(2) // self.heads
        return x.view(x.size(0), x.size(1), self.heads, width).transpose(1, 2)


class Block(nn.Module):
    """A transformer block, norms first."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, expansion * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add what attention says, then what the two layers say."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """A convolution, patches, blocks, and a linear head on the mean of all tokens.

    Shapes:
        x (batch, channels, size, size) -> (batch, classes)

    Source: A. Dosovitskiy and others, 2021, An Image is Worth 16x16 Words, section 3.1.
    Differs: a 3x3 convolution comes before the patches and the mean takes the place of the class
    token (T. Xiao and others, 2021, Early Convolutions Help Transformers See Better): on a
    thousand images that is the difference between 90 and 95 %.
    """

    def __init__(
        self,
        *,
        size: int,
        patch: int,
        channels: int,
        classes: int,
        width: int,
        depth: int,
        heads: int,
        expansion: int,
    ) -> None:
        super().__init__()
        tokens = (size // patch) ** 2
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.act = nn.GELU()
        self.patch = nn.Conv2d(width, width, patch, stride=patch)
        self.position = nn.Parameter(torch.empty(1, tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads, expansion) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        tokens = self.patch(self.act(self.stem(x))).flatten(2).transpose(1, 2)
        hidden = self.blocks(tokens + self.position)
        out: Tensor = self.head(self.norm(hidden).mean(1))
        return out


def digits_vit(
    *, width: int = 96, depth: int = 4, heads: int = 4, expansion: int = 4, seed: int = 0
) -> nn.Module:
    """Build a vision transformer for the data set ``digits``, 490 000 parameters by default.

    An image of 8x8 becomes 16 patches of 2x2.

    Args:
        width: Channels; a multiple of ``heads``.
        depth: Number of blocks.
        heads: Attention heads.
        expansion: Hidden channels of a block's two layers, as a multiple of ``width``.
        seed: Seed of the initial weights; the global random state is left alone.

    Raises:
        ConfigError: A number below 1, or ``heads`` does not divide ``width``.

    Example:
        >>> digits_vit()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if min(width, depth, heads, expansion) < 1 or width % heads:
        raise ConfigError(
            f"digits_vit: width={width}, depth={depth}, heads={heads}, expansion={expansion};"
            " all must be at least 1 and heads must divide width. Use for example 96 and 4."
        )
    with seeded(seed):
        return VisionTransformer(
            size=8,
            patch=2,
            channels=1,
            classes=10,
            width=width,
            depth=depth,
            heads=heads,
            expansion=expansion,
        ).eval()
