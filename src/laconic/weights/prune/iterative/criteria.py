"""Which weights go first: scores, and the weights below a threshold on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from laconic import measure
from laconic.errors import ConfigError
from laconic.weights.prune._select import smallest

Scope = Literal["global", "layer", "neuron"]
# (name, weight (rows, cols), randomness) -> scores (rows, cols); the smallest go first.
Criterion = Callable[[str, Tensor, torch.Generator], Tensor]
Matrices = Mapping[str, Tensor]


def magnitude(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``|w|``."""
    return weight.abs().float()


def at_random(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return scores that know nothing of the weights."""
    return torch.rand(weight.shape, generator=generator)


CRITERIA: dict[str, Criterion] = {"magnitude": magnitude, "random": at_random}


def scope_index(
    weights: Matrices, masks: Matrices, scope: Scope, p: float, q: float
) -> tuple[Tensor, Tensor]:
    """Return the survivors and the PQ Index of every scope, in the order of names and rows.

    Shapes:
        weights, masks (rows, cols) -> int64 (scopes,), float64 (scopes,)
    """
    if scope == "global":
        flat = torch.cat([weights[name][mask] for name, mask in masks.items()])
        return torch.tensor([flat.numel()]), measure.pqi(flat, p, q).reshape(1)
    if scope == "layer":
        counts = torch.stack([mask.sum() for mask in masks.values()])
        found = [measure.pqi(weights[name][mask], p, q) for name, mask in masks.items()]
        return counts, torch.stack(found)
    counts = torch.cat([mask.sum(1) for mask in masks.values()])
    rows = [measure.pqi(weights[name], p, q, mask=mask, dim=1) for name, mask in masks.items()]
    return counts, torch.cat(rows)


def thinned(
    scores: Matrices, masks: Matrices, scope: Scope, counts: Tensor, *, exact: bool = False
) -> dict[str, Tensor]:
    """Return masks without the lowest scores of every scope.

    What lies below the score number ``c`` (from 0) of the survivors goes, so that ties at the
    threshold stay and ``c`` is the most that a scope loses.

    Args:
        scores: Scores (rows, cols) by name.
        masks: What is kept so far, (rows, cols) by name.
        scope: What competes.
        counts: How many go from each scope, below its survivors.
        exact: Exactly so many go, ties by place.

    Raises:
        ConfigError: A score of a survivor is not finite.
    """
    for name, mask in masks.items():
        if not bool(torch.isfinite(scores[name][mask]).all()):
            raise ConfigError(f"{name}: a pruning score is NaN or infinite; scores must be finite.")
    names = list(masks)
    if scope == "neuron":
        each = torch.split(counts, [len(masks[name]) for name in names])
        return {
            n: _thin_rows(scores[n], masks[n], c, exact) for n, c in zip(names, each, strict=True)
        }
    if scope == "layer":
        return {
            name: _thin({name: scores[name]}, {name: masks[name]}, int(count), exact)[name]
            for name, count in zip(names, counts, strict=True)
        }
    return _thin(scores, masks, int(counts[0]), exact)


def _thin(scores: Matrices, masks: Matrices, count: int, exact: bool) -> dict[str, Tensor]:
    if count <= 0:
        return dict(masks)
    held = torch.cat([scores[name][mask] for name, mask in masks.items()])
    if exact:
        sizes = [int(mask.sum()) for mask in masks.values()]
        gone = torch.split(smallest(held, count), sizes)
        return {
            name: mask.masked_scatter(mask, ~part)
            for (name, mask), part in zip(masks.items(), gone, strict=True)
        }
    limit = held.kthvalue(count + 1).values
    return {name: mask & (scores[name] >= limit) for name, mask in masks.items()}


def _thin_rows(scores: Tensor, mask: Tensor, counts: Tensor, exact: bool) -> Tensor:
    held = scores.masked_fill(~mask, float("inf"))
    ordered = held.sort(dim=1, stable=True)
    if exact:
        gone = torch.arange(mask.shape[1]) < counts.unsqueeze(1)
        return mask & ~torch.zeros_like(mask).scatter_(1, ordered.indices, gone)
    limit = ordered.values.gather(1, counts.unsqueeze(1))
    return mask & (scores >= limit)


def at_most(counts: Tensor, allowed: int) -> Tensor:
    """Return counts lowered in proportion so that they are ``allowed`` in all, exactly."""
    total = int(counts.sum())
    if total <= allowed:
        return counts
    exact = counts.double() * allowed / total
    lowered = torch.floor(exact).long()
    rest = allowed - int(lowered.sum())
    order = (exact - lowered).sort(descending=True, stable=True).indices
    lowered[order[:rest]] += 1
    return lowered
