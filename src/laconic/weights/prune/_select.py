"""Choose exactly so many of the smallest values, ties by index."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def smallest(scores: Tensor, count: int) -> Tensor:
    """Return the map of the ``count`` smallest scores; among equals the first ones count.

    Shapes:
        scores any -> bool, the same shape
    """
    flat = scores.reshape(-1)
    if count <= 0 or count >= flat.numel():
        return torch.full(scores.shape, count > 0, dtype=torch.bool, device=scores.device)
    limit = flat.kthvalue(count).values
    chosen = flat < limit
    ties = (flat == limit).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.reshape(scores.shape)


def smallest_per_row(scores: Tensor, count: int) -> Tensor:
    """Return the map of the ``count`` smallest scores of every row, ties by index.

    Shapes:
        scores (rows, cols) -> bool (rows, cols)
    """
    order = scores.sort(dim=1, stable=True).indices[:, :count]
    chosen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return chosen.scatter_(1, order, True)


def smallest_in_groups(scores: Tensor, keep: int, size: int) -> Tensor:
    """Return the map of all but the ``keep`` largest of every ``size`` consecutive scores.

    Shapes:
        scores (rows, cols), size divides cols -> bool (rows, cols)
    """
    return smallest_per_row(scores.reshape(-1, size), size - keep).reshape(scores.shape)


def count_below(scores: Sequence[Tensor], total: int, caps: Sequence[int]) -> list[int]:
    """Split ``total`` prunings over tensors by one threshold on non-negative float32 scores.

    The smallest ``total`` scores of all tensors together are pruned; where a tensor would pass
    its cap it is held there and the threshold rises for the others. Ties at the threshold go to
    the first tensors. Exact, and without a sorted copy: the threshold is found by bisecting
    the 31 bits of the scores, which order as the scores do.

    Args:
        scores: Non-negative float32 tensors.
        total: How many are pruned in all; at most the sum of caps.
        caps: Greatest count for each tensor.
    """
    keys = [score.reshape(-1).contiguous().view(torch.int32) for score in scores]
    held: dict[int, int] = {}
    while True:
        free = [i for i in range(len(keys)) if i not in held]
        rest = total - sum(held.values())
        counts = _shares([keys[i] for i in free], rest)
        over = {i: caps[i] for i, count in zip(free, counts, strict=True) if count > caps[i]}
        if not over:
            split = dict(zip(free, counts, strict=True)) | held
            return [split[i] for i in range(len(keys))]
        held |= over


def _shares(keys: list[Tensor], total: int) -> list[int]:
    low, high = 0, 2**31 - 1  # the smallest threshold with at least `total` keys at or below it
    while low < high:
        middle = (low + high) // 2
        if sum(int((key <= middle).sum()) for key in keys) >= total:
            high = middle
        else:
            low = middle + 1
    below = [int((key < low).sum()) for key in keys]
    ties = [int((key == low).sum()) for key in keys]
    rest = total - sum(below)
    counts = []
    for under, tied in zip(below, ties, strict=True):
        extra = min(tied, rest)
        counts.append(under + extra)
        rest -= extra
    return counts
