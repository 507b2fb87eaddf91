"""The loop that turns predicted bytes into real ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.budget import Assignment, LevelTable, greedy, meet
from laconic.errors import BudgetError, ConfigError

BITS = np.array([2, 3, 4, 5, 6, 8])


def table_of(sites: int, seed: int = 0, fixed: int = 500) -> LevelTable:
    rng = np.random.default_rng(seed)
    weights = rng.integers(1000, 9000, size=sites)
    errors = rng.random((sites, 1)) * weights[:, None] * 4.0 ** -BITS.astype(float)
    names = [f"layer.{i}" for i in range(sites)]
    costs = weights[:, None] * BITS // 8
    return LevelTable(names, [f"{b}" for b in BITS], costs, errors, fixed_bytes=fixed)


class Artefact:
    """A real size: each level is coded down by its own factor, plus a manifest."""

    def __init__(self, table: LevelTable, factors: np.ndarray, manifest: int) -> None:
        self.table, self.factors, self.manifest, self.calls = table, factors, manifest, 0

    def __call__(self, assignment: Assignment) -> int:
        self.calls += 1
        rows, picked = np.arange(len(self.table.sites)), np.array(assignment.choice)
        bytes_ = (self.table.costs * self.factors)[rows, picked].sum()
        return int(bytes_) + self.table.fixed_bytes + self.manifest


@given(st.integers(0, 1000), st.floats(0.15, 0.9), st.floats(0.6, 1.2), st.integers(0, 2000))
@settings(deadline=None, max_examples=50)
def test_real_bytes_keep_the_budget_and_are_close(
    seed: int, share: float, factor: float, manifest: int
) -> None:
    table = table_of(24, seed)
    noise = np.random.default_rng(seed).uniform(0.95, 1.0, size=(24, len(BITS)))
    real = Artefact(table, factor * noise, manifest)
    low = real(table.assignment([0] * 24))
    high = real(table.assignment([len(BITS) - 1] * 24))
    budget = int(low + share * (high - low))
    met = meet(budget, real, table)
    assert met.real_bytes == real(met.assignment) <= budget
    assert met.reason is None
    assert met.real_bytes >= 0.99 * budget
    assert met.trials <= 16


def test_each_assignment_is_measured_once_and_greedy_serves_too() -> None:
    table = table_of(24)
    real = Artefact(table, np.full((24, len(BITS)), 0.8), 300)
    met = meet(60_000, real, table, solve=greedy)
    assert real.calls == met.trials
    assert 59_400 <= met.real_bytes <= 60_000


def test_below_the_smallest_says_how_small_and_what_is_fixed() -> None:
    table = LevelTable(["a"], ["2", "4"], [[1000, 2000]], [[1.0, 0.0]], fixed_bytes=700)
    real = Artefact(table, np.ones((1, 2)), 300)  # really 2000 B, of which 1000 B fixed
    with pytest.raises(BudgetError, match=r"1\.50 kB.*2\.00 kB.*1\.00 kB"):
        meet(1500, real, table)
    assert meet(2000, real, table).assignment.choice == (0,)


def test_coarse_levels_give_the_reason() -> None:
    table = LevelTable(["a"], ["2", "4"], [[1000, 2000]], [[1.0, 0.0]])
    met = meet(1900, lambda a: a.cost, table)
    assert met.real_bytes == 1000
    assert "next better assignment does not fit" in str(met.reason)
    rich = meet(10_000, lambda a: a.cost, table)
    assert rich.real_bytes == 2000
    assert "every site is at its best level" in str(rich.reason)


def test_trials_are_bounded_and_said() -> None:
    table = table_of(40)
    calls = [0]

    def wild(assignment: Assignment) -> int:
        calls[0] += 1
        return assignment.cost + (hash(assignment.choice) % 7) * 3000

    met = meet(80_000, wild, table, max_trials=5, tolerance=0.0)
    assert calls[0] <= 6  # one more where only the smallest fits
    assert met.real_bytes <= 80_000
    assert "stopped after measuring" in str(met.reason)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="tolerance=1"):
        meet(1, lambda a: 0, table_of(2), tolerance=1)
