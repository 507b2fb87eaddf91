"""Level tables: groups, neighbours, legality, attainable costs, names, and the builders."""

from __future__ import annotations

import numpy as np
import pytest

from laconic.budget import (
    LevelTable,
    bits_table,
    depth_table,
    dynamic_programme,
    sparsity_step,
    sparsity_table,
    uniform,
)
from laconic.budget.search import limits_of
from laconic.errors import BudgetError, ConfigError

SITES = {
    "layers.0.q.weight": 64, "layers.0.up.weight": 256,
    "layers.1.q.weight": 64, "layers.1.up.weight": 256, "layers.1.down.weight": 256,
}  # fmt: skip


def test_group_rules() -> None:
    by_size = bits_table(SITES, [2, 3, 4])
    assert by_size.groups == ("64", "256", "64", "256", "256")
    by_name = by_size.grouped("name")
    assert len(set(by_name.groups or ())) == 3
    assert by_name.members(by_name.groups[1]) == [1, 3]  # type: ignore[index]
    assert by_size.grouped("none").groups is None
    with pytest.raises(ConfigError, match="rule='shape'"):
        by_size.grouped("shape")  # type: ignore[arg-type]


def test_neighbours_go_by_cost_and_skip_missing_levels() -> None:
    inf = float("inf")
    table = LevelTable(["a"], ["x", "y", "z"], [[30, 10, 20]], [[0.0, 2.0, inf]])
    assert table.neighbours(0, 1) == (None, 0)
    assert table.neighbours(0, 0) == (1, None)
    with pytest.raises(ConfigError, match="a has no level 'z'"):
        table.neighbours(0, 2)
    assert table.is_legal([0])
    assert not table.is_legal([2])
    assert not table.is_legal([3])
    assert table.attainable() == (10, 30)


def test_names_there_and_back_and_the_nearest_name_for_mistakes() -> None:
    table = bits_table(SITES, [2, 3, 4])
    given = table.assignment([0, 1, 2, 1, 0])
    assert table.from_names(table.named(given)) == given
    with pytest.raises(ConfigError, match=r"no site 'layers\.0\.w'\. *|Did you mean"):
        table.site_index("layers.0.w")
    with pytest.raises(ConfigError, match=r"Did you mean 'layers\.1\.down\.weight'"):
        table.from_names({**table.named(given), "layers.1.dawn.weight": "2 bits"})
    with pytest.raises(ConfigError, match="Did you mean '3 bits'"):
        table.level_index("3bits")
    with pytest.raises(ConfigError, match=r"no level is given for layers\.0\.q"):
        table.from_names({})


def test_sparsity_levels_by_hand() -> None:
    # 100 weights at 60 %: level +1 zeroes 60 + 10 of them; 1000 weights: 600 + 10.
    table = sparsity_table({"a": 100, "b": 1000}, 0.6, 10, reach=5)
    assert table.levels[0] == "-5"
    assert table.costs[0].tolist() == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0, 0]
    assert table.is_legal([9, 10])  # +4 leaves nothing of "a", +5 is beyond
    assert not table.is_legal([10, 10])
    a_up, b_down = table.assignment([6, 4]), table.assignment([5, 5])
    assert a_up.cost == b_down.cost == 440
    assert sparsity_step(96 * 96, 0.6) == 460


def test_depth_and_restricted_tables() -> None:
    table = depth_table({"0.attention": "attention", "0.mlp": "mlp", "1.mlp": "mlp"})
    limits = limits_of(table, {"attention": 1, "mlp": 1})
    assert limits == {"attention": ([0], 1), "mlp": ([1, 2], 1)}
    assert table.take([1, 2]).groups == ("mlp", "mlp")
    mixed = LevelTable(
        ["a", "b"], ["2b", "drop", "4b"], [[2, 0, 4], [20, 0, 40]],
        [[1.0, 9.0, 0.5], [1.0, float("inf"), 0.5]],
    )  # fmt: skip
    assert mixed.only(["2b", "4b"]).attainable() == (22, 44)
    with pytest.raises(ConfigError, match="b has none of the levels"):
        mixed.only(["drop"])


def test_budgets_outside_tell_both_ends() -> None:
    table = bits_table(SITES, [2, 4])
    for budget in (1, 10**6):
        with pytest.raises(BudgetError, match="1792 bits to 3584 bits"):
            limits_of(table, budget)
    with pytest.raises(BudgetError, match="of group '128'"):
        limits_of(table, {"128": 1, "512": 2000})
    with pytest.raises(ConfigError, match="budget by group"):
        limits_of(table, {"other": 1})
    with pytest.raises(ConfigError, match="budget by group"):
        limits_of(table.grouped("none"), {})


def test_without_errors_uniform_spends_most_and_sums_are_refused() -> None:
    table = bits_table(SITES, [2, 3, 4])
    weights = sum(SITES.values())
    assert set(uniform(table, 3 * weights).choice) == {1}
    with pytest.raises(ConfigError, match="adds up errors"):
        dynamic_programme(table, 3 * weights)
    assert not table.grouped("name").has_errors


@pytest.mark.parametrize(
    "call",
    [
        lambda: sparsity_table({"a": 10}, 1.0, 1),
        lambda: sparsity_table({"a": 10}, 0.5, 0),
        lambda: sparsity_step(100, 0.0),
        lambda: LevelTable(["a"], ["x"], [[1]], groups=["g", "h"]),
    ],
)
def test_bad_arguments_are_refused(call: object) -> None:
    with pytest.raises(ConfigError):
        call()  # type: ignore[operator]


def test_sites_of_one_size_may_trade_in_steps_of_different_length() -> None:
    table = bits_table({"a": 10, "b": 10, "c": 20}, [2, 3, 4, 6])
    assert table.groups == ("10+20", "10+20", "20+40")
    assert np.isfinite(table.errors).all()
