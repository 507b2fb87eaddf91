"""Solvers of the multiple-choice knapsack: uniform, greedy and exact.

Each picks one level a site so that the cost stays within a budget and the summed error is low.
None ever exceeds the budget, and a larger budget never gives a larger error.
"""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from math import ceil, gcd

import numpy as np
from numpy.typing import NDArray

from laconic.budget.table import Assignment, LevelTable, too_small
from laconic.errors import BudgetError, ConfigError
from laconic.units import format_bytes

_CELLS = 100_000  # grid up to which the dynamic programme is exact unless asked otherwise


def smallest(table: LevelTable) -> Assignment:
    """Return the assignment of least cost; among equals the one of least error."""
    return table.assignment([table.front(site)[0] for site in range(len(table.sites))])


def uniform(table: LevelTable, budget_bytes: int) -> Assignment:
    """Return the best assignment that gives every site the same level.

    It is the one of least error, or the dearest where the table has no errors.

    Raises:
        BudgetError: No level that all sites have fits the budget.
    """
    shared = np.flatnonzero(np.isfinite(table.errors).all(axis=0))
    tried = [table.assignment([int(level)] * len(table.sites)) for level in shared]
    fitting = [a for a in tried if a.cost <= budget_bytes]
    if fitting:
        rising = 1 if table.has_errors else -1  # errors unknown: what costs most spoils least
        return min(fitting, key=lambda a: (a.error, rising * a.cost))
    if not tried:
        raise BudgetError("uniform: no level is available at every site; use another solver.")
    least = min(a.cost for a in tried)
    mixed = smallest(table).cost
    if mixed <= budget_bytes:
        raise BudgetError(
            f"uniform: one level for all sites takes at least {format_bytes(least)} and the "
            f"budget is {format_bytes(budget_bytes)}; a mixed assignment reaches "
            f"{format_bytes(mixed)}. Use the greedy solver or the dynamic programme."
        )
    raise too_small(budget_bytes, least, table.fixed_bytes)


def greedy(table: LevelTable, budget_bytes: int) -> Assignment:
    """Spend the budget where a byte takes off the most error.

    Every site starts at its smallest level and climbs the lower convex hull of its
    (cost, error) points; steps are taken in falling order of error per byte, and a site whose
    step does not fit stops. The error never rises with the budget: where two budgets first
    decide differently, the larger takes a step that outweighs all that the smaller can still
    buy, for those steps are no steeper and together no longer.

    Raises:
        BudgetError: The budget is below the smallest assignment.
        ConfigError: The table has no errors.
    """
    start = _start(table, budget_bytes)
    hulls = [_hull(table, site) for site in range(len(table.sites))]
    steps = sorted(
        (-_slope(table, site, low, high), site, rung)
        for site, hull in enumerate(hulls)
        for rung, (low, high) in enumerate(pairwise(hull), 1)
    )
    choice, left = list(start.choice), budget_bytes - start.cost
    for _, site, rung in steps:
        if choice[site] != hulls[site][rung - 1]:
            continue  # an earlier step of this site did not fit
        price = int(table.costs[site, hulls[site][rung]] - table.costs[site, choice[site]])
        if price <= left:
            choice[site], left = hulls[site][rung], left - price
    return table.assignment(choice)


def dynamic_programme(
    table: LevelTable, budget_bytes: int, *, cells: int | None = _CELLS
) -> Assignment:
    """Return the assignment of least error within the budget, by dynamic programming.

    Costs above each site's smallest level are counted in units of their greatest common
    divisor. Where the table spans more than ``cells`` of them, a cost is rounded up to a grid
    of ``cells`` cells over the span; the budget is still kept, and the error is at most the
    least one of a budget smaller by ``slack_bytes`` = (sites + 1) x cell, which the result
    states.

    Args:
        table: Sites by levels.
        budget_bytes: Limit of the cost.
        cells: Largest grid; None is exact whatever it takes (time and memory grow with
            sites x budget / divisor).

    Raises:
        BudgetError: The budget is below the smallest assignment.
        ConfigError: ``cells`` is below 1, or the table has no errors.
    """
    if cells is not None and cells < 1:
        raise ConfigError(f"dynamic programme: cells={cells} must be at least 1.")
    start = _start(table, budget_bytes)
    fronts = [table.front(site) for site in range(len(table.sites))]
    extras = [table.costs[i, front] - table.costs[i, front[0]] for i, front in enumerate(fronts)]
    cell, slack = _cell(extras, cells)
    span = sum(int(extra[-1]) for extra in extras)
    room = min(budget_bytes - start.cost, span)
    if room == span:  # everything fits at its best
        return table.assignment([front[-1] for front in fronts])
    units = [-(-extra // cell) for extra in extras]
    errors = [table.errors[i, front] for i, front in enumerate(fronts)]
    rungs = knapsack(units, errors, room // cell)
    choice = [front[rung] for front, rung in zip(fronts, rungs, strict=True)]
    return table.assignment(choice, slack_bytes=slack)


def _start(table: LevelTable, budget_bytes: int) -> Assignment:
    if not table.has_errors:
        raise ConfigError(
            "level table: this solver adds up errors of sites and the table has none. Give errors "
            "or use a solver that judges whole assignments."
        )
    least = smallest(table)
    if least.cost > budget_bytes:
        raise too_small(budget_bytes, least.cost, table.fixed_bytes)
    return least


def _slope(table: LevelTable, site: int, low: int, high: int) -> float:
    gain = table.errors[site, low] - table.errors[site, high]
    return float(gain / (table.costs[site, high] - table.costs[site, low]))


def _hull(table: LevelTable, site: int) -> list[int]:
    """Return the levels on the lower convex hull of a site's front, by rising cost."""
    hull: list[int] = []
    for level in table.front(site):
        while len(hull) > 1 and _slope(table, site, hull[-2], hull[-1]) <= _slope(
            table, site, hull[-1], level
        ):
            hull.pop()
        hull.append(level)
    return hull


def _cell(extras: list[NDArray[np.int64]], cells: int | None) -> tuple[int, int]:
    """Return the bytes of a cell of the grid and what the rounding may cost at most."""
    divisor = reduce(gcd, (int(e) for extra in extras for e in extra), 0) or 1
    span = sum(int(extra[-1]) for extra in extras)
    if cells is None or span // divisor <= cells:
        return divisor, 0
    cell = ceil(span / cells)
    return cell, cell * (len(extras) + 1)


def knapsack(
    units: list[NDArray[np.int64]], errors: list[NDArray[np.float64]], room: int
) -> list[int]:
    """Return the rung of each site that gives the least error within ``room`` units."""
    # best[c]: least error of the sites so far with at most c units
    best = np.zeros(room + 1)
    taken: list[NDArray[np.uint16]] = []
    for unit, error in zip(units, errors, strict=True):
        now, rung_of = best + error[0], np.zeros(room + 1, dtype=np.uint16)
        for rung in range(1, len(unit)):
            price = int(unit[rung])
            if price > room:
                break
            tried = best[: room + 1 - price] + error[rung]
            better = tried < now[price:]
            now[price:][better] = tried[better]
            rung_of[price:][better] = rung
        best = now
        taken.append(rung_of)
    rungs: list[int] = []
    for unit, rung_of in zip(reversed(units), reversed(taken), strict=True):
        rungs.append(int(rung_of[room]))
        room -= int(unit[rungs[-1]])
    return rungs[::-1]
