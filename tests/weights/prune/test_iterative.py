"""The loop: where trainings start, which epoch is taken, what ranks."""

from __future__ import annotations

import itertools

import pytest
import torch
from iterative_support import drift, masks_of, net, run
from torch import Tensor, nn

from laconic import measure
from laconic.errors import ConfigError
from laconic.weights.prune.iterative import (
    IterativePruning,
    Masks,
    Row,
    SparsityInformed,
    at_random,
    gradual,
    lottery_ticket,
    one_shot,
)
from laconic.weights.prune.iterative.criteria import scope_index
from laconic.weights.prune.iterative.schedules import Turnout

SCOPES = ["global", "layer", "neuron"]
scopes = pytest.mark.parametrize("scope", SCOPES)


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
