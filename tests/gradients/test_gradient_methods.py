"""Every method on virtual ranks: what all of them must keep."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from gradient_support import FEEDBACK, METHODS, gradients, mean, norm, ranks, small_model

from laconic import registry
from laconic.errors import ConfigError
from laconic.gradients import LoopbackGroup
from laconic.settings import bounds_of

EVERY = list(METHODS)
CODED = [name for name in METHODS if name != "dense"]


def test_all_registered_methods_are_tested_here_or_have_their_own_file() -> None:
    here = {cls.method_name for cls, _ in METHODS.values()}
    named = {entry.name for entry in registry.entries("gradients")}
    assert here <= named
    assert named - here <= {"dgc", "l-greco"}
    assert not named & {entry.name for entry in registry.entries()}


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("bucket_bytes", [1, 2000, 1 << 20])
def test_all_ranks_get_the_same_bits_whatever_the_buckets(method: str, bucket_bytes: int) -> None:
    model = small_model()
    group, states = ranks(method, 3, model)
    for step in range(3):
        out = group.exchange(states, gradients(model, step, 3), bucket_bytes=bucket_bytes)
        for name in out[0]:
            assert torch.equal(out[0][name], out[1][name])
            assert torch.equal(out[0][name], out[2][name])
            assert out[0][name].isfinite().all()
    assert [state.step for state in states] == [3, 3, 3]


@pytest.mark.parametrize("method", FEEDBACK)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_sent_and_remembered_are_the_gradient(method: str, size: int) -> None:
    model = small_model(torch.float64)
    group, states = ranks(method, size, model)
    given = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    sent = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for step in range(6):
        lots = gradients(model, step, size)
        out = group.exchange(states, lots, bucket_bytes=2000)[0]
        for name, value in mean(lots).items():
            given[name] += value
            sent[name] += out[name]
    coded = [name for name in given if name not in states[0].dense_names]
    assert len(coded) >= 2
    for name in given:
        held = [state.memory(name, "residual") for state in states]
        assert all((value is not None) == (name in coded) for value in held)
        rest = sum(value for value in held if value is not None) / size
        assert norm(given[name] - sent[name] - rest) < 1e-12 * norm(given[name]) + 1e-13


@pytest.mark.parametrize("method", CODED)
def test_the_bytes_counted_are_those_announced(method: str) -> None:
    model = small_model()
    group, states = ranks(method, 4, model)
    group.exchange(states, gradients(model, 0, 4))
    state = states[0]
    report, traffic = state.report(), state.transport.traffic
    assert report["step_bytes"] < report["dense_bytes"]
    assert report["ratio"] == report["dense_bytes"] / report["step_bytes"]
    assert sum(row["bytes"] for row in report["tensors"].values()) == report["step_bytes"]
    coded = [row for row in report["tensors"].values() if row["route"] != "dense"]
    if coded[0]["route"] == "gather":
        # A head of 16 bytes and flags; sections begin at multiples of 16.
        message = 16 + 16 + sum(-(-row["bytes"] // 16) * 16 for row in coded)
        dense = sum(row["bytes"] for row in report["tensors"].values() if row["route"] == "dense")
        assert traffic.handed == message + dense
        assert traffic.received == 3 * message + 2 * 3 * dense // 4
        assert traffic.collectives == 2
    else:
        flags = 8 * len(coded) if state.stateful else 0
        assert traffic.handed == report["step_bytes"] + flags


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_on_one_rank_changes_nothing_anywhere(
    method: str, poison: float
) -> None:
    model = small_model()
    group, states = ranks(method, 2, model)
    group.exchange(states, gradients(model, 0, 2), bucket_bytes=500)
    before = [state.remembered() for state in states]
    bad = gradients(model, 1, 2)
    bad[1]["2.weight"][3, 4] = poison
    out = group.exchange(states, bad, bucket_bytes=500)
    for lot in out:
        assert not lot["2.weight"].isfinite().all()
        assert lot["4.weight"].isfinite().all()
    for state, old in zip(states, before, strict=True):
        new = state.remembered()
        assert new.keys() == old.keys()
        for name, slots in old.items():
            for slot, value in slots.items():
                assert torch.equal(new[name][slot], value)
    skipped = [state.skipped for state in states]
    assert skipped == ([1, 1] if states[0].stateful else skipped)
    # The step after it is what it would have been without.
    again, fresh = ranks(method, 2, model)
    again.exchange(fresh, gradients(model, 0, 2), bucket_bytes=500)
    for state in fresh:
        state.step = 2
    good = gradients(model, 2, 2)
    expected = again.exchange(fresh, good, bucket_bytes=500)[0]
    for name, value in group.exchange(states, good, bucket_bytes=500)[0].items():
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize("method", [m for m in EVERY if m in FEEDBACK])
def test_not_finite_in_a_dense_tensor_counts_too(method: str) -> None:
    model = small_model()
    group, states = ranks(method, 2, model)
    bad = gradients(model, 1, 2)
    bad[0]["4.bias"][0] = math.inf
    group.exchange(states, bad, bucket_bytes=500)
    assert states[0].remembered() == states[1].remembered() == {}


@pytest.mark.parametrize("method", FEEDBACK)
def test_what_no_rank_used_stays_in_memory(method: str) -> None:
    model = small_model()
    group, states = ranks(method, 2, model)
    group.exchange(states, gradients(model, 0, 2))
    before = states[0].memory("2.weight", "residual")
    assert before is not None
    lots = gradients(model, 1, 2)
    for lot in lots:
        lot["2.weight"].zero_()
    out = group.exchange(states, lots)[0]
    assert not out["2.weight"].any()
    assert out["4.weight"].any()
    assert states[0].memory("2.weight", "residual") is before
    # One rank's use is enough for both ranks to send what they hold.
    lots[1]["2.weight"][0, 0] = 1.0
    out = group.exchange(states, lots)[0]
    assert out["2.weight"].any()
    assert states[0].memory("2.weight", "residual") is not before


@pytest.mark.parametrize("method", EVERY)
def test_one_rank_sends_nothing(method: str) -> None:
    model = small_model()
    group, states = ranks(method, 1, model)
    group.exchange(states, gradients(model, 0, 1))
    assert set(states[0].transport.traffic.as_dict().values()) == {0}


@pytest.mark.parametrize("method", EVERY)
def test_gradients_of_several_types(method: str) -> None:
    model = small_model()
    model[2].to(torch.bfloat16)
    group, states = ranks(method, 2, model)
    lots = gradients(model, 0, 2)
    out = group.exchange(states, lots, bucket_bytes=500)
    for name, parameter in model.named_parameters():
        assert out[0][name].dtype == parameter.dtype
        assert torch.equal(out[0][name], out[1][name])
        for slot in ("residual", "q"):
            held = states[0].memory(name, slot)
            assert held is None or held.dtype == torch.float32


@pytest.mark.parametrize("method", CODED)
def test_a_loss_scale_changes_nothing_that_is_remembered(method: str) -> None:
    model = small_model()
    results = []
    for scale in (1.0, 1024.0):
        group, states = ranks(method, 2, model)
        for state in states:
            state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            state.scaler.scale(torch.ones(()))  # makes the scale a tensor
        for step in range(2):
            lots = gradients(model, step, 2)
            out = group.exchange(states, [{n: v * scale for n, v in lot.items()} for lot in lots])[
                0
            ]
        results.append(({n: v / scale for n, v in out.items()}, states[0].remembered()))
    for name, value in results[0][0].items():
        # float16 rounds differently where a gradient is below its normal range
        tolerance = 1e-3 if method == "half" else 0.0
        torch.testing.assert_close(results[1][0][name], value, rtol=tolerance, atol=tolerance / 10)
    for name, slots in results[0][1].items():
        for slot, value in slots.items():
            assert torch.equal(results[1][1][name][slot], value)


@pytest.mark.parametrize("method", FEEDBACK)
def test_steps_before_the_start_are_dense(method: str) -> None:
    model = small_model()
    group, states = ranks(method, 2, model, start_step=2)
    plain, dense = ranks("dense", 2, model)
    for step in range(3):
        lots = gradients(model, step, 2)
        out, expected = group.exchange(states, lots)[0], plain.exchange(dense, lots)[0]
        same = [torch.equal(out[name], expected[name]) for name in out]
        assert all(same) == (step < 2)
        assert bool(states[0].remembered()) == (step == 2)


@pytest.mark.parametrize("method", EVERY)
def test_detached_is_dense(method: str) -> None:
    model = small_model()
    group, states = ranks(method, 2, model)
    group.exchange(states, gradients(model, 0, 2))
    held = {n: s["residual"] for n, s in states[0].remembered().items() if "residual" in s}
    dropped, _ = [state.detach() for state in states]
    assert dropped == pytest.approx({name: norm(value) for name, value in held.items()}, rel=1e-5)
    plain, dense = ranks("dense", 2, model)
    lots = gradients(model, 1, 2)
    expected = plain.exchange(dense, lots)[0]
    for name, value in group.exchange(states, lots)[0].items():
        assert torch.equal(value, expected[name])
    assert states[0].remembered() == {}


@pytest.mark.parametrize("method", CODED)
def test_a_user_may_keep_tensors_dense(method: str) -> None:
    model = small_model()
    group, states = ranks(method, 2, model, dense=lambda name, p: name == "2.weight" or p.dim() < 2)
    lots = gradients(model, 0, 2)
    out = group.exchange(states, lots)[0]
    assert torch.equal(out["2.weight"], lots[0]["2.weight"] * 0.5 + lots[1]["2.weight"] * 0.5)
    assert states[0].report()["tensors"]["2.weight"]["route"] == "dense"
    assert states[0].report()["tensors"]["0.weight"]["route"] != "dense"
    with pytest.raises(ConfigError, match=r"'2\.weight' has no setting of its own"):
        states[0].set_parameter("2.weight", 3)


@pytest.mark.parametrize("method", EVERY)
def test_declared_bounds_hold(method: str) -> None:
    model = small_model()
    transport = LoopbackGroup(1).transport(0)
    cls, _ = METHODS[method]
    declared = bounds_of(cls)
    assert set(declared) == {f.name for f in fields(cls)} - {
        "model", "group", "dense", "scaler", "transport"
    }  # fmt: skip
    for name, bounds in declared.items():
        outside: list[Any] = [
            b + d for b, d in ((bounds.low, -1), (bounds.high, 1)) if b is not None
        ]
        for value in outside:
            with pytest.raises(ConfigError, match=f"{cls.__name__}: {name}={value}"):
                cls(model, transport=transport, **{name: value})
        assert bounds.help


@pytest.mark.parametrize("method", ["top-k", "qsgd", "powersgd"])
def test_settings_of_single_tensors(method: str) -> None:
    model = small_model()
    group, states = ranks(method, 2, model)
    group.exchange(states, gradients(model, 0, 2))
    name = "2.weight"
    values = states[0].candidates(name)
    sizes = [states[0].payload_bytes_at(name, value) for value in values]
    assert sizes == sorted(sizes)
    assert states[0].parameter(name) in values
    probe = states[0].corrected(name, gradients(model, 1, 2)[0][name])
    errors = [states[0].error_at(name, probe, value) for value in values]
    assert errors == sorted(errors, reverse=True)
    for value in (values[0], values[-1], values[0]):
        held = states[0].memory(name, "residual")
        for state in states:
            state.set_parameter(name, value)
        assert states[0].memory(name, "residual") is held
        assert states[0].report()["tensors"][name]["setting"] == value
        out = group.exchange(states, gradients(model, 1, 2))
        assert torch.equal(out[0][name], out[1][name])
    assert states[0].parameter("4.weight") != values[0]


def test_a_setting_only_one_rank_has_is_noticed() -> None:
    model = small_model()
    group, states = ranks("qsgd", 2, model)
    states[1].set_parameter("2.weight", 8)
    with pytest.raises(
        Exception, match=r"step 0, bucket 0, all-gather: ranks sent different sizes"
    ):
        group.exchange(states, gradients(model, 0, 2))
    group, states = ranks("top-k", 2, model)
    states[1].step = 5
    with pytest.raises(Exception, match=r"rank [01] sent a message of another kind \(its step is"):
        group.exchange(states, gradients(model, 0, 2))
