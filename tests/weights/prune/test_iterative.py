"""Prune, rewind, retrain: masks, counts, where trainings start, what ends a run."""

from __future__ import annotations

import itertools
import json
from math import ceil, floor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from iterative_support import bits, drift, masks_of, net, run, task, trainer
from safetensors.torch import load_file
from torch import Tensor, nn

from laconic import measure
from laconic.errors import ConfigError, LaconicWarning, LayerError
from laconic.forms.layers import installed
from laconic.weights.prune.iterative import (
    IterativePruning,
    Masks,
    Row,
    SparsityInformed,
    at_random,
    gradual,
    held_out,
    limit_at,
    lottery_ticket,
    one_shot,
    phases,
    scorer,
)
from laconic.weights.prune.iterative.criteria import at_most, scope_index, thinned
from laconic.weights.prune.iterative.schedules import Cubic, Share, Turnout
from laconic.weights.sites import find_sites

SCOPES = ["global", "layer", "neuron"]
scopes = pytest.mark.parametrize("scope", SCOPES)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- how many, and which ------------------------------------------------------------------------


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


# --- the loop -----------------------------------------------------------------------------------


@scopes
def test_masks_are_nested_and_counts_are_those_of_the_schedule(scope: str) -> None:
    seen: list[tuple[Row, Masks]] = []
    found = run(
        IterativePruning(scope=scope, iterations=4, schedule=SparsityInformed(gamma=3)),
        watch=lambda row, masks: seen.append((row, masks)),
    )
    assert [row.iteration for row in found.history] == [0, 1, 2, 3, 4]
    assert [row.density for row in found.history] == [masks.density for _, masks in seen]
    assert seen[0][1].density == 1
    for (_, before), (_, after) in itertools.pairwise(seen):
        assert after.within(before)
        assert not before.within(after)
    assert found.best == 4
    assert found.masks.survivors == found.history[-1].survivors
    # the first removal, worked out again from weights trained on their own
    model, first = net(), seen[0][1]
    drift(model, first, _turn(0))
    weights = first.weights(model)
    counts, index = scope_index(weights, first.matrices(), scope, 0.5, 1.0)
    told = Turnout(0, 4, counts, index, first.total, 0.5, 1.0)
    removed = SparsityInformed(gamma=3).removals(told)
    assert seen[1][1].survivors == first.total - int(removed.sum())
    flat_weights = torch.cat([w.flatten() for w in weights.values()])
    row = found.history[0]
    assert row.pqi == pytest.approx(float(measure.pqi(flat_weights)))
    assert row.gini == pytest.approx(float(measure.gini(flat_weights)))
    assert set(row.pqi_by_weight) == set(first.kept)


def _turn(iteration: int):
    from laconic.progress import NullProgress
    from laconic.weights.prune.iterative import Turn

    return Turn(iteration, 0, lambda epoch: None, None, NullProgress())


@pytest.mark.parametrize("keep_buffers", [False, True])
def test_survivors_start_from_their_initial_bits(keep_buffers: bool) -> None:
    first, starts = net(), []

    def look(model: nn.Module, masks: Masks, turn) -> None:
        for name, parameter in model.named_parameters():
            mask = masks.kept.get(name, torch.ones_like(parameter, dtype=torch.bool))
            assert torch.equal(parameter[mask], first.get_parameter(name)[mask])
            assert not parameter[~mask].any()
        starts.append(float(model[1].running_mean[0]))
        drift(model, masks, turn)

    run(lottery_ticket(iterations=3, keep_buffers=keep_buffers), train=look)
    assert starts == ([0, 1, 2, 3] if keep_buffers else [0, 0, 0, 0])


def test_late_rewinding_starts_from_the_state_after_so_many_epochs() -> None:
    starts: list[Tensor] = []
    late: list[Tensor] = []

    def look(model: nn.Module, masks: Masks, turn) -> None:
        starts.append(model[0].bias.detach().clone())
        for epoch in (1, 2, 3):
            drift(model, masks, turn)
            turn.epoch_done(epoch)
            if turn.iteration == 0 and epoch == 2:
                late.append(model[0].bias.detach().clone())

    run(lottery_ticket(iterations=2, rewind="epoch:2"), train=look)
    assert torch.equal(starts[0], net()[0].bias)
    assert torch.equal(starts[1], late[0])
    assert torch.equal(starts[2], late[0])
    with pytest.raises(ConfigError, match=r"rewind='epoch:9'.*no such epoch"):
        run(lottery_ticket(iterations=1, rewind="epoch:9"), train=look)


def test_without_rewinding_training_goes_on_from_what_was_trained() -> None:
    starts: list[Tensor] = []

    def look(model: nn.Module, masks: Masks, turn) -> None:
        starts.append(model[0].bias.detach().clone())
        drift(model, masks, turn)

    run(lottery_ticket(iterations=2, rewind=None), train=look)
    alone, masks = net(), masks_of(net())
    for iteration, start in enumerate(starts):
        assert torch.equal(start, alone[0].bias)
        drift(alone, masks, _turn(iteration))
    starts.clear()
    run(lottery_ticket(iterations=2, rewind=None), train=look, first_is_trained=True)
    assert len(starts) == 2, "what is trained already is not trained before it is pruned"


def test_the_best_epoch_on_validation_is_taken_and_of_equals_the_later() -> None:
    scores = iter([0.6, 0.9, 0.9, 0.7] + [0.0] * 50)
    biases: list[Tensor] = []

    def look(model: nn.Module, masks: Masks, turn) -> None:
        for epoch in (1, 2, 3, 4):
            drift(model, masks, turn)
            biases.append(model[0].bias.detach().clone())
            turn.epoch_done(epoch)

    found = run(
        IterativePruning(iterations=1, schedule=SparsityInformed(gamma=0)),
        train=look, evaluate=lambda model: next(scores),
    )  # fmt: skip
    assert found.history[0].epoch == 3
    assert torch.equal(found.state["0.bias"], biases[2])


def test_scores_before_retraining_belong_to_the_next_masks() -> None:
    def kept(model: nn.Module) -> float:
        return sum(int((model.get_parameter(n) != 0).sum()) for n in ("0.weight", "3.weight"))

    found = run(lottery_ticket(iterations=2), evaluate=kept)
    first, second, last = found.history
    assert first.score == first.survivors
    assert first.score_pruned == second.survivors
    assert second.score_pruned == last.survivors
    assert last.score_pruned is None


def test_ranking_by_the_first_training_and_by_lot() -> None:
    def shrink(model: nn.Module, masks: Masks, turn) -> None:
        """Turn the order of magnitudes around after the first training."""
        if turn.iteration:
            with torch.no_grad():
                for name in masks.kept:
                    weight = model.get_parameter(name)
                    weight.copy_(torch.where(weight == 0, weight, 1 / weight))

    seen: dict[str, Masks] = {}
    for name, plan in (("lt", lottery_ticket), ("os", one_shot), ("lot", at_random)):
        found = run(plan(iterations=2), train=shrink)
        seen[name] = found.masks
        assert found.history[-1].survivors == seen["lt"].survivors
    weights = seen["os"].weights(net())
    held, gone = (
        torch.cat([w[m if kept else ~m].abs() for w, m in zip(
            weights.values(), seen["os"].matrices().values(), strict=True)])
        for kept in (True, False)
    )  # fmt: skip
    assert gone.max() < held.min(), "ranked by iteration 0 alone"
    assert not seen["lt"].within(seen["os"])
    assert not seen["lot"].within(seen["os"])


def test_gradual_pruning_ends_at_its_density() -> None:
    found = run(gradual(0.1, iterations=5))
    densities = [row.density for row in found.history]
    assert densities[-1] == pytest.approx(0.1, abs=0.01)
    falls = [a - b for a, b in itertools.pairwise(densities)]
    assert falls == sorted(falls, reverse=True)


# --- what ends a run ----------------------------------------------------------------------------


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


# --- training through the library's loop --------------------------------------------------------


def test_trains_masked_with_the_library_and_prunes_what_is_of_no_use() -> None:
    train, validation = held_out(task(), 0.25, seed=1)
    plan = lottery_ticket(iterations=8)
    found = plan.run(
        net, trainer(task=train, epochs=8), scorer(validation), masks=masks_of(net()),
        judge=scorer(task()), seed=2,
    )  # fmt: skip
    assert found.history[-1].density < 0.2
    assert found.history[-1].test is not None
    assert found.history[-1].test > 0.8
    lot = at_random(iterations=8).run(
        net, trainer(task=train, epochs=8), scorer(validation), masks=masks_of(net()), seed=2
    )
    assert lot.history[-1].score < found.history[-1].score
    again = plan.run(
        net, trainer(task=train, epochs=8), scorer(validation), masks=masks_of(net()), seed=2
    )
    assert bits(dict(again.masks.kept)) == bits(dict(found.masks.kept))
    assert bits(dict(again.state)) == bits(dict(found.state))


def test_validation_examples_come_from_training_and_are_not_trained_on() -> None:
    whole = task()
    train, validation = held_out(whole, 0.25, seed=1)
    rows = {tuple(x) for x in whole.train.tensors["x"].tolist()}
    one = {tuple(x) for x in train.train.tensors["x"].tolist()}
    two = {tuple(x) for x in validation.test.tensors["x"].tolist()}
    assert one | two == rows
    assert not one & two
    assert (len(one), len(two)) == (90, 30)
    assert train.test is whole.test
    for wrong in (0.0, 0.001, 1.0):
        with pytest.raises(ConfigError, match=rf"share of {wrong}"):
            held_out(whole, wrong)


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("rewind", ["init", "epoch:1", None])
@pytest.mark.parametrize("kill", [1, 2, 4, 5, 7])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(
    rewind: str | None, kill: int, tmp_path: Path
) -> None:
    plan = one_shot(0.5, iterations=3, rewind=rewind, keep_buffers=rewind == "init")
    count = {"left": kill}
    train, validation = held_out(task(), 0.25, seed=1)
    score = scorer(validation)

    def fatal(model: nn.Module) -> float:
        count["left"] -= 1
        if count["left"] < 0:
            raise KilledError
        return score(model)

    def go(evaluate, folder: Path | None):
        return plan.run(
            net, trainer(task=train), evaluate, masks=masks_of(net()), seed=3, folder=folder
        )

    whole = go(score, None)
    with pytest.raises(KilledError):
        go(fatal, tmp_path / "run")
    found = go(score, tmp_path / "run")
    assert bits(dict(found.masks.kept)) == bits(dict(whole.masks.kept))
    assert bits(dict(found.state)) == bits(dict(whole.state))
    for one, two in zip(found.history, whole.history, strict=True):
        assert {**one.__dict__, "seconds": 0} == {**two.__dict__, "seconds": 0}
    finished = go(fatal, tmp_path / "run")  # nothing is left to do, and nothing is done
    assert finished.history == found.history
    with pytest.raises(ConfigError, match="other settings"):
        run(lottery_ticket(0.4, iterations=3), folder=tmp_path / "run")
    (tmp_path / "run" / "state.pt").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        go(score, tmp_path / "run")


# --- masks, files, mistakes ---------------------------------------------------------------------


def test_masks_go_into_sparse_forms_and_come_back() -> None:
    model = net()
    found = run(lottery_ticket(0.4, iterations=2))
    found.masks.install_(model, found.state)
    assert {entry.form.signature for entry in installed(model).values()} == {"sparse(dense)"}
    again = Masks.of_sites(find_sites(model))
    assert bits(dict(again.kept)) == bits(dict(found.masks.kept))
    assert again.density == found.masks.density < 0.4
    for name in found.masks.kept:
        assert torch.equal(model.get_submodule(name[0]).weight, found.state[name])


@pytest.mark.parametrize("layout", ["transposed", "stacked", "stacked-transposed"])
def test_masks_of_other_layouts(layout: str) -> None:
    shape = (6, 4) if layout == "transposed" else (2, 6, 4)
    mask = drawn(0, *shape) > 0
    masks = Masks({"w": mask}, {"w": layout})
    rows = {"transposed": 4, "stacked": 12, "stacked-transposed": 8}[layout]
    matrices = masks.matrices()
    assert matrices["w"].shape == (rows, mask.numel() // rows)
    assert torch.equal(masks.from_matrices(matrices).kept["w"], mask)


def test_what_is_skipped_is_trained_and_not_pruned() -> None:
    found = run(lottery_ticket(iterations=2, skip=("3.*",)))
    assert set(found.masks.kept) == {"0.weight"}
    assert (found.state["3.weight"] != net()[3].weight).all()
    with pytest.raises(ConfigError, match="no weight is in the scope"):
        run(lottery_ticket(skip=("*",)))


def test_history_and_masks_on_disk(tmp_path: Path) -> None:
    found = run(lottery_ticket(iterations=2))
    found.save(tmp_path / "out")
    held = json.loads((tmp_path / "out" / "history.json").read_text())
    assert held["history"][1]["density"] == found.history[1].density
    assert held["history"][0]["phase"] == "regularising"
    assert held["settings"]["p"] == 0.5
    lines = (tmp_path / "out" / "history.csv").read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("iteration,density,survivors,pqi,gini")
    assert lines[0].endswith("phase,pqi 0.weight,pqi 3.weight")
    masks = load_file(tmp_path / "out" / "masks.safetensors")
    assert bits(masks) == bits(dict(found.masks.kept))
    with pytest.raises(ConfigError, match="is a file"):
        found.save(tmp_path / "out" / "history.csv")


def test_refuses_trainings_that_break_the_rules() -> None:
    def leave(model: nn.Module, masks: Masks, turn) -> None:
        if turn.iteration:
            with torch.no_grad():
                model[0].weight.add_(1.0)

    with pytest.raises(LayerError, match=r"0\.weight: training moved \d+ pruned weights"):
        run(lottery_ticket(iterations=1), train=leave)

    def spoil(model: nn.Module, masks: Masks, turn) -> None:
        with torch.no_grad():
            model[3].weight[0, 0] = float("nan")

    with pytest.raises(LayerError, match=r"3\.weight: training left NaN"):
        run(lottery_ticket(iterations=1), train=spoil)

    def grow(model: nn.Module, masks: Masks, turn) -> None:
        model[3].bias = nn.Parameter(torch.zeros(7))

    with pytest.raises(LayerError, match=r"3\.bias: training changed its shape from \(3,\) to"):
        run(lottery_ticket(iterations=1), train=grow)
    with pytest.raises(ConfigError, match="evaluate gave a score of nan"):
        run(lottery_ticket(iterations=1), evaluate=lambda model: float("nan"))

    def no_number(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight * float("inf")

    with pytest.raises(ConfigError, match=r"0\.weight: a pruning score is NaN or infinite"):
        run(lottery_ticket(iterations=1, criterion=no_number))


def test_a_criterion_of_ones_own_ranks() -> None:
    def last_first(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.arange(weight.numel(), 0, -1.0).reshape(weight.shape)

    found = run(lottery_ticket(0.5, scope="layer", iterations=1, criterion=last_first))
    assert found.masks.kept["0.weight"].flatten().tolist() == [True] * 64 + [False] * 64


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"p": 2.0}, r"p=2.0, q=1.0"),
        ({"p": 0.0}, r"p=0.0 must be at least"),
        ({"rewind": "start"}, r"rewind='start'"),
        ({"rewind": "epoch:0"}, r"rewind='epoch:0'"),
        ({"stop": "pq"}, r"stop='pq'"),
        ({"stop": 0.0}, r"stop=0.0"),
        ({"iterations": 0}, r"iterations=0"),
        ({"scope": "row"}, r"scope='row'"),
        ({"criterion": "size"}, r"criterion='size'"),
        ({"ranked_by": "last"}, r"ranked_by='last'"),
    ],
)
def test_refuses_settings(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        IterativePruning(**wrong)


@pytest.mark.parametrize("wrong", [{"beta": 1.0}, {"beta": 0.0}, {"gamma": -1.0}, {"eta": -0.1}])
def test_refuses_schedules(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name}={wrong[name]}"):
        SparsityInformed(**wrong)
