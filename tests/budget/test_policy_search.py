import numpy as np
import pytest
import torch

from laconic.budget import LevelTable
from laconic.budget.policy import PolicySpec
from laconic.budget.policy_search import describe, policy_search
from laconic.budget.sampler import Sampler
from laconic.budget.solve import uniform
from laconic.errors import BudgetError, ConfigError

COSTS = np.array([[10, 20, 40]] * 5)
# Where a byte goes matters: two sites are spoilt fast, three hardly.
ERRORS = np.array(
    [[9.0, 4.0, 0.0], [8.0, 3.0, 0.0], [0.3, 0.2, 0.0], [0.2, 0.1, 0.0], [0.1, 0.05, 0.0]]
)
TABLE = LevelTable([f"s{i}" for i in range(5)], ["small", "middle", "large"], COSTS, ERRORS)


def fitness(assignments, minibatch):
    return [1.0 + a.error for a in assignments]


def search(table=TABLE, judge=fitness, **changes):
    settings = {"budget": 110, "iterations": 15, "rollouts": 6, "seed": 1, **changes}
    return policy_search(table, judge, Sampler([1] * 8), **settings)


def test_it_keeps_the_budget_and_beats_uniform():
    found = search()
    assert found.cost <= 110
    assert found.fitness < 1.0 + uniform(TABLE, 110).error
    assert found.fitness == pytest.approx(1.0 + found.assignment.error)
    assert found.method == "policy"
    assert len(found.history) == 15
    assert all(row.cost <= 110 for row in found.history)


def test_it_learns_what_the_table_does_not_know():
    """Only the fitness knows that site 4 matters; its share of large levels must rise."""

    def judge(assignments, minibatch):
        return [10.0 - 3 * a.choice[4] + 0.1 * a.error for a in assignments]

    flat = LevelTable(TABLE.sites, TABLE.levels, COSTS, np.tile([0.2, 0.1, 0.0], (5, 1)))
    found = search(flat, judge, iterations=25)
    assert found.assignment.choice[4] == 2


def test_never_worse_than_the_reference():
    def judge(assignments, minibatch):  # the reference is the best there is
        return [float(a.choice != (1, 1, 1, 1, 1)) for a in assignments]

    found = search(judge=judge, budget=100, iterations=2)
    assert found.assignment.choice == (1, 1, 1, 1, 1)


def test_budget_by_group_and_missing_levels():
    errors = ERRORS.copy()
    errors[0, 2] = np.inf
    table = LevelTable(TABLE.sites, TABLE.levels, COSTS, errors, groups=("a", "a", "b", "b", "b"))
    found = search(table, budget={"a": 50, "b": 60})
    costs = [int(COSTS[i, level]) for i, level in enumerate(found.assignment.choice)]
    assert sum(costs[:2]) <= 50
    assert sum(costs[2:]) <= 60
    assert found.assignment.choice[0] < 2


def test_a_stopped_search_ends_in_the_same_answer(tmp_path):
    whole = search()
    calls = []

    def killed(assignments, minibatch):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return fitness(assignments, minibatch)

    path = tmp_path / "search.pt"
    with pytest.raises(KeyboardInterrupt):
        search(judge=killed, checkpoint=path)
    again = search(checkpoint=path)
    assert again.assignment == whole.assignment
    assert [row.choice for row in again.history] == [row.choice for row in whole.history]
    assert again.evaluations == whole.evaluations
    with pytest.raises(ConfigError, match="other settings"):
        search(checkpoint=path, seed=2)
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match="cannot be read"):
        search(checkpoint=path)


def test_the_policy_can_go_on_with_another_table(tmp_path):
    path = tmp_path / "p.safetensors"
    search(save_policy=path)
    longer = LevelTable(
        [f"t{i}" for i in range(10)], TABLE.levels, np.tile(COSTS, (2, 1)), np.tile(ERRORS, (2, 1))
    )
    found = search(longer, budget=220, policy=PolicySpec(lr=0.01, init=path), iterations=3)
    assert found.cost <= 220


def test_what_the_policy_reads():
    rows = describe(TABLE)
    assert rows.shape == (5, 8)
    assert rows[:, 0].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert torch.equal(rows[0, 2:5], torch.tensor([0.25, 0.5, 1.0]))
    assert float(rows[0, 5]) == 1.0  # the largest error of all


def test_mistakes_are_told():
    with pytest.raises(BudgetError, match="outside what the levels can attain"):
        search(budget=10)
    with pytest.raises(ConfigError, match="rollouts=0 must be at least 1"):
        search(rollouts=0)
