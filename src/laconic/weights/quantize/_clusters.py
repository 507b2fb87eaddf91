"""Exact one-dimensional k-means on sorted values."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_ROUNDS = 200


def cluster(values: Tensor, count: int, *, weights: Tensor | None = None) -> Tensor:
    """Return ``count`` centres of values by Lloyd's rounds from evenly spaced ones.

    The first centres are spread evenly from the least to the greatest value, which serves large
    values better than a random or density-based start (Han, Mao and Dally 2016, section 3.2).
    Values are sorted once; a round then costs a search of the borders. A centre that no value is
    nearest to is moved onto the value that is served worst. Where there are at most ``count``
    distinct values, these are the centres.

    Shapes:
        values (n,), weights (n,) -> (count,) float32, rising

    Args:
        values: Finite numbers, at least one.
        count: Number of centres.
        weights: How much the squared error of each value counts; all alike if None.
    """
    order = values.double().sort()
    x = order.values
    distinct = torch.unique_consecutive(x)
    if distinct.numel() <= count:
        padding = distinct[-1:].expand(count - distinct.numel())
        return torch.cat([distinct, padding]).float()
    w = torch.ones_like(x) if weights is None else weights.double()[order.indices]
    zero = x.new_zeros(1)
    weight_sums = torch.cat([zero, w.cumsum(0)])
    value_sums = torch.cat([zero, (w * x).cumsum(0)])
    centres = torch.linspace(0, 1, count, dtype=torch.float64, device=x.device)
    centres = x[0] + (x[-1] - x[0]) * centres
    for _ in range(_MOST_ROUNDS):
        cuts = _cuts(x, centres)
        mass = weight_sums[cuts[1:]] - weight_sums[cuts[:-1]]
        means = (value_sums[cuts[1:]] - value_sums[cuts[:-1]]) / mass.clamp_min(1e-300)
        empty = mass <= 0
        new = torch.where(empty, centres, means)
        if bool(empty.any()):
            new = _reseed(x, w, new, empty)
        new = new.sort().values
        if torch.equal(new, centres):
            break
        centres = new
    return centres.float()


def nearest(values: Tensor, centres: Tensor) -> Tensor:
    """Return the index of the nearest of rising centres; the lower one half-way between two."""
    borders = (centres[1:] + centres[:-1]) / 2
    return torch.searchsorted(borders, values.contiguous())


def _cuts(x: Tensor, centres: Tensor) -> Tensor:
    inner = torch.searchsorted(x, (centres[1:] + centres[:-1]) / 2, right=True)
    ends = inner.new_tensor([0, x.numel()])
    return torch.cat([ends[:1], inner, ends[1:]])


def _reseed(x: Tensor, w: Tensor, centres: Tensor, empty: Tensor) -> Tensor:
    """Move centres without values onto the values with the greatest error, one each."""
    held = centres[~empty]
    error = w * (x - held[nearest(x, held)]).square()
    worst = error.topk(int(empty.sum())).indices
    moved = centres.clone()
    moved[empty] = x[worst]
    return moved
