"""Other ways to give each tensor its setting, which the dynamic programme is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from laconic.budget import LevelTable
from laconic.budget.table import Assignment

_STEPS = 100  # halvings of the Lagrangian's price


def greedy(table: LevelTable, limit: float) -> Assignment | None:
    """Start with the cheapest everywhere; buy what lowers the error most a byte, until it is met.

    Args:
        table: Levels of every site by rising bytes.
        limit: Of the summed error.

    Returns:
        None where even the dearest levels are over the limit.
    """
    choice = [0] * len(table.sites)
    while table.assignment(choice).error > limit:
        gains = [_gain(table, site, level) for site, level in enumerate(choice)]
        best = int(np.argmax(gains))
        if gains[best] == -np.inf:
            return None
        choice[best] += 1
    return table.assignment(choice)


def _gain(table: LevelTable, site: int, level: int) -> float:
    errors, costs = table.errors[site], table.costs[site]
    if level + 1 >= len(errors) or not np.isfinite(errors[level + 1]):
        return -np.inf
    return float(errors[level] - errors[level + 1]) / max(1, int(costs[level + 1] - costs[level]))


def proportional(table: LevelTable, dense: Sequence[int], limit: float) -> Assignment | None:
    """Give every site the same share of its dense bytes, the least share that meets the limit.

    Args:
        table: Levels of every site by rising bytes.
        dense: Bytes of each site as it is.
        limit: Of the summed error.

    Returns:
        None where no share meets it. A site without a level so small has its cheapest.
    """
    legal = np.isfinite(table.errors)
    shares = np.where(legal, table.costs / np.asarray(dense)[:, None], np.inf)
    for share in np.unique(shares[legal]):
        choice = [max(0, int((row <= share).sum()) - 1) for row in shares]
        found = table.assignment(choice)
        if found.error <= limit:
            return found
    return None


def lagrangian(table: LevelTable, limit: float) -> Assignment | None:
    """Put a price on the error, the lowest that meets the limit, and choose site by site."""
    low, high = 0.0, float(table.costs.max()) * 1e6 / max(limit, 1e-30)
    errors = np.where(np.isfinite(table.errors), table.errors, 1e30)
    best = None
    for _ in range(_STEPS):
        price = (low + high) / 2
        found = table.assignment(np.argmin(table.costs + price * errors, axis=1).tolist())
        if found.error <= limit:
            best, high = found, price
        else:
            low = price
    return best


def at_random(table: LevelTable, most: int, source: np.random.Generator) -> Assignment:
    """Raise sites drawn at random, a level at a time, as long as the bytes stay within ``most``."""
    choice = [0] * len(table.sites)
    left = int(most) - table.assignment(choice).cost
    open_sites = list(range(len(choice)))
    while open_sites:
        at = int(source.integers(len(open_sites)))
        site = open_sites[at]
        above = choice[site] + 1
        there = above < len(table.levels) and np.isfinite(table.errors[site, above])
        price = int(table.costs[site, above] - table.costs[site, above - 1]) if there else 0
        if not there or price > left:
            del open_sites[at]
            continue
        choice[site], left = above, left - price
    return table.assignment(choice)
