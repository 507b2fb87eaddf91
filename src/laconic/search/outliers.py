"""Outlier ratios of the blocks: what OWL gives each block its share by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from laconic.task import Task
from laconic.weights.base import Site, Statistic
from laconic.weights.calibrate import gather_

RATIOS = (3.0, 5.0, 7.0, 10.0)


def outlier_ratios(
    model: nn.Module, sites: Sequence[Site], task: Task, *, ratios: Sequence[float] = RATIOS
) -> dict[float, list[float]]:
    """Return the share of outliers in each site's block, by how far above the mean they lie.

    With ``A = |W| * sqrt(diag H)`` over all weights of a block, ``H`` the second moments of the
    inputs, it is ``mean(A > M * mean(A))`` for each M. Sites outside the blocks count alone; an
    embedding, which has no inputs, by its weights.

    Args:
        model: The dense model.
        sites: Sites in the order of the table.
        task: Calibration data.
        ratios: The values of M; 3, 5, 7 and 10 in the paper.

    Source: Yin et al. 2023 (OWL), section 3.2.
    """
    counts: dict[object, list[float]] = {}
    sums: dict[object, tuple[float, int]] = {}
    needs: dict[str, frozenset[Statistic]] = {
        site.name: frozenset({"sumsq"}) if site.kind != "embedding" else frozenset()
        for site in sites
    }
    for group in gather_(model, sites, task, needs):
        for site in group:
            total, size = sums.get(_key(site), (0.0, 0))
            scores = _scores(site)
            sums[_key(site)] = total + float(scores.double().sum()), size + scores.numel()
    for group in gather_(model, sites, task, needs):
        for site in group:
            total, size = sums[_key(site)]
            scores = _scores(site)
            held = counts.setdefault(_key(site), [0.0] * len(ratios))
            for place, ratio in enumerate(ratios):
                held[place] += float((scores > ratio * total / size).sum()) / size
    return {
        ratio: [counts[_key(site)][place] for site in sites] for place, ratio in enumerate(ratios)
    }


def _key(site: Site) -> object:
    return site.name if site.block is None else site.block


def _scores(site: Site) -> Tensor:
    """Return ``|W| * sqrt(diag H)``, (rows, cols)."""
    weight = site.original_matrix().abs()
    if site.statistics is None or site.statistics.sumsq is None:
        return weight
    scale = site.statistics.sumsq.sqrt()
    if scale.dim() == 1:
        return weight * scale
    parts = weight.reshape(scale.shape[0], -1, weight.shape[1]) * scale.unsqueeze(1)
    return torch.flatten(parts, 0, 1)
