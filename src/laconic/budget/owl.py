"""Outlier-weighed layer-wise shares: blocks with more outliers are compressed less."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laconic.budget.mutate import Moves
from laconic.budget.race import Race
from laconic.budget.sampler import Sampler
from laconic.budget.search import Budget, Choice, Fitness, SearchResult
from laconic.budget.table import Assignment, LevelTable
from laconic.errors import ConfigError
from laconic.progress import Progress

LAMBDAS = (0.02, 0.05, 0.08, 0.1, 0.2)
Outliers = Mapping[float, Sequence[float]]  # by M: the outlier ratio of each site's block


def owl(
    table: LevelTable,
    fitness: Fitness,
    sampler: Sampler,
    *,
    budget: Budget,
    outliers: Outliers,
    dense_costs: Sequence[int] | None = None,
    lambdas: Sequence[float] = LAMBDAS,
    tokens: int | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Give each block its share by its outliers, for every M and lambda, and take the fittest.

    Args:
        table: Sites by levels.
        fitness: Judges the assignments, all on the same documents.
        sampler: Draws them.
        budget: Limit of the cost, or one for each group.
        outliers: For each M, the outlier ratio of each site in the table's order; sites of one
            block share it. Yin et al. take M of 3, 5, 7 and 10.
        dense_costs: What each site costs when it is not compressed; its dearest level where
            None.
        lambdas: How far shares may move away from the mean, each above 0.
        tokens: Size of the minibatch; the whole search set where None.
        seed: Seed of the minibatch.
        checkpoint: Not used; there is one step.
        progress: Not used.

    Raises:
        BudgetError: The budget is outside what the levels can attain.
        ConfigError: A ratio for each site is missing, or a lambda is not above 0.

    Source: Yin et al. 2023, Outlier Weighed Layerwise Sparsity (OWL), section 3.2.
    Differs: shares are rounded to the nearest levels of the table and then moved by as little as
        keeps the budget; the mean is weighed by what the sites cost.
    """
    begun = time.monotonic()
    size = sampler.tokens if tokens is None else tokens
    found = owl_assignments(table, budget, outliers, dense_costs=dense_costs, lambdas=lambdas)
    race = Race(table, fitness, sampler)
    minibatch = sampler.draw(size, np.random.default_rng(seed))
    values = race.score([given.choice for given in found.values()], minibatch)
    best = int(np.argmin(values))
    ratio, spread = list(found)[best]
    settings = {"budget": budget, "tokens": size, "M": ratio, "lambda": spread, "seed": seed}
    return SearchResult(
        "owl", list(found.values())[best], float(values[best]),
        evaluations=race.evaluations, tokens=race.tokens,
        seconds=time.monotonic() - begun, settings=settings,
    )  # fmt: skip


def owl_assignments(
    table: LevelTable,
    budget: Budget,
    outliers: Outliers,
    *,
    dense_costs: Sequence[int] | None = None,
    lambdas: Sequence[float] = LAMBDAS,
) -> dict[tuple[float, float], Assignment]:
    """Return the assignment of every pair of M and lambda; arguments as of :func:`owl`."""
    moves = Moves(table, budget)
    dense = np.array(
        [moves.cost[site][ladder[-1]] for site, ladder in enumerate(moves.ladders)]
        if dense_costs is None
        else dense_costs,
        dtype=np.float64,
    )
    if not outliers or not lambdas or min(lambdas) <= 0:
        raise ConfigError(
            f"owl: outliers of M in {list(outliers)} and lambdas {list(lambdas)}: give at least "
            "one of each, and lambdas above 0."
        )
    found: dict[tuple[float, float], Assignment] = {}
    for ratio, values in outliers.items():
        if len(values) != len(table.sites) or len(dense) != len(table.sites):
            raise ConfigError(
                f"owl: {len(values)} outlier ratios and {len(dense)} dense costs for "
                f"{len(table.sites)} sites; give one of each a site."
            )
        for spread in lambdas:
            wanted = np.zeros(len(table.sites))
            for sites, limit in moves.limits.values():
                share = 1 - limit / dense[sites].sum()
                ratios = np.asarray(values, dtype=np.float64)[sites]
                cut = outlier_sparsity(ratios, share, spread, weights=dense[sites])
                wanted[sites] = dense[sites] * (1 - cut)
            found[ratio, spread] = table.assignment(nearest_choice(moves, wanted))
    return found


def outlier_sparsity(
    ratios: NDArray[np.float64],
    sparsity: float,
    spread: float,
    *,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return the share to take away from each block; their mean is ``sparsity``.

    With ``D`` the ratios, ``D' = 2 lambda (D - min D) / (max D - min D)`` and the share of a
    block is ``S - D' + mean(D')``: within ``lambda`` of the mean for ratios spread evenly.

    Args:
        ratios: Outlier ratio of each block, (blocks,).
        sparsity: Mean share ``S``.
        spread: ``lambda``.
        weights: Weights of the mean; all alike where None.

    Source: Yin et al. 2023 (OWL), section 3.2.

    >>> import numpy as np
    >>> outlier_sparsity(np.array([1.0, 2.0, 3.0]), 0.7, 0.1).round(3).tolist()
    [0.8, 0.7, 0.6]
    """
    width = float(ratios.max() - ratios.min())
    scaled = 2 * spread * (ratios - ratios.min()) / width if width > 0 else np.zeros(len(ratios))
    shares: NDArray[np.float64] = sparsity - scaled + np.average(scaled, weights=weights)
    return shares


def nearest_choice(moves: Moves, wanted: NDArray[np.float64]) -> Choice:
    """Return the levels nearest to wanted costs that keep the budget and spend what fits.

    Args:
        moves: The table under its budget.
        wanted: Cost wished for each site, (sites,).
    """
    choice = [
        min(ladder, key=lambda level: abs(moves.cost[site][level] - wanted[site]))
        for site, ladder in enumerate(moves.ladders)
    ]

    def regret(move: tuple[int, int]) -> float:
        site, level = move
        costs = moves.cost[site]
        return float(abs(costs[level] - wanted[site]) - abs(costs[choice[site]] - wanted[site]))

    for sites, limit in moves.limits.values():
        left = limit - sum(moves.cost[site][choice[site]] for site in sites)
        while True:
            options = [
                (site, level)
                for site, level in moves.steps(choice, sites, down=left < 0)
                if left < 0 or 0 < moves.change(choice, (site, level)) <= left
            ]
            if not options:
                break
            site, level = min(options, key=regret)
            left -= moves.change(choice, (site, level))
            choice[site] = level
    return tuple(choice)
