"""Helpers that every loader uses: bounds of options and the calibration draw."""

from __future__ import annotations

import torch

from laconic.errors import ConfigError
from laconic.task import TensorSplit


def check_at_least(name: str, option: str, value: int | None, low: int) -> None:
    """Raise ConfigError unless ``value`` is None or a whole number of at least ``low``."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(
            f"data set {name!r}: {option}={value!r} must be a whole number of at least {low}."
        )


def draw(split: TensorSplit, count: int, seed: int) -> TensorSplit:
    """Return ``count`` examples drawn without replacement, or all in random order if fewer."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]
    return TensorSplit({name: tensor[order] for name, tensor in split.tensors.items()})


def shorten(split: TensorSplit, limit: int | None) -> TensorSplit:
    """Return the first ``limit`` examples, or all where it is None."""
    return split if limit is None else split.take(limit)
