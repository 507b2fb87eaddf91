"""The knapsack solvers against brute force, and the properties that hold for each."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.budget import LevelTable, dynamic_programme, greedy, smallest, uniform
from laconic.errors import BudgetError, ConfigError

INF = float("inf")
SETTINGS = settings(deadline=None, max_examples=50)


@st.composite
def tables(draw: st.DrawFn, max_cost: int = 40) -> LevelTable:
    sites, levels = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    cost = st.lists(st.integers(0, max_cost), min_size=levels, max_size=levels)
    errors = st.lists(
        st.one_of(st.integers(0, 50).map(lambda n: n / 4), st.just(INF)),
        min_size=levels,
        max_size=levels,
    ).filter(lambda row: min(row) < INF)
    rows = st.lists(cost, min_size=sites, max_size=sites)
    error_rows = st.lists(errors, min_size=sites, max_size=sites)
    names = [f"s{i}" for i in range(sites)]
    return LevelTable(
        names,
        [f"l{i}" for i in range(levels)],
        draw(rows),
        draw(error_rows),
        fixed_bytes=draw(st.integers(0, 9)),
    )


def brute_force(table: LevelTable, budget: int) -> float:
    """Least error over every combination that fits; infinity where none does."""
    best = INF
    for choice in product(range(len(table.levels)), repeat=len(table.sites)):
        a = table.assignment(choice)
        if a.cost <= budget:
            best = min(best, a.error)
    return best


@given(tables(), st.integers(0, 200))
@SETTINGS
def test_dynamic_programme_is_optimal(table: LevelTable, budget: int) -> None:
    least = smallest(table).cost
    if budget < least:
        for solve in (dynamic_programme, greedy, uniform):
            with pytest.raises(BudgetError):
                solve(table, budget)
        return
    found = dynamic_programme(table, budget)
    assert found.cost <= budget
    assert found.error == pytest.approx(brute_force(table, budget))
    assert found.slack_bytes == 0
    climbed = greedy(table, budget)
    assert climbed.cost <= budget
    assert climbed.error >= found.error - 1e-9


@given(tables(), st.lists(st.integers(0, 200), min_size=2, max_size=8))
@SETTINGS
def test_error_never_rises_with_the_budget(table: LevelTable, budgets: list[int]) -> None:
    ordered = sorted(b for b in budgets if b >= smallest(table).cost)
    for solve in (dynamic_programme, greedy):
        errors = [solve(table, b).error for b in ordered]
        assert all(late <= early + 1e-9 for early, late in pairwise(errors))


@given(tables(max_cost=1000), st.integers(0, 4000), st.integers(1, 30))
@SETTINGS
def test_grid_keeps_the_budget_and_its_stated_bound(
    table: LevelTable, budget: int, cells: int
) -> None:
    if budget < smallest(table).cost:
        return
    found = dynamic_programme(table, budget, cells=cells)
    assert found.cost <= budget
    assert found.error <= brute_force(table, budget - found.slack_bytes) + 1e-9
    assert found.error >= brute_force(table, budget) - 1e-9


@given(tables(), st.integers(0, 200))
@SETTINGS
def test_uniform_gives_one_level_and_is_never_better(table: LevelTable, budget: int) -> None:
    shared = [j for j in range(len(table.levels)) if np.isfinite(table.errors[:, j]).all()]
    costs = [table.assignment([j] * len(table.sites)).cost for j in shared]
    if not [c for c in costs if c <= budget]:
        with pytest.raises(BudgetError):
            uniform(table, budget)
        return
    found = uniform(table, budget)
    assert len(set(found.choice)) == 1
    assert found.cost <= budget
    assert found.error >= dynamic_programme(table, budget).error - 1e-9


def test_worked_case_where_greedy_falls_short() -> None:
    # Budget 10 over the smallest: greedy buys "a" (6 bytes, 6.6 off, 1.1 a byte) and then
    # nothing fits; the optimum is "b" and "c" (5 bytes each, 5.0 off each).
    table = LevelTable(
        ["a", "b", "c"],
        ["low", "high"],
        [[0, 6], [0, 5], [0, 5]],
        [[6.6, 0.0], [5.0, 0.0], [5.0, 0.0]],
    )
    assert greedy(table, 10).choice == (1, 0, 0)
    best = dynamic_programme(table, 10)
    assert best.choice == (0, 1, 1)
    assert best.error == pytest.approx(6.6)
    assert best.cost == 10
    with pytest.raises(BudgetError, match="below the smallest"):
        dynamic_programme(table, -1)


def test_dearer_level_with_more_error_is_never_taken() -> None:
    table = LevelTable(["a"], ["x", "bad", "y"], [[1, 2, 3]], [[2.0, 5.0, 1.0]])
    assert dynamic_programme(table, 2).choice == (0,)
    assert greedy(table, 2).choice == (0,)
    assert table.named(greedy(table, 3)) == {"a": "y"}


def test_uniform_says_that_a_mixture_would_fit() -> None:
    table = LevelTable(["a", "b"], ["s", "l"], [[10, 20], [20, 10]], [[1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(BudgetError, match="mixed assignment reaches 20 B"):
        uniform(table, 25)


def test_large_table_is_solved_on_the_grid() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(10**5, 10**7, size=120)
    bits = np.array([2, 3, 4, 5, 6, 8])
    costs = weights[:, None] * bits // 8 + rng.integers(0, 97, size=(120, 6))
    errors = rng.random((120, 1)) * 4.0 ** -bits.astype(float)
    table = LevelTable([f"s{i}" for i in range(120)], [f"{b}b" for b in bits], costs, errors)
    budget = int(weights.sum() * 3.5 / 8)
    found = dynamic_programme(table, budget)
    assert budget * 0.995 <= found.cost <= budget
    assert 0 < found.slack_bytes <= 0.01 * budget
    assert found.error < uniform(table, budget).error / 2


def test_budget_error_has_the_numbers() -> None:
    table = LevelTable(["a"], ["l"], [[1000]], [[0.0]], fixed_bytes=31_000)
    with pytest.raises(BudgetError, match=r"20.00 kB.*32.00 kB.*31.00 kB"):
        dynamic_programme(table, 20_000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"costs": [[1.5, 2.0]]}, "whole bytes"),
        ({"costs": [[1, 2, 3]]}, "shape"),
        ({"errors": [[0.0, float("nan")]]}, "NaN"),
        ({"errors": [[-1.0, 0.0]]}, "a has errors"),
        ({"errors": [[INF, INF]]}, "no level"),
        ({"costs": [[-1, 2]]}, "0 or more"),
        ({"levels": ["x", "x"]}, "named twice"),
        ({"fixed_bytes": -1}, "fixed_bytes=-1"),
    ],
)
def test_bad_tables_are_refused(changes: dict[str, object], message: str) -> None:
    good = {"sites": ["a"], "levels": ["x", "y"], "costs": [[1, 2]], "errors": [[1.0, 0.0]]}
    with pytest.raises(ConfigError, match=message):
        LevelTable(**{**good, **changes})  # type: ignore[arg-type]


def test_cells_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="cells=0"):
        dynamic_programme(LevelTable(["a"], ["x"], [[1]], [[0.0]]), 5, cells=0)
