"""L-GreCo on virtual ranks: bytes, errors, periods, faults, checkpoints."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradient_support import gradients, norm
from torch import Tensor, nn

from laconic.errors import ConfigError, LaconicWarning
from laconic.gradients import (
    DGC,
    DGCSGD,
    QSGD,
    Accordion,
    CommState,
    Dense,
    LGreCo,
    LoopbackGroup,
    PowerSGD,
    TopK,
    load,
    save,
)
from laconic.gradients.planning import Problem, make_plan

Build = Callable[[nn.Module, Any], CommState]

FAMILIES: dict[str, Build] = {
    "powersgd": lambda m, t: PowerSGD(m, rank=4, min_compression_rate=1.1, transport=t),
    "top-k": lambda m, t: TopK(m, density=0.05, transport=t),
    "dgc": lambda m, t: DGC(
        m, DGCSGD(m.parameters()), density=0.05, min_numel=0, transport=t, masking=False
    ),
    "qsgd": lambda m, t: QSGD(m, bits=4, bucket=32, transport=t),
    "qsgd feedback": lambda m, t: QSGD(m, bits=4, bucket=32, error_feedback=True, transport=t),
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 36), nn.Linear(36, 12))


def lots(net: nn.Module, step: int, size: int) -> list[dict[str, Tensor]]:
    """Gradients of different kinds: nearly of rank one, of heavy tails, plain noise."""
    out = gradients(net, step, size)
    for lot in out:
        u, v = torch.randn(30), torch.randn(40)
        lot["0.weight"] = torch.outer(u, v) + 0.02 * lot["0.weight"]
        lot["1.weight"] = lot["1.weight"].pow(5) * 0.01
        lot["2.weight"] = 3 * lot["2.weight"]
    return out


def build(
    family: str, size: int, *, net: nn.Module | None = None, **settings: Any
) -> tuple[LoopbackGroup, list[LGreCo], nn.Module]:
    group, net = LoopbackGroup(size, timeout_s=20), net or model()
    options = {"start_step": 2, "period": 5, "probe_steps": 3} | settings
    states = [
        LGreCo(FAMILIES[family](net, group.transport(rank)), **options) for rank in range(size)
    ]
    return group, states, net


def drive(
    group: LoopbackGroup, states: list[LGreCo], net: nn.Module, steps: range
) -> list[list[dict[str, Tensor]]]:
    out = []
    for step in steps:
        torch.manual_seed(step)
        out.append(group.exchange(states, lots(net, step, len(states)), bucket_bytes=2000))  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_bytes_at_no_more_error(family: str) -> None:
    group, states, net = build(family, 2)
    drive(group, states, net, range(7))
    assert states[0].history == []
    drive(group, states, net, range(7, 9))
    for state in states:
        (period,) = state.report()["periods"]
        assert period["step"] == 7  # start 2 + period 5
        assert period["error"] <= period["limit"] * (1 + 1e-9)
        assert period["limit"] == period["uniform_error"]
        gain = 1.04 if family.startswith("qsgd") else 1.1  # steps between bits are coarse
        assert period["bytes"] <= period["uniform_bytes"] / gain
        assert period["assignment"] == states[0].assignment() == state.assignment()
        assert len(set(period["assignment"].values())) > 1
        assert period["table_ms"] > 0
        assert period["solver_ms"] > 0
        padded = sum(
            -(-state.inner.payload_bytes(n) // 16) * 16
            if state.inner.route == "gather"
            else state.inner.payload_bytes(n)
            for n in state.problem.names
        )
        assert period["bytes"] == padded  # what the compressor now really hands over


@pytest.mark.parametrize("family", FAMILIES)
def test_replicas_stay_bit_equal_through_changes(family: str) -> None:
    group, states, net = build(family, 3, period=4)
    for step in drive(group, states, net, range(50)):
        for name in step[0]:
            assert all(torch.equal(step[0][name], other[name]) for other in step[1:])
    assert [state.step for state in states] == [50] * 3
    assert len(states[0].history) == 11  # steps 6, 10, ... 46
    assert states[0].assignment() == states[1].assignment() == states[2].assignment()
    if family == "powersgd":
        for name in states[0].problem.names:
            held = [state.inner.memory(name, "q") for state in states]
            assert held[0] is not None
            assert held[0].shape[1] == states[0].assignment()[name]
            assert all(torch.equal(held[0], q) for q in held[1:])


@pytest.mark.parametrize("family", ["powersgd", "top-k", "qsgd feedback"])
def test_residuals_survive_changes(family: str) -> None:
    group, states, net = build(family, 2, period=3)
    given = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    sent = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    seen = set()
    for step in range(16):
        torch.manual_seed(step)
        mine = lots(net, step, 2)
        out = group.exchange(states, mine, bucket_bytes=2000)[0]  # type: ignore[arg-type]
        seen.add(tuple(states[0].assignment().values()))
        for name in given:
            given[name] += (mine[0][name] + mine[1][name]) / 2
            sent[name] += out[name]
    assert len(seen) > 1
    for name in states[0].problem.names:
        waiting = sum(state.inner.memory(name, "residual") for state in states) / 2
        torch.testing.assert_close(sent[name] + waiting, given[name], rtol=1e-4, atol=2e-4)


def test_q_keeps_its_columns_when_the_rank_changes() -> None:
    state = FAMILIES["powersgd"](model(), LoopbackGroup(1).transport(0))
    group = state.transport.loopback  # type: ignore[attr-defined]
    group.exchange([state], lots(model(), 0, 1))
    before = state.memory("1.weight", "q")
    assert before is not None
    for rank in (6, 3):
        state.set_parameter("1.weight", rank)
        start = state._start("1.weight")  # type: ignore[attr-defined]
        assert start.shape == (30, rank)
        same = [any(torch.equal(a, b) for b in before.T) for a in start.T]
        assert sum(same) == min(rank, 4)
        before = state.memory("1.weight", "q")
        assert before is not None


def plan(state: CommState, probes: dict[str, Tensor], **settings: Any) -> Any:
    problem = Problem.of(state, gamma=0.5, beta=2)
    return make_plan(state, problem, probes, **{"alpha": 1.0, "method": "power"} | settings)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_of_the_gradients_does_not_matter(family: str) -> None:
    state = FAMILIES[family](model(), LoopbackGroup(1).transport(0))
    probes = lots(model(), 0, 1)[0]
    small = {name: probe * 2.0**-20 for name, probe in probes.items()}
    assert plan(state, probes).choice == plan(state, small).choice


@pytest.mark.parametrize("family", FAMILIES)
def test_alpha(family: str) -> None:
    state = FAMILIES[family](model(), LoopbackGroup(1).transport(0))
    probes = lots(model(), 0, 1)[0]
    by_alpha = [plan(state, probes, alpha=a) for a in (0.8, 1.0, 1.2, 1e9)]
    sizes = [one.bytes for one in by_alpha]
    assert sizes == sorted(sizes, reverse=True)
    assert by_alpha[-1].choice == (0,) * 3
    for one in by_alpha:
        assert one.error <= one.limit * (1 + 1e-9)


def test_both_ways_to_find_the_error_of_a_rank_agree() -> None:
    state = FAMILIES["powersgd"](model(), LoopbackGroup(1).transport(0))
    probes = {}
    for name in ("0.weight", "1.weight", "2.weight"):
        u, s, v = torch.linalg.svd(torch.randn(state.shape(name)), full_matrices=False)
        probes[name] = u @ torch.diag(0.6 ** torch.arange(len(s))) @ v
    power, svd = (plan(state, probes, method=method) for method in ("power", "svd"))
    assert power.choice == svd.choice
    assert svd.error <= power.error <= svd.error * 1.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dead_layer_takes_the_cheapest(family: str) -> None:
    group, states, net = build(family, 2)
    for step in range(12):
        mine = lots(net, step, 2)
        for lot in mine:
            lot["1.weight"].zero_()
        out = group.exchange(states, mine, bucket_bytes=2000)  # type: ignore[arg-type]
        assert all(value.isfinite().all() for value in out[0].values())
    name = "1.weight"
    assert states[0].assignment()[name] == states[0].problem.values[name][0]
    for slots in states[0].inner.remembered().values():
        assert all(value.isfinite().all() for value in slots.values())


def test_the_probe_is_the_mean_of_corrected_gradients_of_rank_0() -> None:
    group, states, net = build("top-k", 2)
    expected = torch.zeros(30, 40)
    for step in range(7):
        torch.manual_seed(step)
        mine = lots(net, step, 2)
        held = states[0].inner.memory("0.weight", "residual")
        if step >= 4:
            assert states[0].collecting
            expected += mine[0]["0.weight"] + (0 if held is None else held)
        group.exchange(states, mine)  # type: ignore[arg-type]
    torch.testing.assert_close(states[0]._probe["0.weight"], expected)
    assert states[0]._probed == 3
    assert states[1]._probe == {}  # no memory is spent elsewhere


def test_average_probe_is_the_mean_over_ranks() -> None:
    group, states, net = build("top-k", 3, probe="average")
    local_group, local, _ = build("top-k", 3)
    drive(group, states, net, range(9))
    drive(local_group, local, net, range(9))
    assert states[0].history[0]["error"] < local[0].history[0]["error"]  # noise averages out
    handed = [s.transport.traffic.handed for s in (states[1], local[1])]
    probe_bytes = sum(4 * states[0].named[n].numel() for n in states[0].problem.names)
    assert handed[0] - handed[1] == pytest.approx(probe_bytes, abs=6000)
    assert states[0].assignment() == states[2].assignment()


def test_a_step_with_infinity_begins_the_probe_anew() -> None:
    group, states, net = build("top-k", 2)
    drive(group, states, net, range(5))
    mine = lots(net, 5, 2)
    mine[1]["0.weight"][0, 0] = math.inf
    group.exchange(states, mine)  # type: ignore[arg-type]
    assert states[0]._probed == 0
    drive(group, states, net, range(6, 8))
    assert states[0].history[0]["planned"]


def test_no_finite_probe_keeps_the_settings_and_warns() -> None:
    group, states, net = build("top-k", 2)
    before = states[0].assignment()
    drive(group, states, net, range(4))
    for step in range(4, 7):
        mine = lots(net, step, 2)
        mine[1]["0.weight"][0, 0] = math.nan
        group.exchange(states, mine)  # type: ignore[arg-type]
    with pytest.warns(LaconicWarning, match="no step of the probe was finite"):
        drive(group, states, net, range(7, 8))
    assert states[0].assignment() == states[1].assignment() == before
    assert not states[1].history[0]["planned"]
    assert "finite" in states[0].history[0]["reason"]
    drive(group, states, net, range(8, 13))  # and the next period is a period again
    assert [past["step"] for past in states[1].history] == [7, 12]
    assert states[1].history[1]["planned"]


def test_a_probe_that_overflowed_names_the_layer() -> None:
    group, states, net = build("top-k", 1)
    drive(group, states, net, range(7))
    states[0]._probe["1.weight"][2, 2] = math.inf
    with pytest.warns(LaconicWarning, match=r"the probe of 1\.weight is not finite"):
        drive(group, states, net, range(7, 8))
    assert not states[0].history[0]["planned"]


def test_a_limit_that_no_candidate_reaches_keeps_the_settings() -> None:
    group, states, net = build("powersgd", 1, alpha=0.0)
    before = states[0].assignment()
    drive(group, states, net, range(7))
    with pytest.warns(LaconicWarning, match="smallest error that can be reached"):
        drive(group, states, net, range(7, 8))
    assert states[0].assignment() == before


def test_epochs_as_periods() -> None:
    group, states, net = build("dgc", 2, period="epoch", probe_steps=2, start_step=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(4):
            for state in states:
                state.step_epoch(epoch)
            assert states[0].inner.epoch == epoch  # type: ignore[attr-defined]
            drive(group, states, net, range(6 * epoch, 6 * epoch + 6))
    assert [past["step"] for past in states[0].history] == [12, 18]
    assert all(past["planned"] for past in states[0].history)


def test_period_that_adapts() -> None:
    group, states, net = build("top-k", 2, max_period=20, settled=1e9)
    drive(group, states, net, range(63))
    # 5, then the first choice, then twice as long each time up to 20
    assert [past["step"] for past in states[1].history] == [7, 12, 22, 42, 62]
    group, states, net = build("top-k", 2, max_period=20, settled=0.0)
    drive(group, states, net, range(30))
    assert [past["step"] for past in states[1].history] == [7, 12, 17, 22, 27]


def test_accordion_rule() -> None:
    rule = Accordion(eta=0.5)
    norms, before = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0}, {"a": 1.9, "b": 2.1, "d": 0.0}
    assert rule.critical(norms, before) == {"a": False, "b": True, "c": True, "d": False}
    values = {name: [1, 2, 4, 8] for name in norms}
    default = dict.fromkeys(norms, 4)
    assert rule.choose(norms, before, values, default) == {"a": 1, "b": 3, "c": 3, "d": 1}
    assert Accordion(alone=True).shares == (0.65, 1.5)
    for settings in ({"eta": 0.0}, {"low": 3.0}, {"low": -1.0}):
        with pytest.raises(ConfigError):
            Accordion(**settings)  # type: ignore[arg-type]


def test_with_accordion() -> None:
    group, states, net = build("powersgd", 2, accordion=Accordion())
    assert states[0].problem.values["1.weight"] == tuple(range(1, 17))  # 4/4 .. 4 x 4
    drive(group, states, net, range(13))
    first, second = states[0].history
    assert first["limit"] < first["uniform_error"]  # all are critical in the first period
    assert second["limit"] > second["uniform_error"]  # and none changes much in the second
    for period in (first, second):
        assert period["error"] <= period["limit"] * (1 + 1e-9)
    alone_group, alone, _ = build("powersgd", 2, accordion=Accordion(alone=True))
    drive(alone_group, alone, net, range(8))
    assert set(alone[0].assignment().values()) == {6}  # 1.5 x 4
    drive(alone_group, alone, net, range(8, 13))
    assert set(alone[1].assignment().values()) <= {3}  # nearest to 0.65 x 4


@pytest.mark.parametrize("family", ["powersgd", "qsgd", "dgc"])
@pytest.mark.parametrize("broken_at", [6, 9])
def test_a_checkpoint_goes_on_bit_for_bit(family: str, broken_at: int, tmp_path: Path) -> None:
    """Step 6 lies inside a probe, step 9 behind a choice."""
    group, states, net = build(family, 2)
    drive(group, states, net, range(broken_at))
    for state in states:
        save(state, tmp_path)  # type: ignore[arg-type]
    unbroken = drive(group, states, net, range(broken_at, 16))
    other, fresh, _ = build(family, 2, net=net)
    for state in fresh:
        assert load(state, tmp_path).complete  # type: ignore[arg-type]
    resumed = drive(other, fresh, net, range(broken_at, 16))
    for before, after in zip(unbroken, resumed, strict=True):
        assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    ours, theirs = states[1].history, fresh[1].history
    for one, two in zip(ours, theirs, strict=True):
        assert one["assignment"] == two["assignment"]
    with pytest.raises(ConfigError, match="without LGreCo"):
        fresh[0].load_state_dict(states[0].inner.state_dict())


def test_refused() -> None:
    transport = LoopbackGroup(1).transport(0)
    with pytest.raises(ConfigError, match="inner is a Sequential"):
        LGreCo(model())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Dense has no setting"):
        LGreCo(Dense(model(), transport=transport))
    dense = TopK(model(), density=0.1, dense=lambda n, p: True, transport=transport)
    with pytest.raises(ConfigError, match="compresses no tensor"):
        LGreCo(dense)
    with pytest.raises(ConfigError, match=r"density=0\.05 is not among"):
        LGreCo(FAMILIES["top-k"](model(), transport), candidates=[0.01, 0.1])
    with pytest.raises(ConfigError, match="must rise in this order"):
        LGreCo(FAMILIES["top-k"](model(), transport), period=5)
    for settings, said in (
        ({"alpha": -1.0}, r"alpha=-1\.0"),
        ({"period": "day"}, "period='day'"),
        ({"probe": "global"}, "probe='global'"),
        ({"probe_steps": 0}, "probe_steps=0"),
    ):
        with pytest.raises(ConfigError, match=said):
            LGreCo(FAMILIES["top-k"](model(), transport), **settings)


def test_own_candidates() -> None:
    group, states, net = build("qsgd", 2, candidates=[4, 8])
    drive(group, states, net, range(8))
    assert set(states[0].assignment().values()) <= {4, 8}


@pytest.mark.parametrize("family", ["powersgd", "top-k", "qsgd"])
def test_settings_that_lose_nothing_are_dense(family: str) -> None:
    """Full rank and all entries are exact; eight bits are as near as rounding allows."""
    exact = {"powersgd": 12, "top-k": 1.0, "qsgd": 8}[family]
    net, group = model(), LoopbackGroup(2)
    states = [FAMILIES[family](net, group.transport(rank)) for rank in range(2)]
    for state in states:
        state.set_parameter("2.weight", exact)
    for step in range(5):
        mine = gradients(net, step, 2)
        out = group.exchange(states, mine)[0]["2.weight"]
        mean = (mine[0]["2.weight"] + mine[1]["2.weight"]) / 2
        limit = 1e-5 if family != "qsgd" else 1.0 / 127
        assert norm(out - mean) <= limit * (norm(mine[0]["2.weight"]) + norm(mine[1]["2.weight"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_of_a_plan_are_those_handed_to_collectives(family: str) -> None:
    group, states, net = build(family, 2)
    drive(group, states, net, range(8))
    traffic = states[0].transport.traffic
    before = traffic.handed
    drive(group, states, net, range(8, 9))
    handed = traffic.handed - before
    dense = sum(states[0].inner.dense_bytes(name) for name in states[0].inner.dense_names)
    extra = handed - dense - states[0].history[0]["bytes"]
    # gathered: a head of 32 bytes a message; added up: flags of 8 bytes a tensor
    gathered = states[0].inner.route == "gather"
    assert extra in ({32, 64, 96} if gathered else {24})
