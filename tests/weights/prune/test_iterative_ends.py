"""What ends a run of iterative pruning, and what its phases are."""

from __future__ import annotations

import pytest
import torch
from iterative_support import run
from torch import nn

from laconic.errors import LaconicWarning
from laconic.weights.prune.iterative import (
    IterativePruning,
    Masks,
    SparsityInformed,
    limit_at,
    lottery_ticket,
    phases,
)

SCOPES = ["global", "layer", "neuron"]
scopes = pytest.mark.parametrize("scope", SCOPES)


@scopes
def test_a_density_is_reached_exactly(scope: str) -> None:
    found = run(lottery_ticket(0.5, scope=scope, stop=0.23, iterations=40))
    total = found.masks.total
    assert found.masks.survivors == round(0.23 * total)
    assert found.best == len(found.history) - 1
    assert "density 0.23 is reached" in found.stopped
    with pytest.warns(LaconicWarning, match=r"stop=0\.001 was not reached in 2"):
        run(lottery_ticket(stop=0.001, iterations=1))
    with pytest.warns(LaconicWarning, match=r"stop=0\.5 was not reached.*nothing more"):
        run(IterativePruning(stop=0.5, iterations=9, schedule=SparsityInformed(gamma=0)))


def index_by_iteration(values: list[float]):
    """A training that leaves weights of a given PQ Index."""

    def train(model: nn.Module, masks: Masks, turn) -> None:
        with torch.no_grad():
            for name, mask in masks.kept.items():
                size = 1 + values[turn.iteration] * torch.linspace(0, 1, int(mask.sum()))
                model.get_parameter(name)[mask] = size

    return train


def test_stops_at_the_rise_of_the_index_and_takes_its_minimum() -> None:
    spread = [9.0, 4.0, 2.0, 2.05, 3.5, 3.5, 9.0, 9.0]
    plan = lottery_ticket(stop="pqi", iterations=7, patience=2)
    found = run(plan, train=index_by_iteration(spread))
    index = [row.pqi for row in found.history]
    assert len(index) == 6
    assert found.best == index.index(min(index)) == 2
    assert found.masks.survivors == found.history[2].survivors
    assert torch.equal(found.state["0.weight"] != 0, found.masks.kept["0.weight"])
    assert "iteration 2" in found.stopped
    patient = run(lottery_ticket(stop="pqi", iterations=7, patience=3),
                  train=index_by_iteration(spread))  # fmt: skip
    assert len(patient.history) == 7
    with pytest.warns(LaconicWarning, match="stop='pqi' was not reached in 4 iterations"):
        run(lottery_ticket(stop="pqi", iterations=3), train=index_by_iteration(spread))


def test_stops_where_the_score_has_collapsed_and_does_not_take_that() -> None:
    scores = {0: 0.9, 1: 0.88, 2: 0.8}
    state = {"now": 0}

    def train(model: nn.Module, masks: Masks, turn) -> None:
        state["now"] = turn.iteration
        index_by_iteration([9.0, 4.0, 2.0, 1.0])(model, masks, turn)

    plan = lottery_ticket(stop="pqi", iterations=9)
    found = run(plan, train=train, evaluate=lambda model: scores[state["now"]])
    assert (len(found.history), found.best) == (3, 1)
    assert "below the dense one" in found.stopped


def test_stops_where_nothing_more_is_to_remove() -> None:
    found = run(IterativePruning(iterations=5, schedule=SparsityInformed(gamma=0)))
    assert len(found.history) == 1
    assert found.masks.density == 1
    assert "nothing more to remove" in found.stopped
    even = run(IterativePruning(iterations=5), train=index_by_iteration([0.0] * 6))
    assert even.masks.density == 1


def test_phases_by_hand() -> None:
    index = [0.16, 0.06, 0.035, 0.036, 0.041, 0.041, 0.10, 0.068, 0.09]
    scores = [0.97] * 7 + [0.95, 0.60]
    assert limit_at(index) == (2, 5)
    assert limit_at(index[:5]) is None
    assert phases(index, scores) == [*["regularising"] * 2, *["limit"] * 5, *["collapse"] * 2]
    assert phases([0.2, 0.1], [0.9, 0.8]) == ["regularising", "collapse"]
