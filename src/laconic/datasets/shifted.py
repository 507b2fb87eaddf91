"""Random shifts of images: the plainest augmentation, for small image sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.errors import ConfigError
from laconic.task import Batch, TensorSplit


@dataclass(frozen=True)
class ShiftedSplit:
    """Examples whose images are moved by up to ``pixels`` each time they are drawn shuffled.

    Walked in order (no generator) the images are as they were, so calibration sees real ones.

    Args:
        split: Examples with images under ``x``, (examples, channels, height, width).
        pixels: Largest shift in each direction; what comes in is zero.
    """

    split: TensorSplit
    pixels: int = 1

    def __post_init__(self) -> None:
        images = self.split.tensors.get("x")
        if self.pixels < 1 or images is None or images.dim() != 4:
            raise ConfigError(
                f"ShiftedSplit: pixels={self.pixels} must be at least 1, and x must be images "
                "(examples, channels, height, width)."
            )

    def __len__(self) -> int:
        return len(self.split)

    def take(self, count: int) -> TensorSplit:
        """Return the first examples as they were, not shifted."""
        return self.split.take(count)

    def batches(self, size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield batches; with a generator the images are shuffled and shifted by it."""
        for batch in self.split.batches(size, generator=generator):
            if generator is None:
                yield batch
            else:
                yield {**batch, "x": self._shift(batch["x"], generator)}

    def _shift(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        padded = F.pad(images, (self.pixels,) * 4)
        moves = torch.randint(0, 2 * self.pixels + 1, (2, count), generator=generator)
        rows = moves[0, :, None] + torch.arange(height)
        columns = moves[1, :, None] + torch.arange(width)
        picked = torch.arange(count)[:, None, None]
        return padded[picked, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
