"""Exact one-dimensional k-means on sorted values."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_ROUNDS = 300
_SUMMARY = 1024  # neighbourhoods that the dynamic programme splits


def cluster(values: Tensor, count: int, *, weights: Tensor | None = None) -> Tensor:
    """Return ``count`` centres of values by Lloyd's rounds, from the better of two starts.

    One start is spread evenly from the least to the greatest value, which serves large values
    (Han, Mao and Dally 2016, section 3.2); the other is the best split of a summary of the
    values. Values are sorted once; a round then costs a search of the borders. A centre that no
    value is nearest to is moved onto the value that is served worst. Where there are at most
    ``count`` distinct values, these are the centres.

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
    steps = torch.linspace(0, 1, count, dtype=torch.float64, device=x.device)
    even = x[0] + (x[-1] - x[0]) * steps
    ends = [_lloyd(x, w, start) for start in (even, _split_start(x, w, count))]
    return min(ends, key=lambda centres: _error(x, w, centres)).float()


def _lloyd(x: Tensor, w: Tensor, centres: Tensor) -> Tensor:
    """Move centres to the means of what is nearest to them until nothing moves."""
    zero = x.new_zeros(1)
    weight_sums = torch.cat([zero, w.cumsum(0)])
    value_sums = torch.cat([zero, (w * x).cumsum(0)])
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
    return centres


def _split_start(x: Tensor, w: Tensor, count: int) -> Tensor:
    """Return the best centres of a summary of the values, by dynamic programming.

    Values are first put into at most 1024 neighbourhoods; the best split of these into runs is
    exact (Bellman 1973).
    """
    cuts, middle = _neighbourhoods(x, w), x.mean()
    x = x - middle  # squares are taken about the middle, where they lose least to rounding
    zero = x.new_zeros(1)
    sums = [torch.cat([zero, (w * x**power).cumsum(0)])[cuts] for power in (0, 1, 2)]
    mass, first, second = (s.unsqueeze(0) - s.unsqueeze(1) for s in sums)  # [i, j]: cuts i..j
    cost = second - first.square() / mass.clamp_min(1e-300)
    later = torch.ones_like(cost, dtype=torch.bool).triu(1)
    cost = torch.where(later, cost.clamp_min(0), torch.inf)
    least, taken = cost[0], []
    for _ in range(count - 1):
        found = (least.unsqueeze(1) + cost).min(0)
        least = found.values
        taken.append(found.indices)
    ends = [len(cuts) - 1]
    for indices in reversed(taken):
        ends.append(int(indices[ends[-1]]))
    runs = torch.tensor([0, *reversed(ends)], device=x.device)
    spread = (sums[1][runs].diff(), sums[0][runs].diff().clamp_min(1e-300))
    return (middle + spread[0] / spread[1]).sort().values


def _neighbourhoods(x: Tensor, w: Tensor) -> Tensor:
    """Return where sorted values are cut, both ends included.

    Half of the cuts follow the cube root of the density, half are at equal counts, so that
    neither a tail nor a crowd beside an outlier is seen coarsely.
    """
    if len(x) <= _SUMMARY:
        return torch.arange(len(x) + 1, device=x.device)
    half = _SUMMARY // 2
    edges = torch.linspace(0, 1, 4 * _SUMMARY + 1, dtype=torch.float64, device=x.device)
    edges = x[0] + (x[-1] - x[0]) * edges
    sums = torch.cat([x.new_zeros(1), w.cumsum(0)])
    places = torch.searchsorted(x, edges, right=True)
    reached = sums[places].diff().clamp_min(0).pow(1 / 3).cumsum(0)
    wanted = torch.linspace(0, 1, half, dtype=torch.float64, device=x.device)
    bins = torch.searchsorted(reached / reached[-1], wanted).clamp_max(len(edges) - 2)
    counts = torch.linspace(0, len(x), half, dtype=torch.float64, device=x.device).long()
    cuts: Tensor = torch.unique(torch.cat([places[1:][bins], counts]))
    return cuts


def _error(x: Tensor, w: Tensor, centres: Tensor) -> float:
    return float((w * (x - centres[nearest(x, centres)]).square()).sum())


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
