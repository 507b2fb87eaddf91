"""Deep Gradient Compression against its own formulas, written out tensor by tensor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic.errors import LaconicWarning
from laconic.gradients import DGC, DGCSGD, LoopbackGroup, Warmup
from laconic.gradients.select import select_top

M = 0.9


class Net(nn.Module):
    """Two matrices and their biases."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.a = nn.Linear(6, 10, dtype=dtype)
        self.b = nn.Linear(10, 5, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def ranks(
    count: int, dtype: torch.dtype = torch.float32, **settings: Any
) -> tuple[LoopbackGroup, list[DGC]]:
    """Equal replicas behind virtual ranks; small tensors are compressed too."""
    group, states = LoopbackGroup(count), []
    for rank in range(count):
        torch.manual_seed(0)
        net = Net(dtype)
        momentum, nesterov = settings.get("momentum", M), settings.get("nesterov", False)
        optimizer = DGCSGD(net.parameters(), 0.1, momentum=momentum, nesterov=nesterov)
        options = {"density": 0.05, "min_numel": 0} | settings
        states.append(DGC(net, optimizer, transport=group.transport(rank), **options))
    return group, states


def random_gradients(state: DGC, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for name, p in state.named.items()
    }


def drive(
    group: LoopbackGroup, states: list[DGC], steps: int, seed: int = 1
) -> tuple[list[list[dict[str, Tensor]]], list[list[dict[str, Tensor]]]]:
    """Exchange random gradients; returns what went in and what came out, by step and rank."""
    generator = torch.Generator().manual_seed(seed)
    given, got = [], []
    for _ in range(steps):
        given.append([random_gradients(state, generator) for state in states])
        got.append(group.exchange(states, given[-1], bucket_bytes=200))
    return given, got


def test_one_step_by_hand() -> None:
    group, states = ranks(2, density=0.02)  # ceil(0.02 * 60) = 2 entries of a, 1 of b
    first = {n: torch.zeros_like(p) for n, p in states[0].named.items()}
    second = {n: torch.zeros_like(p) for n, p in states[0].named.items()}
    first["a.weight"].view(-1)[[3, 7, 9]] = torch.tensor([4.0, -2.0, 1.0])
    second["a.weight"].view(-1)[[3, 50, 51]] = torch.tensor([-2.0, 1.0, 8.0])
    first["b.bias"][0] = 3.0
    out = group.exchange(states, [first, second])
    expected = torch.zeros(60)
    expected[3], expected[7], expected[51] = (4.0 - 2.0) / 2, -1.0, 4.0  # the mean, added up
    for rank in range(2):
        assert torch.equal(out[rank]["a.weight"].view(-1), expected)
        assert out[rank]["b.bias"].tolist() == [1.5, 0, 0, 0, 0]
    kept = states[0].memory("a.weight", "residual")
    moving = states[0].memory("a.weight", "momentum")
    assert kept is not None
    assert moving is not None
    assert kept.view(-1).nonzero().view(-1).tolist() == [9]
    assert moving.view(-1).nonzero().view(-1).tolist() == [9]  # masked where it was sent


def by_formula(
    grads: list[list[Tensor]], *, density: float, nesterov: bool, masking: bool, clip: float | None
) -> list[Tensor]:
    """The algorithm for one tensor: gradients by step and rank -> means by step."""
    count = math.ceil(density * grads[0][0].numel())
    world, shape = len(grads[0]), grads[0][0].shape
    u = [torch.zeros(grads[0][0].numel(), dtype=torch.float64) for _ in range(world)]
    v = [torch.zeros_like(u[0]) for _ in range(world)]
    means = []
    for step in grads:
        total = torch.zeros_like(u[0])
        for k, grad in enumerate(step):
            g = grad.double().view(-1)
            if clip is not None:
                g = g * min(1.0, clip * world**-0.5 / (float(g.norm()) + 1e-6))
            if nesterov:
                u[k] = M * (u[k] + g)
                v[k] = v[k] + u[k] + g
            else:
                u[k] = M * u[k] + g
                v[k] = v[k] + u[k]
            order = sorted(range(len(g)), key=lambda i: -abs(float(v[k][i])))
            for i in order[:count]:
                total[i] += v[k][i]
                v[k][i] = 0
                if masking:
                    u[k][i] = 0
        means.append((total / world).view(shape))
    return means


@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize("masking", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_fifteen_steps_follow_the_algorithm(
    nesterov: bool, masking: bool, clip: float | None
) -> None:
    options = {"nesterov": nesterov, "masking": masking}
    group, states = ranks(3, torch.float64, clip_norm=clip, **options)
    given, got = drive(group, states, 15)
    for name in ("a.weight", "b.weight"):
        grads = [[rank[name] for rank in step] for step in given]
        means = by_formula(grads, density=0.05, clip=clip, **options)
        for step, mean in enumerate(means):
            torch.testing.assert_close(got[step][1][name], mean, rtol=0, atol=1e-12)


def test_dense_tensors_get_their_momentum_after_the_mean() -> None:
    for nesterov in (False, True):
        group, states = ranks(2, torch.float64, nesterov=nesterov, clip_norm=0.1)
        given, got = drive(group, states, 6)
        u = torch.zeros(10, dtype=torch.float64)
        for step in range(6):
            mean = (given[step][0]["a.bias"] + given[step][1]["a.bias"]) / 2  # not clipped
            u = M * (u + mean) if nesterov else M * u + mean
            expected = u + mean if nesterov else u
            torch.testing.assert_close(got[step][0]["a.bias"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("values", ["float32", "bfloat16", "float16"])
def test_conservation_without_momentum(values: str) -> None:
    group, states = ranks(3, torch.float64, momentum=0.0, values=values)
    given, got = drive(group, states, 25)
    for name in ("a.weight", "b.weight"):
        sent = sum(step[0][name] for step in got) * 3
        waiting = sum(state.memory(name, "residual") for state in states)
        gradients = sum(rank[name] for step in given for rank in step)
        torch.testing.assert_close(sent + waiting, gradients, rtol=0, atol=1e-12)
        assert states[0].memory(name, "momentum") is None


def test_conservation_with_momentum_and_no_masking() -> None:
    group, states = ranks(2, torch.float64, masking=False)
    given, got = drive(group, states, 25)
    for name in ("a.weight", "b.weight"):
        pushed = torch.zeros_like(given[0][0][name])
        for rank in range(2):
            u = torch.zeros_like(pushed)
            for step in given:
                u = M * u + step[rank][name]
                pushed += u
        sent = sum(step[0][name] for step in got) * 2
        waiting = sum(state.memory(name, "residual") for state in states)
        torch.testing.assert_close(sent + waiting, pushed, rtol=0, atol=1e-11)


@pytest.mark.parametrize("interval", [1, 7, 50])
@pytest.mark.parametrize("nesterov", [False, True])
def test_first_send_is_the_sum_of_dense_momentum_updates(interval: int, nesterov: bool) -> None:
    group, states = ranks(1, torch.float64, density=1 / 60, nesterov=nesterov)
    generator = torch.Generator().manual_seed(3)
    u = expected = 0.0
    for step in range(interval):
        grad = {n: torch.zeros_like(p) for n, p in states[0].named.items()}
        small = float(torch.rand((), generator=generator, dtype=torch.float64)) * 1e-3 + 1e-4
        grad["a.weight"][0, 0] = small
        if step < interval - 1:  # another entry is larger and goes first, in every step but one
            grad["a.weight"][0, 1] = 1.0
        u = M * (u + small) if nesterov else M * u + small
        expected += u + small if nesterov else u
        out = group.exchange(states, [grad])[0]["a.weight"]
        if step < interval - 1:
            assert float(out[0, 0]) == 0.0
    assert float(out[0, 0]) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("density", [1.0, 0.999])
def test_all_entries_without_masking_is_dense_sgd(nesterov: bool, density: float) -> None:
    """Two ranks train; the weights equal those of torch's SGD on the mean gradient."""
    group, states = ranks(2, masking=False, nesterov=nesterov, density=density)
    torch.manual_seed(0)
    dense = Net()
    rule = {"momentum": M, "weight_decay": 0.01, "nesterov": nesterov}
    reference = torch.optim.SGD(dense.parameters(), 0.1, **rule)
    nets, optimizers = [], []
    for _ in range(2):
        net = Net()
        net.load_state_dict(dense.state_dict())
        nets.append(net)
        optimizers.append(DGCSGD(net.parameters(), 0.1, **rule))
    for _ in range(20):
        x, y = torch.randn(2, 8, 6), torch.randn(2, 8, 5)
        local = []
        for rank in range(2):
            nets[rank].zero_grad()
            (nets[rank](x[rank]) - y[rank]).square().mean().backward()
            local.append({n: p.grad.clone() for n, p in nets[rank].named_parameters()})
        for rank, out in enumerate(group.exchange(states, local, bucket_bytes=200)):
            for name, parameter in nets[rank].named_parameters():
                parameter.grad = out[name]
            optimizers[rank].step()
        reference.zero_grad()
        (dense(x.flatten(0, 1)) - y.flatten(0, 1)).square().mean().backward()
        reference.step()
    for name, parameter in dense.named_parameters():
        mine = nets[0].get_parameter(name)
        assert torch.equal(mine, nets[1].get_parameter(name))
        torch.testing.assert_close(mine, parameter, rtol=0, atol=1e-6)


def test_replicas_stay_bit_equal() -> None:
    group, states = ranks(4)
    _, got = drive(group, states, 50)
    for step in got:
        for name in step[0]:
            assert all(torch.equal(step[0][name], other[name]) for other in step[1:])


def test_every_tensor_has_its_own_share() -> None:
    """A tensor a million times smaller still sends its K entries."""
    group, states = ranks(1)
    grad = random_gradients(states[0], torch.Generator().manual_seed(0))
    grad["b.weight"] *= 1e-6
    out = group.exchange(states, [grad])[0]
    assert [int((out[name] != 0).sum()) for name in ("a.weight", "b.weight")] == [3, 3]
    chosen = select_top(grad["b.weight"].view(-1), 3)
    assert torch.equal(out["b.weight"].view(-1).nonzero().view(-1), chosen)


def memories(state: DGC) -> dict[str, Tensor]:
    slots = ("momentum", "residual", "dense_momentum")
    found = {(n, s): state.memory(n, s) for n in state.named for s in slots}
    return {f"{n}/{s}": t.clone() for (n, s), t in found.items() if t is not None}


def test_a_tensor_that_no_rank_used_keeps_its_memory() -> None:
    group, states = ranks(2)
    drive(group, states, 3)
    before = [memories(state) for state in states]
    generator = torch.Generator().manual_seed(9)
    some = [random_gradients(state, generator) for state in states]
    for name in ("a.weight", "a.bias"):
        for gradients in some:
            del gradients[name]
    del some[0]["b.weight"]  # used on rank 1 alone: rank 0 goes on with a gradient of zero
    out = group.exchange(states, some)
    after = [memories(state) for state in states]
    for name in ("a.weight/momentum", "a.weight/residual", "a.bias/dense_momentum"):
        assert all(torch.equal(x[name], y[name]) for x, y in zip(before, after, strict=True))
    assert not out[0]["a.weight"].any()
    u = before[0]["b.weight/momentum"] * M
    v = before[0]["b.weight/residual"] + u
    v.view(-1)[select_top(v.view(-1), 3)] = 0
    assert torch.equal(after[0]["b.weight/residual"], v)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["a.weight", "b.bias"])
def test_infinity_on_one_rank_changes_nothing_anywhere(bad: float, name: str) -> None:
    group, states = ranks(2)
    drive(group, states, 3)
    before = [memories(state) for state in states]
    some = [random_gradients(state, torch.Generator().manual_seed(5)) for state in states]
    some[1][name].view(-1)[2] = bad
    out = group.exchange(states, some)
    assert not math.isfinite(float(out[0][name].sum()))  # GradScaler sees it on every rank
    for state, kept in zip(states, before, strict=True):
        assert state.skipped == 1
        now = memories(state)
        assert now.keys() == kept.keys()
        assert all(torch.equal(now[key], kept[key]) for key in kept)


class Scaler:
    def __init__(self) -> None:
        self.scale = 1024.0

    def get_scale(self) -> float:
        return self.scale


def test_loss_scale_stays_out_of_the_memory() -> None:
    options = {"clip_norm": 2.0, "clip_scope": "model", "clip_dense": True}
    group, states = ranks(2, **options)
    other, scaled = ranks(2, **options)
    given, got = drive(group, states, 6)
    scaler = Scaler()
    for state in scaled:
        state.scaler = scaler
    for step in range(6):
        scaler.scale = 2.0 ** (10 - step)
        grads = [{n: g * scaler.scale for n, g in rank.items()} for rank in given[step]]
        out = other.exchange(scaled, grads, bucket_bytes=200)
        for name, mean in got[step][0].items():
            torch.testing.assert_close(out[0][name] / scaler.scale, mean)
    for name, kept in memories(states[0]).items():
        torch.testing.assert_close(memories(scaled[0])[name], kept)


def test_warm_up_by_epoch() -> None:
    warmup = Warmup(4, steps_per_epoch=2)
    group, states = ranks(2, density=0.01, warmup=warmup)
    seen = []
    for step in range(12):
        _, got = drive(group, states, 1, seed=step)
        sent = [int((got[0][0]["a.weight"] != 0).sum()), states[0].kept("a.weight", 1)]
        seen.append(states[0].density_of("a.weight"))
        assert 0 < sent[0] <= 2 * math.ceil(seen[-1] * 60)
        layout = 4 * math.ceil(seen[-1] * 60)
        assert states[0].payload_bytes("a.weight") > layout
    assert seen[::2] == seen[1::2] == [0.25, 0.0625, 0.015625, 0.01, 0.01, 0.01]
    manual = ranks(1, density=0.01, warmup=Warmup(2))[1][0]
    assert manual.density_of("a.weight") == 0.25
    manual.step_epoch(1)
    assert manual.density_of("a.weight") == 0.0625
    manual.step_epoch(7)
    assert manual.density_of("a.weight") == 0.01


@pytest.mark.parametrize("nesterov", [False, True])
def test_dense_epochs_hand_their_momentum_on(nesterov: bool) -> None:
    warmup = Warmup(densities=[1.0, 1.0, 0.5], steps_per_epoch=3)
    group, states = ranks(2, torch.float64, warmup=warmup, masking=False, nesterov=nesterov)
    given, got = drive(group, states, 7)
    u = torch.zeros(10, 6, dtype=torch.float64)
    for step in range(6):
        mean = (given[step][0]["a.weight"] + given[step][1]["a.weight"]) / 2
        u = M * (u + mean) if nesterov else M * u + mean
        expected = u + mean if nesterov else u
        torch.testing.assert_close(got[step][0]["a.weight"], expected, rtol=0, atol=1e-12)
    for rank, state in enumerate(states):  # the first sparse step goes on from the same u
        last = given[6][rank]["a.weight"]
        expected = M * (u + last) if nesterov else M * u + last
        torch.testing.assert_close(state.memory("a.weight", "momentum"), expected)
    assert int((got[6][0]["a.weight"] != 0).sum()) < 60


@pytest.mark.parametrize("scope", ["tensor", "bucket", "model"])
@pytest.mark.parametrize("clip_dense", [False, True])
def test_clipping(scope: str, clip_dense: bool) -> None:
    group, states = ranks(
        4, torch.float64, momentum=0.0, clip_norm=0.5, clip_scope=scope, clip_dense=clip_dense
    )
    given, got = drive(group, states, 1)
    buckets = {"tensor": [[n] for n in given[0][0]], "model": [list(given[0][0])]}
    buckets["bucket"] = [["b.bias", "b.weight"], ["a.bias", "a.weight"]]  # 200 bytes or more
    for names in buckets[scope]:
        for rank, state in enumerate(states):
            local = given[0][rank]
            norm = math.sqrt(sum(float(local[n].square().sum()) for n in names))
            factor = min(1.0, 0.5 * 4**-0.5 / (norm + 1e-6))
            assert factor < 1
            for name in (n for n in names if n.endswith("weight")):
                kept = state.memory(name, "residual")
                waits = kept != 0
                torch.testing.assert_close(kept[waits], (local[name] * factor)[waits])
                assert int((~waits).sum()) == 3
            local |= {n: local[n] * factor for n in names if clip_dense}
        for name in (n for n in names if n.endswith("bias")):
            mean = sum(rank[name] for rank in given[0]) / 4
            torch.testing.assert_close(got[0][0][name], mean)


def test_small_norms_are_left_alone() -> None:
    group, states = ranks(1, momentum=0.0, clip_norm=1e6)
    given, got = drive(group, states, 1)
    name = "a.weight"
    kept = states[0].memory(name, "residual")
    assert torch.equal(kept + got[0][0][name], given[0][0][name])


def test_a_checkpoint_goes_on_bit_for_bit() -> None:
    warmup = Warmup(densities=[1.0, 0.3, 0.1], steps_per_epoch=4)
    group, states = ranks(2, warmup=warmup, values="bfloat16")
    drive(group, states, 10)
    saved = [state.state_dict() for state in states]
    _, unbroken = drive(group, states, 6, seed=4)
    other, fresh = ranks(2, warmup=warmup, values="bfloat16")
    for state, one in zip(fresh, saved, strict=True):
        assert state.load_state_dict(one).complete
        assert (state.step, state.epoch) == (10, 2)
    _, resumed = drive(other, fresh, 6, seed=4)
    for before, after in zip(unbroken, resumed, strict=True):
        assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])


@pytest.mark.parametrize("now", [1, 3])
def test_other_world_size_keeps_the_update_that_is_still_to_come(now: int) -> None:
    group, states = ranks(2, torch.float64, masking=False)
    drive(group, states, 10)
    saved = [state.state_dict() for state in states]
    other, fresh = ranks(now, torch.float64, masking=False)
    for state in fresh:
        with pytest.warns(LaconicWarning, match=f"2 ranks became {now}"):
            state.load_state_dict(saved)
    for name in ("a.weight", "b.weight"):
        for slot in ("momentum", "residual"):
            before = sum(state.memory(name, slot) for state in states) / 2
            held = [state.memory(name, slot) for state in fresh]
            after = sum(value for value in held if value is not None) / now
            torch.testing.assert_close(after, before, rtol=0, atol=1e-14)
    for bias in ("a.bias", "b.bias"):
        for state in fresh:
            expected = states[0].memory(bias, "dense_momentum")
            assert torch.equal(state.memory(bias, "dense_momentum"), expected)
    given, got = drive(other, fresh, 20)  # and it does come: sent + waiting = all that was pushed
    name = "a.weight"
    u = [sum(state.memory(name, "momentum") for state in states) / 2]
    waiting = sum(state.memory(name, "residual") for state in states) / 2
    for step in given:
        u.append(M * u[-1] + sum(rank[name] for rank in step) / now)
    sent = sum(step[0][name] for step in got)
    left = sum(state.memory(name, "residual") for state in fresh) / now
    torch.testing.assert_close(sent + left, waiting + sum(u[1:]), rtol=0, atol=1e-12)
