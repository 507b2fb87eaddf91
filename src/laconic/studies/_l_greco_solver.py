"""Part A of the L-GreCo study: the dynamic programme against all assignments there are."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from laconic.budget import LevelTable, cheapest
from laconic.studies.base import Conditions, Section

INSTANCES = 200
UNITS = 10_000
LARGE = (300, 16)  # sites, levels
_MOST = (6, 5)  # sites, levels of a small instance
_LIMITS = 8
_EDGE = 1e-9  # relative: sums of the same errors in another order


@dataclass(frozen=True)
class Solved:
    """What part A found: instances of each fault, seconds of the large one, and a table."""

    over: int
    dearer: int
    far: int
    falling: int
    seconds: float
    section: Section


def study_solver(conditions: Conditions) -> Solved:
    """Solve random instances and compare with brute force, rounded and exact."""
    source = np.random.default_rng(conditions.seed)
    over = dearer = far = falling = same = 0
    for _ in range(INSTANCES):
        table = draw_table(source)
        sites = len(table.sites)
        mix = source.dirichlet(np.ones(len(table.levels)))
        limit = 1.001 * float(table.errors.sum(axis=0) @ mix)  # between least and largest error
        found = cheapest(table, limit, units=UNITS)
        exact = brute_force(table, limit)
        over += found.error > limit * (1 + _EDGE)
        dearer += found.cost > brute_force(table, limit, units=UNITS)
        far += found.cost > brute_force(table, limit * (1 - sites / UNITS))
        same += found.cost == exact
        least = float(table.errors.min(axis=1).sum())
        costs = [
            cheapest(table, at, units=UNITS).cost for at in np.linspace(least, 2 * limit, _LIMITS)
            if at >= least
        ]  # fmt: skip
        falling += any(later > earlier for earlier, later in pairwise(costs))
    seconds = _seconds(source)
    rows = (
        {"what": "instances", "count": INSTANCES},
        {"what": "equal to exact brute force", "count": same},
        {"what": "over the limit", "count": over},
        {"what": "dearer than brute force of the rounded problem", "count": dearer},
        {"what": "dearer than exact brute force at a limit less by sites / units", "count": far},
        {"what": "dearer at a larger limit", "count": falling},
    )
    sites, levels = LARGE
    about = (
        f"Random tables of up to {_MOST[0]} sites and {_MOST[1]} levels, {UNITS} units. Exact "
        "brute force does not round; the solver may miss it by what rounding takes, "
        "sites / units of the limit."
    )
    facts = {f"seconds for {sites} sites, {levels} levels, {UNITS} units": round(seconds, 3)}
    return Solved(over, dearer, far, falling, seconds, Section("A. Solver", about, rows, facts))


def draw_table(
    source: np.random.Generator, sites: int | None = None, levels: int | None = None
) -> LevelTable:
    """Return costs that rise and errors that fall from level to level, of sites unlike in size."""
    sites = int(source.integers(1, _MOST[0] + 1)) if sites is None else sites
    levels = int(source.integers(1, _MOST[1] + 1)) if levels is None else levels
    size = source.lognormal(4.0, 1.5, (sites, 1))
    costs = np.cumsum(source.uniform(0.1, 1.0, (sites, levels)) * size, axis=1).astype(np.int64) + 1
    errors = np.cumsum(source.exponential(1.0, (sites, levels)), axis=1)[:, ::-1]
    errors = errors * source.lognormal(0.0, 1.0, (sites, 1))
    return LevelTable(list(map(str, range(sites))), list(map(str, range(levels))), costs, errors)


def brute_force(table: LevelTable, limit: float, *, units: int | None = None) -> float:
    """Return the least cost of all assignments within a limit; infinity where there is none.

    Args:
        table: Few sites and levels.
        limit: Of the summed error.
        units: Where given, errors are rounded up to whole ``limit / units`` first.
    """
    errors, most = table.errors, limit * (1 + _EDGE)
    if units is not None:
        errors, most = np.ceil(errors / limit * units * (1 - 1e-12)), float(units)
    total, cost = _sums(errors), _sums(table.costs.astype(np.float64))
    return float(cost[total <= most].min(initial=np.inf)) + table.fixed_bytes


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.zeros(1)
    for row in values:
        found = (found[:, None] + row).ravel()
    return found


def _seconds(source: np.random.Generator) -> float:
    """Return the least time of three for the large instance."""
    table = draw_table(source, *LARGE)
    limit = float(table.errors[:, LARGE[1] // 2].sum())
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        cheapest(table, limit, units=UNITS)
        times.append(time.perf_counter() - begun)
    return min(times)
