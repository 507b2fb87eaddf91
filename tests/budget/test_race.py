"""Races: selection by stages, the noise of the judgement, values that are no numbers."""

from __future__ import annotations

import numpy as np
import pytest
from budget_support import Linear, Noisy, documents, subset_table

from laconic.budget import Assignment, Minibatch, evolve
from laconic.budget.race import Race, difference_noise
from laconic.errors import BackendError, LaconicWarning


def test_noise_of_a_difference_by_hand_and_by_simulation() -> None:
    # Two candidates, two pieces: differences 1 and 3, so their mean has error |3 - 1| / 2.
    assert difference_noise(np.array([[1.0, 3.0], [0.0, 0.0]])) == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    scale, pieces = 0.3, 4
    estimates, differences = [], []
    for _ in range(300):
        scores = rng.random((8, 1)) + 5 * rng.random((1, pieces))  # hard and easy pieces
        noisy = scores + scale * rng.standard_normal((8, pieces))
        estimates.append(difference_noise(noisy) or 0.0)
        means, true = noisy.mean(1), scores.mean(1)
        differences.append((means[0] - means[1]) - (true[0] - true[1]))
    assert np.sqrt(np.mean(np.square(estimates))) == pytest.approx(np.std(differences), rel=0.15)


def test_noise_needs_two_finite_candidates_and_pieces() -> None:
    inf = float("inf")
    assert difference_noise(np.array([[1.0, 2.0], [inf, 2.0]])) is None
    assert difference_noise(np.array([[1.0], [2.0]])) is None


def test_noisy_stages_are_told_and_quiet_ones_are_not() -> None:
    table = subset_table(10)
    weights = np.random.default_rng(0).random((10, 2))
    settings = {
        "budget": 5, "generations": 12, "offspring": 8, "initial": (4, 20),
        "stages": ((3, 100), (1, 400)),
    }  # fmt: skip
    with pytest.warns(LaconicWarning, match=r"stage 1 of 100 tokens: two candidates differ by"):
        found = evolve(table, Noisy(weights, 30.0), documents(), **settings)
    assert any("standard error" in note for note in found.notes)
    quiet = evolve(table, Noisy(weights, 0.001), documents(), **settings)
    measured = [g.number for g in quiet.history if any(s.noise is not None for s in g.stages)]
    assert measured == [1, 11]
    assert not quiet.notes


def test_stages_keep_the_best_and_the_parent_wins_ties() -> None:
    table = subset_table(3)
    weights = np.stack([np.zeros(3), np.array([-1.0, -2.0, -2.0])], axis=1)
    race = Race(table, Linear(weights), documents())
    children = [(0, 0, 1), (1, 0, 0), (0, 0, 0)]
    winner, value, records = race.run(
        children, ((2, 20), (1, 40)), np.random.default_rng(0), parent=(0, 1, 0)
    )
    assert (winner, value) == ((0, 1, 0), -2.0)
    assert [(r.candidates, r.survivors, r.tokens, r.spread) for r in records] == [
        (3, 2, 20, 1.0), (3, 1, 40, 1.0),
    ]  # fmt: skip
    assert (race.evaluations, race.tokens) == (6, 3 * 20 + 3 * 40)


def test_what_is_no_number_loses_and_is_told_once() -> None:
    table = subset_table(4)

    def fitness(assignments: list[Assignment], minibatch: Minibatch, /) -> list[float]:
        return [float("nan") if a.choice[0] else float(a.choice[1]) for a in assignments]

    with pytest.warns(LaconicWarning, match="not a number") as told:
        found = evolve(
            table, fitness, documents(), budget=2, generations=6, offspring=4,
            stages=((2, 20), (1, 20)), initial=(6, 20),
        )  # fmt: skip
    assert len(told) == 1
    assert found.assignment.choice == (0, 0, 1, 1)


def test_wrong_number_of_values_is_refused() -> None:
    race = Race(subset_table(2), lambda assignments, minibatch: [0.0], documents())
    with pytest.raises(BackendError, match=r"shape \(1,\) for 2 assignments"):
        race.score([(0, 1), (1, 0)], Minibatch((0,), (5,)))
