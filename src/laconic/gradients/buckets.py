"""A tensor cut into runs of entries that share a scale."""

from __future__ import annotations

import torch
from torch import Tensor


def bucket_count(length: int, size: int | None) -> int:
    """Return how many runs of ``size`` entries cover a tensor; None is one run.

    >>> bucket_count(1025, 512), bucket_count(7, None)
    (3, 1)
    """
    return 1 if size is None else -(-length // size)


def cut(values: Tensor, size: int | None) -> Tensor:
    """Return entries (n,) as runs (buckets, size), zeros behind the last; a view where it fits."""
    if size is None:
        return values.view(1, -1)
    spare = -values.numel() % size
    return (torch.nn.functional.pad(values, (0, spare)) if spare else values).view(-1, size)


def join(runs: Tensor, length: int) -> Tensor:
    """Return runs as the ``length`` entries that :func:`cut` was given."""
    return runs.reshape(-1)[:length]
