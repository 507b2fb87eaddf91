"""How many weights go from each scope, and which."""

from __future__ import annotations

from math import ceil, floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from laconic import measure
from laconic.weights.prune.iterative import (
    SparsityInformed,
)
from laconic.weights.prune.iterative.criteria import at_most, scope_index, thinned
from laconic.weights.prune.iterative.schedules import Cubic, Share, Turnout

SCOPES = ["global", "layer", "neuron"]
scopes = pytest.mark.parametrize("scope", SCOPES)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turnout(counts: list[int], index: list[float], p: float = 0.5, q: float = 1.0) -> Turnout:
    return Turnout(0, 4, torch.tensor(counts), torch.tensor(index).double(), 1000, p, q)


@pytest.mark.parametrize(("p", "q"), [(0.5, 1.0), (1.0, 2.0)])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0])
def test_counts_are_those_of_the_algorithm(p: float, q: float, gamma: float) -> None:
    counts, index, eta = [100, 37, 1, 5], [0.153, 0.4, 0.0, 0.75], 0.01
    told = turnout(counts, index, p, q)
    found = SparsityInformed(gamma=gamma, eta=eta).removals(told)
    for d, i, c in zip(counts, index, found.tolist(), strict=True):
        bound = d * (1 + eta) ** (-q / (q - p)) * (1 - i) ** (p * q / (q - p))
        r = min(max(ceil(bound - 1e-9), 1), d)
        assert c == floor(d * min(max(gamma * (1 - r / d), 0), 0.9) + 1e-9)
        assert c <= 0.9 * d


def test_equal_weights_and_no_gamma_remove_nothing() -> None:
    assert SparsityInformed(gamma=9).removals(turnout([50, 7], [0.0, 0.0])).tolist() == [0, 0]
    assert SparsityInformed(gamma=0).removals(turnout([50, 7], [0.9, 0.5])).tolist() == [0, 0]
    assert SparsityInformed(gamma=9).removals(turnout([0, 7], [0.0, 0.6])).tolist() == [0, 6]


def test_the_other_schedules() -> None:
    assert Share(share=0.2).removals(turnout([100, 7, 0], [0.1] * 3)).tolist() == [20, 1, 0]
    kept, left = [], 1000
    for iteration in range(4):
        told = Turnout(iteration, 4, torch.tensor([left]), torch.zeros(1), 1000, 0.5, 1.0)
        left -= int(Cubic(density=0.1).removals(told))
        kept.append(left)
    wanted = [1000 * (1 - 0.9 * (1 - (1 - t / 4) ** 3)) for t in (1, 2, 3, 4)]
    assert kept == [pytest.approx(value, abs=1.5) for value in wanted]


@scopes
@given(seed=st.integers(0, 1000), exact=st.booleans())
@settings(deadline=None, max_examples=25)
def test_the_lowest_scores_go_and_masks_are_nested(scope: str, seed: int, exact: bool) -> None:
    weights = {"a": drawn(seed, 6, 7), "b": drawn(seed + 1, 3, 5)}
    masks = {name: drawn(seed + 2, *w.shape) > -0.5 for name, w in weights.items()}
    scores = {name: w.abs() for name, w in weights.items()}
    counts, index = scope_index(weights, masks, scope, 0.5, 1.0)
    told = Turnout(0, 1, counts, index, int(counts.sum()), 0.5, 1.0)
    removed = SparsityInformed(gamma=4).removals(told)
    left = thinned(scores, masks, scope, removed, exact=exact)
    after = scope_index(weights, left, scope, 0.5, 1.0)[0]
    assert torch.equal(counts - after, removed)  # no ties among drawn values
    for name in weights:
        assert not (left[name] & ~masks[name]).any()
    groups = {
        "global": [torch.cat([scores[n].flatten() for n in weights])],
        "layer": list(scores.values()),
        "neuron": [row for s in scores.values() for row in s],
    }[scope]
    old = {"global": [torch.cat([masks[n].flatten() for n in weights])]}.get(
        scope, list(masks.values()) if scope == "layer" else [r for m in masks.values() for r in m]
    )
    new = {"global": [torch.cat([left[n].flatten() for n in weights])]}.get(
        scope, list(left.values()) if scope == "layer" else [r for m in left.values() for r in m]
    )
    for score, before, now in zip(groups, old, new, strict=True):
        if now.any() and (before & ~now).any():
            assert score[before & ~now].max() < score[now].min()


def test_each_scope_has_its_own_index() -> None:
    weights = {"a": drawn(0, 4, 6), "b": drawn(1, 2, 3)}
    masks = {"a": drawn(2, 4, 6) > 0, "b": torch.zeros(2, 3, dtype=torch.bool)}
    masks["b"][1] = True
    everything = torch.cat([weights[n][masks[n]] for n in weights])
    count, index = scope_index(weights, masks, "global", 1.0, 2.0)
    assert int(count) == everything.numel()
    assert float(index) == pytest.approx(float(measure.pqi(everything, 1, 2)))
    count, index = scope_index(weights, masks, "layer", 1.0, 2.0)
    assert count.tolist() == [int(masks["a"].sum()), 3]
    assert float(index[1]) == pytest.approx(float(measure.pqi(weights["b"][1], 1, 2)))
    count, index = scope_index(weights, masks, "neuron", 1.0, 2.0)
    assert count.tolist() == [*masks["a"].sum(1).tolist(), 0, 3]
    assert float(index[0]) == pytest.approx(
        float(measure.pqi(weights["a"][0][masks["a"][0]], 1, 2))
    )
    assert float(index[4]) == 0


def test_ties_at_the_threshold_stay_unless_an_exact_count_is_asked_for() -> None:
    scores = {"a": torch.tensor([[1.0, 2.0, 2.0], [2.0, 3.0, 4.0]])}
    masks = {"a": torch.ones(2, 3, dtype=torch.bool)}
    kept = thinned(scores, masks, "global", torch.tensor([3]))["a"]
    assert kept.tolist() == [[False, True, True], [True, True, True]]
    kept = thinned(scores, masks, "global", torch.tensor([3]), exact=True)["a"]
    assert kept.tolist() == [[False, False, False], [True, True, True]]
    kept = thinned(scores, masks, "neuron", torch.tensor([2, 1]))["a"]
    assert kept.tolist() == [[False, True, True], [False, True, True]]
    kept = thinned(scores, masks, "neuron", torch.tensor([2, 1]), exact=True)["a"]
    assert kept.tolist() == [[False, False, True], [False, True, True]]
    assert at_most(torch.tensor([10, 5, 5]), 10).tolist() == [5, 3, 2]
    assert at_most(torch.tensor([1, 2]), 10).tolist() == [1, 2]
