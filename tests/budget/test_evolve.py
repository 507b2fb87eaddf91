"""Evolutionary search: its invariants, its guards, its speed on a problem with a known answer."""

from __future__ import annotations

import json
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from budget_support import Linear, Noisy, documents, subset_table

from laconic.budget import LevelTable, SearchResult, bits_table, depth_table, evolve, sparsity_table
from laconic.budget.mutate import Moves, draw_switches
from laconic.errors import BudgetError, ConfigError

RNG = np.random.default_rng
FAST = {"stages": ((2, 20), (1, 40)), "initial": (8, 20)}


def weights_of(table: LevelTable, seed: int = 0) -> np.ndarray:
    return RNG(seed).random((len(table.sites), len(table.levels)))


def test_number_of_switches_is_the_smaller_of_two_draws() -> None:
    rng, drawn = RNG(0), np.zeros(4)
    for _ in range(9000):
        drawn[draw_switches(rng, 3)] += 1
    expected = 9000 * np.array([5, 3, 1]) / 9
    chi_square = ((drawn[1:] - expected) ** 2 / expected).sum()
    assert drawn[0] == 0
    assert chi_square < 13.8  # 2 degrees of freedom, p = 0.001


def test_offspring_are_distinct_legal_and_differ_by_at_most_three_switches() -> None:
    table = sparsity_table({f"s{i}": 100 * (1 + i % 3) for i in range(12)}, 0.6, 10, reach=2)
    moves = Moves(table, table.assignment([2] * 12).cost)
    parent = (2,) * 12
    children, complete = moves.offspring(parent, 200, RNG(1))
    assert complete
    assert len(set(children)) == len(children) == 200
    assert parent not in children
    for child in children:
        assert table.is_legal(child)
        assert table.assignment(child).cost == table.assignment(parent).cost
        assert 1 <= sum(abs(a - b) for a, b in zip(child, parent, strict=True)) <= 6


@pytest.mark.parametrize("rule", ["size", "name"])
def test_every_visited_assignment_has_exactly_the_budget(rule: str) -> None:
    sizes = {f"layers.{i}.{r}": 64 if r == "q" else 160 for i in range(5) for r in ("q", "up")}
    table = bits_table(sizes, [2, 3, 4], groups=rule)  # type: ignore[arg-type]
    for bits in (3.0, 2.25, 2.6):
        fitness = Linear(weights_of(table))
        budget = int(bits * sum(sizes.values()))
        found = evolve(
            table, fitness, documents(), budget=budget, generations=12, offspring=8, **FAST
        )
        costs = {a.cost for a in fitness.seen[8 if bits != 3.0 else 0 :]} | {found.cost}
        assert len(costs) == 1
        assert budget - 64 < costs.pop() <= budget
        assert all(table.is_legal(a.choice) for a in fitness.seen)


def test_groups_of_depth_keep_their_own_budgets() -> None:
    table = depth_table({f"{i}.{g}": g for i in range(8) for g in ("attention", "mlp")})
    fitness = Linear(weights_of(table))
    evolve(
        table, fitness, documents(), budget={"attention": 5, "mlp": 6}, generations=20,
        offspring=8, **FAST,
    )  # fmt: skip
    for given in fitness.seen:
        kept = np.array(given.choice)
        assert (kept[0::2].sum(), kept[1::2].sum()) == (5, 6)


def test_mixed_costs_never_exceed_the_budget_and_get_close() -> None:
    rng = RNG(3)
    costs = rng.integers(50, 1000, size=(15, 4))
    errors = np.where(rng.random((15, 4)) < 0.2, np.inf, 1.0)
    errors[:, 0] = 1.0
    table = LevelTable([f"s{i}" for i in range(15)], list("wxyz"), costs, errors, fixed_bytes=99)
    low, high = table.attainable()
    budget = (low + high) // 2
    weights = -np.sqrt(costs)  # more bytes, less error
    for reach in (1, 3):
        fitness = Linear(weights)
        found = evolve(
            table, fitness, documents(), budget=budget, generations=60, offspring=16,
            reach=reach, **FAST,
        )  # fmt: skip
        assert all(a.cost <= budget and table.is_legal(a.choice) for a in fitness.seen)
        assert found.cost > 0.97 * budget
        assert found.fitness < min(fitness([fitness.seen[0]], documents().everything()))


def test_elitism_never_lets_the_best_get_worse() -> None:
    table = subset_table(20)
    fitness = Linear(weights_of(table))
    found = evolve(table, fitness, documents(), budget=12, generations=40, offspring=4, **FAST)
    values = [g.fitness for g in found.history]
    assert all(late <= early for early, late in pairwise(values))
    assert values[-1] < values[0]


def test_parent_joins_the_last_stage_alone_even_when_all_keep_one() -> None:
    table, fitness = subset_table(10), Linear(RNG(0).random((10, 2)))
    found = evolve(
        table, fitness, documents(), budget=5, generations=3, offspring=6,
        stages=((1, 20), (1, 30)), initial=(1, 20),
    )  # fmt: skip
    for generation in found.history[1:]:
        assert [s.candidates for s in generation.stages] == [6, 2]


def test_candidates_of_a_stage_share_documents_and_stages_draw_fresh_ones() -> None:
    table, fitness = subset_table(10), Linear(RNG(0).random((10, 2)))
    evolve(
        table, fitness, documents(), budget=5, generations=3, offspring=6,
        stages=((3, 100), (1, 100)), initial=(1, 20), seed=1,
    )  # fmt: skip
    later = fitness.calls[8:]  # the first generation is judged in pieces, to measure the noise
    assert [count for count, _ in later] == [6, 4, 6, 4]
    drawn = [minibatch for _, minibatch in later]
    assert len(set(drawn)) == len(drawn)
    pieces = [m for _, m in fitness.calls[:4]]
    assert sum(m.tokens for m in pieces) == 100
    assert len({d for m in pieces for d in m.documents}) == 10


@pytest.mark.parametrize("children", [1, 4])
def test_linear_fitness_on_subsets_is_solved_as_fast_as_the_theory_says(children: int) -> None:
    units, dropped = 12, 4
    table, generations = subset_table(units), []
    limit = 300 // children
    for seed in range(20):
        weights = np.stack([np.zeros(units), -RNG(seed).permutation(units)], axis=1)
        found = evolve(
            table, Linear(weights), documents(), budget=units - dropped, generations=limit,
            offspring=children, stages=((1, 20),), initial=(1, 20), seed=seed,
        )  # fmt: skip
        optimum = -sum(range(dropped, units))
        assert found.fitness == optimum
        generations.append(next(g.number for g in found.history if g.fitness == optimum))
    assert np.mean(generations) <= 3 * dropped * (units - dropped) / children


def test_it_beats_its_start_and_finds_the_enumerated_optimum() -> None:
    table = bits_table({f"s{i}": 10 for i in range(6)}, [2, 3, 4])
    weights = weights_of(table, 5)
    best = min(
        weights[np.arange(6), list(c)].sum() for c in product(range(3), repeat=6) if sum(c) == 6
    )
    found = evolve(
        table, Linear(weights), documents(), budget=180, generations=40, offspring=8, **FAST
    )
    assert found.fitness == pytest.approx(best)


def outcome(found: SearchResult) -> dict[str, object]:
    return {k: v for k, v in found.to_dict().items() if k != "seconds"}


def test_killed_at_any_call_it_resumes_to_the_same_answer(tmp_path: Path) -> None:
    table = bits_table({f"s{i}": 10 for i in range(8)}, [2, 3, 4])

    def run(fitness: Noisy, path: Path | None = None) -> SearchResult:
        return evolve(
            table, fitness, documents(), budget=220, generations=5, offspring=6,
            checkpoint=path, seed=4, **FAST,
        )  # fmt: skip

    whole = Noisy(weights_of(table), 0.01)
    expected = outcome(run(whole))

    class Killed(Noisy):
        left = 0

        def __call__(self, *args: object) -> list[float]:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().__call__(*args)  # type: ignore[arg-type]

    for calls in range(len(whole.calls)):
        path = tmp_path / f"{calls}.json"
        dying = Killed(weights_of(table), 0.01)
        dying.left = calls
        with pytest.raises(KeyboardInterrupt):
            run(dying, path)
        assert outcome(run(Noisy(weights_of(table), 0.01), path)) == expected
        again = Noisy(weights_of(table), 0.01)
        assert outcome(run(again, path)) == expected
        assert not again.calls  # a finished search is read, not run


def test_longer_search_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    table, path = subset_table(12), tmp_path / "state.json"
    weights = weights_of(table)
    settings = {"budget": 6, "offspring": 4, **FAST}
    evolve(table, Linear(weights), documents(), generations=3, checkpoint=path, **settings)
    longer = evolve(table, Linear(weights), documents(), generations=9, checkpoint=path, **settings)
    at_once = evolve(table, Linear(weights), documents(), generations=9, **settings)
    assert outcome(longer) == outcome(at_once)


def test_foreign_and_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    table, path = subset_table(8), tmp_path / "state.json"
    settings = {"generations": 1, "offspring": 4, "checkpoint": path, **FAST}
    evolve(table, Linear(weights_of(table)), documents(), budget=4, **settings)
    with pytest.raises(ConfigError, match=r"state\.json belongs to a search with other"):
        evolve(table, Linear(weights_of(table)), documents(), budget=5, **settings)
    for damage in ("{", "[]", '{"key": 1}', '{"history": [], "key": "x"}'):
        path.write_text(damage)
        with pytest.raises(ConfigError, match="no checkpoint of a search"):
            evolve(table, Linear(weights_of(table)), documents(), budget=4, **settings)


@pytest.mark.parametrize("budget", [0, 6])
def test_it_ends_where_nothing_can_move(budget: int) -> None:
    table, fitness = subset_table(6), Linear(RNG(0).random((6, 2)))
    found = evolve(table, fitness, documents(), budget=budget, generations=50, offspring=9, **FAST)
    assert len(set(found.assignment.choice)) == 1
    assert any("ended early" in note for note in found.notes)
    repaired = evolve(
        table.grouped("none"), fitness, documents(), budget=budget, generations=50, **FAST,
        offspring=9,
    )  # fmt: skip
    assert repaired.assignment.choice == found.assignment.choice


def test_small_spaces_give_fewer_offspring_and_say_so() -> None:
    table, fitness = subset_table(3), Linear(RNG(0).random((3, 2)))
    found = evolve(table, fitness, documents(), budget=1, generations=2, offspring=50, **FAST)
    assert found.history[-1].stages[0].candidates == 2
    assert any("fewer offspring" in note for note in found.notes)


def test_starts() -> None:
    table = bits_table({f"s{i}": 10 for i in range(6)}, [2, 3, 4])
    run = {"generations": 0, "offspring": 4, **FAST}
    judge = Linear(weights_of(table))
    uniform = evolve(table, judge, documents(), budget=180, **run)
    assert uniform.assignment.choice == (1,) * 6
    assert not judge.seen  # a single start needs no judgement
    drawn = evolve(table, judge, documents(), budget=150, **run)
    assert sorted(drawn.assignment.choice) == [0, 0, 0, 1, 1, 1]  # just below, as near as can be
    given = [table.assignment(c) for c in ((0, 0, 0, 2, 2, 2), (2, 0, 2, 0, 2, 0))]
    taken = evolve(table, judge, documents(), budget=180, start=given, **run)
    assert taken.assignment == min(given, key=lambda a: judge([a], documents().everything())[0])
    with pytest.raises(ConfigError, match="costs more than the budget"):
        evolve(table, judge, documents(), budget=170, start=given, **run)
    with pytest.raises(ConfigError, match="no single level"):
        evolve(
            LevelTable(["a", "b"], ["s", "l"], [[1, 9], [9, 1]]), Linear(np.zeros((2, 2))),
            documents(), budget=5, start="uniform", **run,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ((4, 20), (2, 40))}, "last stage must keep 1"),
        ({"stages": ()}, "last stage must keep 1"),
        ({"stages": ((2, 20), (3, 20), (1, 20))}, "stage 2 keeps 3 of 2"),
        ({"stages": ((9, 20), (1, 20))}, "stage 1 keeps 9 of 8"),
        ({"stages": ((1, 2001),)}, "stage 1: 2001 tokens .* the 2000 of the search set"),
        ({"initial": (8, 2001)}, "initial: 2001 tokens"),
        ({"generations": -1}, "generations=-1"),
        ({"offspring": 0}, "0 candidates"),
        ({"max_switches": 0}, "max_switches=0"),
        ({"reach": 0}, "reach=0"),
        ({"start": "best"}, "start='best'"),
        ({"start": []}, "empty list"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, object], message: str) -> None:
    table = subset_table(6)
    settings = {"budget": 3, "generations": 1, "offspring": 8, **FAST, **changes}
    with pytest.raises(ConfigError, match=message):
        evolve(table, Linear(weights_of(table)), documents(), **settings)  # type: ignore[arg-type]


def test_unreachable_budgets_are_refused() -> None:
    table = subset_table(6)
    with pytest.raises(BudgetError, match=r"7 units is outside .* 0 units to 6 units"):
        evolve(table, Linear(weights_of(table)), documents(), budget=7, **FAST)  # type: ignore[arg-type]


def test_result_survives_json(tmp_path: Path) -> None:
    table = subset_table(6)
    found = evolve(
        table, Linear(weights_of(table)), documents(), budget=3, generations=3, offspring=4, **FAST
    )
    found.save(tmp_path / "found.json")
    read = SearchResult.from_dict(json.loads((tmp_path / "found.json").read_text()))
    assert read.assignment == found.assignment
    assert read.history == found.history
    assert (read.evaluations, read.tokens) == (found.evaluations, found.tokens)
    stages = [s for g in found.history for s in g.stages]
    assert found.evaluations == sum(s.candidates for s in stages)
    assert found.tokens == sum(s.candidates * s.tokens for s in stages)
