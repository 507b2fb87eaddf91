"""Error memory across restarts, with as many ranks and with others."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from gradient_support import FEEDBACK, METHODS, gradients, norm, ranks, small_model

from laconic.errors import ConfigError, DataError, LaconicWarning
from laconic.gradients import TopK, load, save
from laconic.gradients.loopback import LoopbackGroup

MODEL = small_model()


def trained(method: str, size: int, steps: int = 3, **more: Any) -> tuple[LoopbackGroup, list[Any]]:
    group, states = ranks(method, size, MODEL, **more)
    for step in range(steps):
        group.exchange(states, gradients(MODEL, step, size), bucket_bytes=1000)
    return group, states


def still_to_come(states: list[Any]) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for state in states:
        for name, slots in state.remembered().items():
            if "residual" in slots:
                part = slots["residual"].double() / len(states)
                out[name] = out.get(name, torch.zeros_like(part)) + part
    return out


@pytest.mark.parametrize("method", list(METHODS))
def test_a_restart_goes_on_bit_for_bit(method: str, tmp_path: Path) -> None:
    group, states = trained(method, 2)
    if states[0].tuned and method != "dense":
        for state in states:
            state.set_parameter("2.weight", state.candidates("2.weight")[-1])
    again, fresh = ranks(method, 2, MODEL)
    for state in states:
        save(state, tmp_path)
    for old, new in zip(states, fresh, strict=True):
        file = io.BytesIO()
        torch.save(old.state_dict(), file)
        file.seek(0)
        restored = new.load_state_dict(torch.load(file, weights_only=True))
        assert restored.complete
        assert restored.step == new.step == 3
    third, files = ranks(method, 2, MODEL)
    for state in files:
        assert load(state, tmp_path).complete
    for step in range(3, 5):
        lots = gradients(MODEL, step, 2)
        expected = group.exchange(states, lots)[0]
        for other, lot in ((again, fresh), (third, files)):
            for name, value in other.exchange(lot, lots)[0].items():
                assert torch.equal(value, expected[name])


@pytest.mark.parametrize("method", FEEDBACK)
@pytest.mark.parametrize(("before", "now"), [(2, 3), (3, 1), (4, 2), (1, 4), (3, 2)])
def test_another_number_of_ranks_keeps_the_mean_still_to_come(
    method: str, before: int, now: int, tmp_path: Path
) -> None:
    _, states = trained(method, before)
    for state in states:
        save(state, tmp_path)
    group, fresh = ranks(method, now, MODEL)
    for state in fresh:
        with pytest.warns(LaconicWarning, match=f"{before} ranks became {now}"):
            restored = load(state, tmp_path)
        assert restored.complete
        assert (restored.world_before, restored.world_now) == (before, now)
    taken = [
        rank for state in fresh for rank in range(before) if rank % now == state.transport.rank
    ]
    assert sorted(taken) == list(range(before))
    old, new = still_to_come(states), still_to_come(fresh)
    assert old.keys() == new.keys()
    for name, value in old.items():
        assert norm(new[name] - value) < 1e-6 * norm(value)
    if "q" in fresh[0].slots:
        for state in fresh:
            for name, slots in states[0].remembered().items():
                assert torch.equal(state.memory(name, "q"), slots["q"])
    out = group.exchange(fresh, gradients(MODEL, 3, now))
    assert all(torch.equal(out[0][name], out[-1][name]) for name in out[0])


def test_ranks_that_are_lost_are_named_and_nothing_is_taken_twice() -> None:
    _, states = trained("top-k", 3)
    _, fresh = ranks("top-k", 3, MODEL)
    only = states[1].state_dict()
    with pytest.warns(LaconicWarning, match=r"old ranks \[0\] were not given"):
        restored = fresh[0].load_state_dict(only)
    assert (restored.merged, restored.missing, restored.complete) == ((), (0,), False)
    assert fresh[0].remembered() == {}
    assert fresh[0].step == 3
    fresh[1].load_state_dict(only)
    assert fresh[1].remembered().keys() == {"0.weight", "2.weight", "4.weight"}
    _, two = ranks("top-k", 2, MODEL)
    with pytest.warns(LaconicWarning, match=r"states of old ranks \[0, 2\] were not given"):
        two[1].load_state_dict(only)
    held, old = two[1].memory("2.weight", "residual"), states[1].memory("2.weight", "residual")
    torch.testing.assert_close(held, old * 2 / 3)


def test_memory_without_a_place_is_named() -> None:
    _, states = trained("top-k", 1)
    group = LoopbackGroup(1)
    dense = TopK(MODEL, transport=group.transport(0), dense=lambda name, p: name != "0.weight")
    with pytest.warns(LaconicWarning, match=r"memory of 2\.weight, 4\.weight has no place here"):
        restored = dense.load_state_dict(states[0].state_dict())
    assert restored.dropped == ("2.weight", "4.weight")
    assert list(dense.remembered()) == ["0.weight"]


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, states = trained("top-k", 2)
    saved = [state.state_dict() for state in states]
    _, (fresh, _) = ranks("top-k", 2, MODEL)
    _, (sign, _) = ranks("sign", 2, MODEL)
    with pytest.raises(ConfigError, match=r"saved state is one of 'top-k', this is 'signsgd'"):
        sign.load_state_dict(saved[0])
    with pytest.raises(ConfigError, match=r"format 9; this version reads format 1"):
        fresh.load_state_dict({**saved[0], "format": 9})
    with pytest.raises(ConfigError, match="no saved state was given"):
        fresh.load_state_dict([])
    with pytest.raises(ConfigError, match="must be of different ranks of one step"):
        fresh.load_state_dict([saved[0], {**saved[1], "step": 8}])
    with pytest.raises(ConfigError, match="must be of different ranks of one step"):
        fresh.load_state_dict([saved[0], saved[0]])
    wrong = {"0.weight": {"residual": torch.zeros(3)}}
    with pytest.raises(ConfigError, match=r"0\.weight: the saved residual has shape \(3,\)"):
        fresh.load_state_dict({**saved[0], "memory": wrong})
    with pytest.raises(ConfigError, match=r"holds \['clock'\], which this version does not know"):
        fresh.load_state_dict({**saved[0], "extra": {"clock": 1}})
    with pytest.raises(DataError, match=r"has no gradients-\*\.safetensors"):
        load(fresh, tmp_path)
    save(states[0], tmp_path)
    save(trained("top-k", 1)[1][0], tmp_path)
    with pytest.raises(ConfigError, match=r"states of runs with \[1, 2\] ranks"):
        load(fresh, tmp_path)
    assert fresh.step == 0
