"""The cheapest assignment under a limit of the error, against brute force."""

from __future__ import annotations

from itertools import pairwise, product
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.budget import Cheapest, LevelTable, cheapest
from laconic.errors import BudgetError, ConfigError

INF = float("inf")


def random_table(rng: np.random.Generator, *, sites: int, levels: int) -> LevelTable:
    """Errors fall and bytes rise with the level, as those of compressors do, but not strictly."""
    errors = np.sort(rng.exponential(size=(sites, levels)) * rng.exponential(size=(sites, 1)))
    costs = np.sort(rng.integers(1, 500, size=(sites, levels)))
    shuffled = rng.permutation(levels)
    names = [f"c{i}" for i in range(levels)]
    return LevelTable(
        [f"s{i}" for i in range(sites)], names, costs[:, shuffled], errors[:, ::-1][:, shuffled]
    )


def brute_force(table: LevelTable, limit: float, units: int | None = None) -> tuple[float, float]:
    """Least (cost, error) over every combination; errors in rounded-up units where given."""
    errors = table.errors
    if units is not None:
        errors = np.ceil(errors / (limit / units) - 1e-9)
        limit = units
    best = (INF, INF)
    for choice in product(range(len(table.levels)), repeat=len(table.sites)):
        rows = np.arange(len(choice))
        if errors[rows, choice].sum() <= limit:
            cost = float(table.costs[rows, choice].sum())
            best = min(best, (cost, float(errors[rows, choice].sum())))
    return best


def test_two_hundred_random_instances() -> None:
    rng = np.random.default_rng(1)
    same = solved = 0
    for _ in range(200):
        table = random_table(rng, sites=int(rng.integers(1, 6)), levels=int(rng.integers(1, 6)))
        default = int(rng.integers(len(table.levels)))
        limit = float(table.errors[:, default].sum()) * float(rng.uniform(0.6, 1.4))
        if limit < table.errors.min(1).sum():
            with pytest.raises(BudgetError, match=r"smallest error that can be reached"):
                cheapest(table, limit)
            continue
        found = cheapest(table, limit, fallback=default)
        assert found.error <= limit * (1 + 1e-11)
        assert found.cost == table.costs[range(len(table.sites)), found.choice].sum()
        exact, rounded = brute_force(table, limit)[0], brute_force(table, limit, 10_000)[0]
        assert exact <= found.cost <= rounded
        same, solved = same + (found.cost == exact), solved + 1
        # rounding can only hide what is this close to the limit
        assert found.cost <= brute_force(table, limit - found.slack_error)[0]
    assert solved >= 100
    assert same >= 0.97 * solved


@given(st.integers(0, 10_000), st.sampled_from([7, 20, 50]))
@settings(deadline=None, max_examples=50)
def test_equals_brute_force_on_a_coarse_grid(seed: int, units: int) -> None:
    rng = np.random.default_rng(seed)
    table = random_table(rng, sites=3, levels=4)
    errors = rng.integers(0, units // 2, size=(3, 4)).astype(float)
    table = LevelTable(table.sites, table.levels, table.costs, errors)  # whole units: no rounding
    if errors.min(1).sum() > units:
        return
    found = cheapest(table, float(units), units=units)
    assert (found.cost, found.error) == brute_force(table, float(units))  # ties included


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=50)
def test_cost_never_rises_with_the_limit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = random_table(rng, sites=5, levels=4)
    least = table.errors.min(1).sum()
    limits = least + np.sort(rng.exponential(size=6)) * least
    units = 200_000  # fine enough that rounding stays out of it
    costs = [cheapest(table, float(limit), units=units).cost for limit in limits]
    assert all(late <= early for early, late in pairwise(costs))


def test_the_fallback_is_never_beaten_by_rounding() -> None:
    sites = 50
    errors = np.tile([[1.5, 0.0], [0.5, 0.0]], (sites // 2, 1))  # rounded up: 2 and 1 units
    table = LevelTable([f"s{i}" for i in range(sites)], ["a", "b"], [[1, 100]] * sites, errors)
    limit = float(errors[:, 0].sum())  # 50, and so are the units; rounded up it would be 75
    assert cheapest(table, limit, units=sites, fallback=0).choice == (0,) * sites
    assert cheapest(table, limit, units=sites, fallback=[0] * sites).cost == sites
    assert cheapest(table, limit, units=sites).cost == sites  # what rounding left is spent


def test_the_fallback_wins_where_no_single_site_can_be_lowered() -> None:
    # In units of one, (b, b) takes 2 + 2 of 3 although it keeps the limit; (a, c) takes 0 + 3.
    costs, errors = [[10, 5, 1]] * 2, [[0.0, 1.5, 3.0]] * 2
    table = LevelTable(["x", "y"], ["a", "b", "c"], costs, errors)
    assert cheapest(table, 3.0, units=3).cost == 11
    assert cheapest(table, 3.0, units=3, fallback=1).cost == 10


def test_extremes() -> None:
    table = LevelTable(["a", "b"], ["x", "y"], [[5, 9], [4, 8]], [[2.0, 0.0], [0.0, INF]])
    assert cheapest(table, 0.0).choice == (1, 0)  # only errors of nought
    assert cheapest(table, INF).choice == (0, 0)
    assert cheapest(table, 2.0).choice == (0, 0)
    assert cheapest(table, 1.999).choice == (1, 0)
    lossy = LevelTable(["a"], ["x"], [[5]], [[2.0]], fixed_bytes=7)
    assert cheapest(lossy, 3.0) == Cheapest((0,), 12, 2.0, slack_error=3.0 / 10_000)
    with pytest.raises(BudgetError, match=r"max_error=0 .* 2\. Raise"):
        cheapest(lossy, 0.0)


def test_scale_of_the_errors_does_not_matter() -> None:
    table = random_table(np.random.default_rng(3), sites=30, levels=6)
    limit = float(table.errors[:, 2].sum())
    for scale in (1e-6, 3.0, 1e9):
        scaled = LevelTable(table.sites, table.levels, table.costs, table.errors * scale)
        assert cheapest(scaled, limit * scale).choice == cheapest(table, limit).choice


def test_three_hundred_sites_with_sixteen_levels() -> None:
    table = random_table(np.random.default_rng(4), sites=300, levels=16)
    limit = float(np.median(table.errors, axis=1).sum())
    found = cheapest(table, limit)
    assert found.error <= limit
    # Lagrange: the least of cost + price * error bounds every assignment within the limit
    bound = max(
        float((table.costs + price * table.errors).min(1).sum()) - price * limit
        for price in np.geomspace(1e-2, 1e4, 200)
    )
    assert bound <= found.cost <= ceil(bound * 1.01)


@pytest.mark.parametrize("fallback", [2, -1, [0], [0, 1, 0]])
def test_refused(fallback: int | list[int]) -> None:
    table = LevelTable(["a", "b"], ["x", "y"], [[5, 9], [4, 8]], [[2.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ConfigError, match="fallback="):
        cheapest(table, 1.0, fallback=fallback)
    for limit in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="max_error="):
            cheapest(table, limit)
    with pytest.raises(ConfigError, match="units=0"):
        cheapest(table, 1.0, units=0)


def test_what_rounding_leaves_is_spent() -> None:
    # Ten errors of 0.10001 fill a limit of 1.0002 in truth; counted in tenths they are two each.
    sites = [f"s{index}" for index in range(10)]
    costs, errors = [[1, 9]] * 10, [[0.10001, 0.0]] * 10
    found = cheapest(LevelTable(sites, ["low", "high"], costs, errors), 1.0002, units=10)
    assert found.choice == (0,) * 10
    assert found.cost == 10


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=50)
def test_no_single_site_can_be_lowered_further(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs, errors = rng.integers(1, 99, (6, 4)), rng.random((6, 4))
    table = LevelTable([f"s{i}" for i in range(6)], list("abcd"), costs, errors)
    limit = float(errors.min(1).sum() + rng.random() * 2)
    found = cheapest(table, limit, units=7)
    assert found.error <= limit * (1 + 1e-9)
    for site in range(6):
        for level in range(4):
            other = table.assignment((*found.choice[:site], level, *found.choice[site + 1 :]))
            assert other.cost >= found.cost or other.error > limit
