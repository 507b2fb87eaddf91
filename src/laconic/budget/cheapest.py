"""The cheapest assignment under a limit of the summed error, by dynamic programming.

The knapsack of :mod:`laconic.budget.solve` with the roles exchanged: errors are what is rationed,
bytes are what is made small. Alimohammadi, Markov, Frantar and Alistarh 2024 (L-GreCo, section 4)
choose gradient compressors so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laconic.budget.solve import knapsack
from laconic.budget.table import Assignment, LevelTable
from laconic.errors import BudgetError, ConfigError

_UNITS, _UNITS_PER_SITE = 10_000, 100
_ROUNDING = 1e-12  # relative: an error that is a whole number of units stays one


@dataclass(frozen=True)
class Cheapest(Assignment):
    """One level for every site, of least cost within a limit of the error.

    Attributes:
        choice: Index of the level, a site each, in the table's order.
        cost: Bytes by the table, those that are fixed included.
        error: Sum of the sites' errors by the table, never above the limit.
        slack_bytes: 0; the cost is what is made small here.
        slack_error: No assignment that keeps a limit smaller by this much is cheaper.
    """

    slack_error: float = 0.0


def cheapest(
    table: LevelTable,
    max_error: float,
    *,
    units: int | None = None,
    fallback: int | Sequence[int] | None = None,
) -> Cheapest:
    """Return the assignment of least cost whose summed error is at most ``max_error``.

    Errors are counted in ``max_error / units`` and rounded up, so that the true sum keeps the
    limit. What rounding leaves of the limit is spent on single sites, the largest saving first, and
    two more assignments are compared: ``fallback`` where it keeps the limit, and the least error
    at every site. Among assignments of equal cost the one of smaller error is taken.

    >>> table = LevelTable(["a", "b"], ["2", "4"], [[10, 20], [30, 60]], [[5.0, 1.0], [4.0, 2.0]])
    >>> [cheapest(table, limit).choice for limit in (10.0, 7.0, 4.0)]
    [(0, 0), (1, 0), (1, 1)]

    Args:
        table: Sites by levels; errors add up over sites.
        max_error: Limit of the summed error, 0 or more; infinity takes the cheapest everywhere.
        units: Steps that the limit is counted in; default ``max(10 000, 100 x sites)``, so that
            rounding costs at most 1 % of the limit.
        fallback: A level for all sites, or one for each, that the answer is never dearer than.

    Raises:
        BudgetError: Even the least error at every site is above the limit; says how large it is.
        ConfigError: A limit, units or fallback that cannot be.

    Source: Alimohammadi et al. 2024, Algorithm 1.
    Differs: An error of nought takes no unit (the paper's code takes one), what rounding left of
        the limit is spent, and the answer is compared with the fall-back.
    """
    units = max(_UNITS, _UNITS_PER_SITE * len(table.sites)) if units is None else units
    if not max_error >= 0:
        raise ConfigError(f"cheapest: max_error={max_error} must be 0 or more.")
    if units < 1:
        raise ConfigError(f"cheapest: units={units} must be at least 1.")
    safest = [int(np.lexsort((c, e))[0]) for c, e in zip(table.costs, table.errors, strict=True)]
    tried = [table.assignment(safest)]
    if tried[0].error > max_error:
        raise BudgetError(
            f"cheapest: max_error={max_error:g} is below the smallest error that can be reached, "
            f"{tried[0].error:g}. Raise the limit or add levels of smaller error."
        )
    if fallback is not None:
        tried.append(table.assignment(_spread(table, fallback)))
    found = _solve(table, max_error, units)
    if found is not None:
        tried.append(table.assignment(found))
    limit = max_error * (1 + 2 * _ROUNDING)
    fitting = (_spent(table, a, limit) for a in tried if a.error <= limit)
    best = min(fitting, key=lambda a: (a.cost, a.error))
    slack = max_error * len(table.sites) / units if np.isfinite(max_error) else 0.0
    return Cheapest(best.choice, best.cost, best.error, slack_error=slack)


def _spent(table: LevelTable, found: Assignment, limit: float) -> Assignment:
    """Lower single sites of an assignment, most bytes first, while the true error allows it."""
    sites = np.arange(len(table.sites))
    while True:
        now = np.array(found.choice)
        saved = table.costs[sites, now][:, None] - table.costs
        errors = found.error + table.errors - table.errors[sites, now][:, None]
        saved = np.where(errors <= limit, saved, 0)
        site, level = np.unravel_index(int(np.argmax(saved)), saved.shape)
        if saved[site, level] <= 0:
            return found
        now[site] = level
        lowered = table.assignment([int(choice) for choice in now])
        if lowered.error > limit:  # the sum of floats said otherwise than the difference
            return found
        found = lowered


def _spread(table: LevelTable, fallback: int | Sequence[int]) -> list[int]:
    choice = [fallback] * len(table.sites) if isinstance(fallback, int) else list(fallback)
    if len(choice) != len(table.sites) or not all(0 <= c < len(table.levels) for c in choice):
        raise ConfigError(
            f"cheapest: fallback={fallback} must be one of the {len(table.levels)} levels, or one "
            f"for each of the {len(table.sites)} sites."
        )
    return choice


def _solve(table: LevelTable, max_error: float, units: int) -> list[int] | None:
    """Return the cheapest choice of the rounded problem; None where it has none."""
    fronts = [_front(table, site, max_error, units) for site in range(len(table.sites))]
    if not all(levels for levels, _ in fronts):
        return None
    spent = [rationed - rationed[0] for _, rationed in fronts]
    room = units - sum(int(rationed[0]) for _, rationed in fronts)
    if room < 0:
        return None
    span = sum(int(extra[-1]) for extra in spent)
    if room >= span:
        return [levels[-1] for levels, _ in fronts]
    # One number holds bytes, then units: least bytes first, and least units among those. Whole
    # numbers up to 2**53 are exact in float64, which is 10**11 bytes with the default units.
    weighed = [
        (table.costs[site, levels] - table.costs[site, levels].min()) * float(units + 1) + rationed
        for site, (levels, rationed) in enumerate(fronts)
    ]
    rungs = knapsack(spent, weighed, room)
    return [levels[rung] for (levels, _), rung in zip(fronts, rungs, strict=True)]


def _front(
    table: LevelTable, site: int, max_error: float, units: int
) -> tuple[list[int], NDArray[np.int64]]:
    """Return a site's levels that no other beats, by rising units and falling bytes."""
    errors, costs = table.errors[site], table.costs[site]
    within = np.flatnonzero(np.isfinite(errors) & (errors <= max_error))
    rationed = _units(errors[within], max_error, units)
    levels: list[int] = []
    kept: list[int] = []
    for place in np.lexsort((errors[within], costs[within], rationed)):
        level = int(within[place])
        if not levels or costs[level] < costs[levels[-1]]:
            levels.append(level)
            kept.append(int(rationed[place]))
    return levels, np.array(kept, dtype=np.int64)


def _units(errors: NDArray[np.float64], max_error: float, units: int) -> NDArray[np.int64]:
    if max_error == 0 or np.isinf(max_error):
        return np.zeros(len(errors), dtype=np.int64)
    scaled = errors / max_error * (units * (1 - _ROUNDING))
    return np.clip(np.ceil(scaled), 0, units).astype(np.int64)
