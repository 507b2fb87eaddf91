"""What a state refuses, and how it is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gradient_support import gradients, ranks, small_model
from torch import Tensor, nn

from laconic.errors import CommunicationError, ConfigError, UnsupportedModelError
from laconic.gradients import CommState, LoopbackGroup, Observer, TopK, hook
from laconic.gradients.loopback import fake_buckets
from laconic.task import TensorSplit
from laconic.training import fit

ALONE = LoopbackGroup(1).transport(0)


def test_without_torch_distributed() -> None:
    with pytest.raises(ConfigError, match="init_process_group"):
        TopK(small_model())


def test_frozen_models_and_sparse_embeddings() -> None:
    model = small_model()
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter that requires a gradient"):
        TopK(model, transport=ALONE)
    table = nn.Sequential(nn.Linear(4, 4), nn.Embedding(10, 4, sparse=True))
    with pytest.raises(UnsupportedModelError, match=r"TopK: 1 has sparse=True.*Use sparse=False"):
        TopK(table, transport=ALONE)


def test_only_what_trains_is_known_and_tied_parameters_once() -> None:
    model = small_model()
    model[0].requires_grad_(False)
    assert list(TopK(model, transport=ALONE).named) == [
        "2.weight", "2.bias", "4.weight", "4.bias"
    ]  # fmt: skip
    tied = nn.Sequential(nn.Embedding(50, 20), nn.Linear(20, 50, bias=False))
    tied[1].weight = tied[0].weight
    assert list(TopK(tied, transport=ALONE).named) == ["0.weight"]


def test_a_foreign_parameter_and_buckets_out_of_turn() -> None:
    state, other = TopK(small_model(), transport=ALONE), small_model()
    named = dict(other.named_parameters())
    bucket = fake_buckets(named, {}, bucket_bytes=1 << 20)[0]
    with pytest.raises(ConfigError, match=r"shape \(10,\) that the state does not know"):
        hook(state, bucket)
    second = fake_buckets(state.named, {}, bucket_bytes=1)[1]
    with pytest.raises(CommunicationError, match="bucket 1 came when bucket 0 was due"):
        hook(state, second)


def test_a_step_that_broke_off_leaves_nothing_behind() -> None:
    model = small_model()
    group, states = ranks("top-k", 1, model)
    state, lots = states[0], gradients(model, 0, 1)
    buckets = fake_buckets(state.named, lots[0], bucket_bytes=1)
    for bucket in buckets[:3]:
        hook(state, bucket)
    assert state.remembered() == {}
    expected_group, expected = ranks("top-k", 1, model)
    wanted = expected_group.exchange(expected, lots)[0]
    for name, value in group.exchange(states, lots)[0].items():
        assert torch.equal(value, wanted[name])


def test_an_error_in_a_method_leaves_with_its_type_and_the_next_step_works() -> None:
    model = small_model()
    group, states = ranks("top-k", 1, model)
    sound = states[0].encode
    calls = []

    def encode(name: str, grad: Tensor, out: Tensor) -> None:
        calls.append(name)
        if len(calls) == 2:
            raise ArithmeticError("boom")
        sound(name, grad, out)

    states[0].encode = encode
    with pytest.raises(ArithmeticError, match="boom"):
        group.exchange(states, gradients(model, 0, 1), bucket_bytes=1)
    assert states[0].remembered() == {}
    group.exchange(states, gradients(model, 0, 1), bucket_bytes=1)
    assert states[0].step == 1


def test_observers_see_local_gradients_and_the_end() -> None:
    model = small_model()
    group, states = ranks("top-k", 2, model)
    seen: list[object] = []

    class Look(Observer):
        def step_begins(self, state: CommState) -> None:
            told = state.transport.broadcast(torch.tensor([state.transport.rank + 5.0]), where="x")
            seen.append(("begin", state.step, told.item()))

        def gradient_ready(self, state: CommState, name: str, grad: Tensor) -> None:
            seen.append((name, grad.clone(), state.corrected(name, grad)))

        def step_ends(self, state: CommState, *, committed: bool) -> None:
            seen.append(("end", state.step, committed))

    states[1].observers.append(Look())
    states[0].observers.append(Quiet := Observer())
    Quiet.step_begins = lambda state: state.transport.broadcast(  # type: ignore[method-assign]
        torch.tensor([5.0]), where="x"
    )
    lots = gradients(model, 0, 2)
    group.exchange(states, lots)
    assert seen[0] == ("begin", 0, 5.0)
    assert seen[-1] == ("end", 1, True)
    held = {item[0]: item[1] for item in seen[1:-1]}
    assert held.keys() == {"0.weight", "2.weight", "4.weight"}
    assert all(torch.equal(held[name], lots[1][name]) for name in held)
    seen.clear()
    lots[0]["0.weight"][0] = torch.nan
    group.exchange(states, lots)
    assert seen[-1] == ("end", 2, False)


def test_the_training_loop_refuses_what_would_lose_a_hooks_memory(tmp_path: Path) -> None:
    data = TensorSplit({"x": torch.zeros(4, 2), "y": torch.zeros(4)})
    for more in ({"steps": 2, "checkpoint": tmp_path / "run.pt"}, {"seconds": 1.0}):
        with pytest.raises(ConfigError, match="wrapped goes with neither checkpoint nor seconds"):
            fit(nn.Linear(2, 1), lambda m, lot: m(lot["x"]).sum(), data=data, wrapped=print, **more)
