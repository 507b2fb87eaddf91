"""Random, greedy, OWL, uniform and exact solvers in one frame; never worse than uniform."""

from __future__ import annotations

from itertools import product
from math import isnan
from pathlib import Path

import numpy as np
import pytest
from budget_support import Linear, Noisy, documents, subset_table

from laconic.budget import (
    SOLVERS,
    LevelTable,
    SearchResult,
    bits_table,
    depth_table,
    evolve,
    greedy_search,
    never_worse,
    owl,
    owl_assignments,
    random_search,
    solver,
    sparsity_table,
    uniform_assignments,
)
from laconic.budget.owl import outlier_sparsity
from laconic.errors import BudgetError, ConfigError

SIZES = {f"s{i}": 10 * (1 + i % 2) for i in range(6)}
WEIGHTS = np.random.default_rng(1).random((6, 3))


def outcome(found: SearchResult) -> dict[str, object]:
    return {k: v for k, v in found.to_dict().items() if k != "seconds"}


def test_every_solver_keeps_the_budget_and_is_called_alike() -> None:
    errors = np.sort(WEIGHTS, axis=1)[:, ::-1]
    table = bits_table(SIZES, [2, 3, 4], errors=errors)
    budget = 3 * sum(SIZES.values())
    small = {"generations": 3, "offspring": 4, "stages": ((1, 20),)}
    own = {
        "evolve": {**small, "initial": (4, 20)}, "random": small, "greedy": {"tokens": 20},
        "owl": {"outliers": {5.0: [1, 2, 3, 4, 5, 6]}, "tokens": 20},
        "policy": {"iterations": 2, "rollouts": 2, "tokens": 20}, "dp": {}, "uniform": {},
    }  # fmt: skip
    assert set(own) == set(SOLVERS)
    for name, settings in own.items():
        found = solver(name)(table, Linear(errors), documents(), budget=budget, **settings)  # type: ignore[arg-type]
        assert found.method == name
        assert found.cost == table.assignment(found.assignment.choice).cost <= budget
        assert table.is_legal(found.assignment.choice)
        assert SearchResult.from_dict(found.to_dict()).assignment == found.assignment
    with pytest.raises(ConfigError, match=r"no solver 'evolv'. Did you mean 'evolve'"):
        solver("evolv")


def test_random_search_judges_as_much_as_evolution_and_resumes(tmp_path: Path) -> None:
    table = bits_table({f"s{i}": 10 for i in range(8)}, [2, 3, 4])
    weights = np.random.default_rng(0).random((8, 3))
    settings = {"budget": 240, "generations": 6, "offspring": 10, "stages": ((3, 20), (1, 40))}
    judge = Linear(weights)
    drawn = random_search(table, judge, documents(), **settings)
    evolved = evolve(table, Linear(weights), documents(), **settings)
    assert (drawn.evaluations, drawn.tokens) == (evolved.evaluations, evolved.tokens)
    assert {a.cost for a in judge.seen} == {240}
    assert len({a.choice for a in judge.seen}) > 30
    path = tmp_path / "state.json"
    random_search(
        table, Linear(weights), documents(), checkpoint=path, **{**settings, "generations": 2}
    )
    again = random_search(table, Linear(weights), documents(), checkpoint=path, **settings)
    assert outcome(again) == outcome(drawn)


def test_random_search_over_a_small_space_finds_the_optimum() -> None:
    table = subset_table(5)
    weights = np.random.default_rng(0).random((5, 2))
    found = random_search(
        table, Linear(weights), documents(), budget=2, generations=4, offspring=6,
        stages=((1, 20),),
    )  # fmt: skip
    best = min(
        weights[np.arange(5), list(c)].sum() for c in product(range(2), repeat=5) if sum(c) == 2
    )
    assert found.fitness == pytest.approx(best)


def test_greedy_is_optimal_on_sums_and_keeps_group_budgets(tmp_path: Path) -> None:
    table = depth_table({f"{i}.{g}": g for i in range(6) for g in ("attention", "mlp")})
    gains = np.random.default_rng(2).permutation(12).astype(float)
    weights = np.stack([gains, np.zeros(12)], axis=1)  # dropping a unit costs its gain
    budget = {"attention": 4, "mlp": 3}
    found = greedy_search(table, Linear(weights), documents(), budget=budget, tokens=20)
    lost = np.sort(gains[0::2])[:2].sum() + np.sort(gains[1::2])[:3].sum()
    assert found.fitness == lost
    assert len(found.history) == 1 + 5
    assert found.evaluations == sum(s.candidates for g in found.history for s in g.stages)

    class Killed(Linear):
        def __call__(self, *args: object) -> list[float]:
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().__call__(*args)  # type: ignore[arg-type]

    settings = {"budget": budget, "tokens": 20, "checkpoint": tmp_path / "state.json"}
    with pytest.raises(KeyboardInterrupt):
        greedy_search(table, Killed(weights), documents(), **settings)
    again = greedy_search(table, Linear(weights), documents(), **settings)
    assert outcome(again) == outcome(found)


def test_greedy_weighs_what_a_step_saves_and_climbs_again() -> None:
    # Lowering "big" saves 10 for an error of 5, "small" 1 for 1: the first is the better bargain.
    # 3 of the budget are left then, and "late" goes up again.
    table = LevelTable(
        ["big", "small", "late"], ["low", "high"], [[0, 10], [0, 1], [0, 2]], groups=None
    )
    weights = np.array([[5.0, 0.0], [1.0, 0.0], [0.1, 0.0]])
    found = greedy_search(table, Linear(weights), documents(), budget=3)
    assert found.assignment.choice == (0, 1, 1)
    assert [g.choice for g in found.history] == [(1, 1, 1), (1, 1, 0), (0, 1, 0), (0, 1, 1)]


def test_owl_by_hand() -> None:
    # D = 1, 2, 3 and lambda = .1: D' = 0, .1, .2 with mean .1, so .7 +- .1.
    assert outlier_sparsity(np.array([1.0, 2.0, 3.0]), 0.7, 0.1).tolist() == pytest.approx(
        [0.8, 0.7, 0.6]
    )
    assert outlier_sparsity(np.array([2.0, 2.0]), 0.7, 0.1).tolist() == [0.7, 0.7]
    weighed = outlier_sparsity(np.array([1.0, 3.0]), 0.5, 0.1, weights=np.array([3.0, 1.0]))
    assert weighed @ [3, 1] == pytest.approx(0.5 * 4)


def test_owl_assignments_follow_the_shares_and_keep_the_budget() -> None:
    sizes = {f"b{i // 2}.{i % 2}": 1000 * (1 + i % 2) for i in range(6)}
    table = sparsity_table(sizes, 0.7, 10, reach=30)
    outliers = {5.0: [1, 1, 2, 2, 3, 3]}
    dense = list(sizes.values())
    budget = table.assignment([30] * 6).cost
    found = owl_assignments(table, budget, outliers, dense_costs=dense, lambdas=[0.1, 0.05])
    kept = {
        key: [int(table.costs[i, c]) for i, c in enumerate(a.choice)] for key, a in found.items()
    }
    assert kept[5.0, 0.1] == [200, 400, 300, 600, 400, 800]
    assert kept[5.0, 0.05] == [250, 500, 300, 600, 350, 700]
    weights = np.abs(table.costs - np.array([[250], [500], [300], [600], [350], [700]]))
    best = owl(
        table, Linear(weights), documents(), budget=budget, outliers=outliers, dense_costs=dense,
        lambdas=[0.1, 0.05],
    )  # fmt: skip
    assert best.settings["lambda"] == 0.05
    assert best.fitness == 0
    assert best.evaluations == 2
    coarse = owl_assignments(bits_table(sizes, [2, 3, 4]), 26000, outliers)
    assert all(24000 < a.cost <= 26000 for a in coarse.values())


@pytest.mark.parametrize(
    "changes",
    [{"outliers": {}}, {"outliers": {5.0: [1.0]}}, {"lambdas": [0.0]}, {"dense_costs": [1, 2]}],
)
def test_owl_refuses_what_does_not_fit(changes: dict[str, object]) -> None:
    settings = {"outliers": {5.0: [1.0] * 6}, **changes}
    with pytest.raises(ConfigError, match="owl"):
        owl_assignments(bits_table(SIZES, [2, 3]), 200, **settings)  # type: ignore[arg-type]


def test_uniform_candidates_and_the_fittest_of_them() -> None:
    table = LevelTable(
        ["a", "b"], ["3b", "2:4", "2b", "4b"], [[3, 3, 2, 4]] * 2, [[1.0, 1.5, 2.0, 0.5]] * 2
    )
    names = [table.levels[a.choice[0]] for a in uniform_assignments(table, 7)]
    assert names == ["3b", "2b"]  # "2:4" costs as much as "3b" and has more error
    weights = np.array([[9.0, 0, 1, 0]] * 2)
    found = solver("uniform")(table, Linear(weights), documents(), budget=7)
    assert found.assignment.choice == (2, 2)  # judged, the cheaper one is the fitter
    assert "3 B of the budget" in found.notes[0]
    lone = solver("uniform")(bits_table(SIZES, [2, 4]), Linear(WEIGHTS), documents(), budget=200)
    assert isnan(lone.fitness)
    crossed = LevelTable(["a", "b"], ["s", "l"], [[1, 9], [9, 1]])
    with pytest.raises(BudgetError, match="no level that all sites have"):
        solver("uniform")(crossed, Linear(WEIGHTS), documents(), budget=5)


def test_exact_solver_keeps_each_group_budget() -> None:
    table = depth_table({f"{i}": "ab"[i % 2] for i in range(8)})
    gains = np.random.default_rng(0).random(8)
    errors = np.stack([gains, np.zeros(8)], axis=1)
    known = LevelTable(table.sites, table.levels, table.costs, errors, groups=table.groups)
    found = solver("dp")(known, Linear(errors), documents(), budget={"a": 2, "b": 3})
    kept = np.array(found.assignment.choice)
    assert set(np.flatnonzero(kept[0::2])) == set(np.argsort(gains[0::2])[-2:])
    assert set(np.flatnonzero(kept[1::2])) == set(np.argsort(gains[1::2])[-3:])


def test_a_winner_that_loses_on_held_out_text_gives_way_to_uniform() -> None:
    table = bits_table({f"s{i}": 10 for i in range(6)}, [2, 3, 4])
    weights = np.array([[2.0, 0.0, 1.0]] * 6)
    held_out = documents().everything()
    overfit = table.assignment((0, 2, 0, 2, 0, 2))
    verdict = never_worse(table, overfit, Linear(weights), held_out, budget=180)
    assert verdict.is_uniform
    assert verdict.assignment.choice == (1,) * 6
    assert (verdict.winner_fitness, verdict.uniform_fitness, verdict.fitness) == (9.0, 0.0, 0.0)
    assert "'3 bits' everywhere" in verdict.reason
    kept = never_worse(table, overfit, Linear(-weights), held_out, budget=180)
    assert not kept.is_uniform
    assert kept.assignment == overfit
    broken = never_worse(table, overfit, Noisy(weights, float("nan")), held_out, budget=180)
    assert broken.is_uniform
    depth = depth_table({"0": "a", "1": "a", "2": "b"})
    alone = never_worse(
        depth, depth.assignment((1, 0, 1)), Linear(np.ones((3, 2))), held_out,
        budget={"a": 1, "b": 1},
    )  # fmt: skip
    assert not alone.is_uniform
    assert alone.fitness == 3.0
