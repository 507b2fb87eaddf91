"""DGC's settings, bytes, refusals, machines of several ranks, and its optimiser."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from laconic.errors import CommunicationError, ConfigError, LaconicWarning
from laconic.gradients import DGC, DGCSGD, LoopbackGroup, Warmup
from laconic.gradients.hierarchy import NodeTransport
from laconic.gradients.indices import index_bytes


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 2))


def build(optimizer: Any = DGCSGD, **settings: Any) -> DGC:
    net = model()
    rule = optimizer(net.parameters(), lr=0.1)
    return DGC(net, rule, transport=LoopbackGroup(1).transport(0), **settings)


# settings


def test_which_tensors_are_sparse() -> None:
    """2 / density is the least number of entries, vectors are dense, and one may say otherwise."""
    assert build(density=0.01).dense_names == {"0.bias", "1.weight", "1.bias"}
    assert build(density=0.011).dense_names == {"0.bias", "1.bias"}
    assert build(density=0.001, min_numel=192).dense_names == {"0.bias", "1.bias"}
    chosen = build(density=0.5, dense=lambda name, parameter: name.startswith("0"))
    assert chosen.dense_names == {"0.weight", "0.bias"}


@pytest.mark.parametrize("values", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("indices", ["auto", "delta16", "int32", "bitmap"])
def test_bytes(values: str, indices: str) -> None:
    state = build(density=0.01, values=values, indices=indices)
    each = 4 if values == "float32" else 2
    size = index_bytes(6144, 62, "delta16" if indices == "auto" else indices)  # type: ignore[arg-type]
    assert state.payload_bytes("0.weight") == 62 * each + size
    grads = {n: torch.randn_like(p) for n, p in state.named.items()}
    out = state.transport.loopback.exchange([state], [grads])[0]  # type: ignore[attr-defined]
    assert int((out["0.weight"] != 0).sum()) == 62
    report = state.report()
    dense = 4 * (96 + 192 + 2)
    assert report["step_bytes"] == state.payload_bytes("0.weight") + dense
    assert report["dense_bytes"] == 4 * 6144 + dense
    assert report["density"] == 62 / 6144
    assert report["tensors"]["1.bias"]["bytes"] == 8


def test_what_the_wire_carries_is_what_is_counted() -> None:
    group, net = LoopbackGroup(2), model()
    states = [
        DGC(net, DGCSGD(net.parameters(), 0.1), density=0.02, transport=group.transport(r))
        for r in range(2)
    ]
    grads = {n: torch.randn_like(p) for n, p in states[0].named.items()}
    group.exchange(states, [grads, grads])
    head = 16 + 16  # digest and step, then flags, in multiples of 16
    sections = 32 * -(-states[0].payload_bytes("0.weight") // 16) // 2
    sections += 32 * -(-states[0].payload_bytes("1.weight") // 16) // 2
    traffic = states[0].report()["traffic"]
    assert traffic["handed"] == head + sections + 4 * (96 + 2)


def test_all_entries_need_no_indices() -> None:
    state = build(density=1.0)
    assert state.payload_bytes("0.weight") == state.dense_bytes("0.weight")


def test_float16_values_saturate_and_the_rest_waits() -> None:
    state = build(
        optimizer=lambda p, lr: DGCSGD(p, lr, momentum=0.0),
        density=1 / 6144,
        values="float16",
        momentum=0.0,
        min_numel=0,
    )
    grads = {n: torch.zeros_like(p) for n, p in state.named.items()}
    grads["0.weight"][1, 2] = 1e5
    out = state.transport.loopback.exchange([state], [grads])[0]  # type: ignore[attr-defined]
    assert float(out["0.weight"][1, 2]) == 65504
    kept = state.memory("0.weight", "residual")
    assert kept is not None
    assert float(kept[1, 2]) == 1e5 - 65504


def test_candidates_and_their_errors() -> None:
    state = build(density=0.2)
    assert state.candidates("0.weight") == pytest.approx([0.025, 0.05, 0.1, 0.2, 0.4, 0.8])
    value = torch.randn(96, 64)
    for density in state.candidates("0.weight"):
        ordered = value.abs().view(-1).sort().values
        behind = ordered[: 6144 - math.ceil(density * 6144)]
        assert state.error_at("0.weight", value, density) == pytest.approx(float(behind.norm()))
    state.set_parameter("0.weight", 0.4)
    assert state.density_of("0.weight") == 0.4
    assert state.density_of("1.weight") == 0.2


# refusals


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"density": 0.0}, "DGC: density=0 must be above 0"),
        ({"density": 1.5}, r"density=1\.5"),
        ({"momentum": 1.0}, r"momentum=1\.0"),
        ({"values": "float8"}, "float8"),
        ({"indices": "delta15"}, "Did you mean 'delta16'"),
        ({"clip_norm": 0.0}, r"clip_norm=0\.0"),
        ({"clip_scope": "layer"}, "clip_scope='layer'"),
        ({"min_numel": -1}, "min_numel=-1"),
    ],
)
def test_settings_out_of_bounds(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(**settings)


def test_optimisers_that_do_not_fit() -> None:
    def sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr, momentum=0.9)

    with pytest.raises(ConfigError, match=r"momentum=0\.9, which would be applied twice"):
        build(sgd)
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop):
        with pytest.raises(ConfigError, match=f"{kind.__name__} is not momentum SGD"):
            build(kind)
    with pytest.raises(ConfigError, match=r"momentum=0\.5.*Give both the same"):
        build(momentum=0.5)
    with pytest.raises(ConfigError, match="nesterov=True, but DGCSGD"):
        build(nesterov=True)
    build(torch.optim.SGD)
    with pytest.warns(LaconicWarning, match="10 times weaker"):
        build(lambda p, lr: torch.optim.SGD(p, lr, weight_decay=1e-4))


def test_a_wrapped_optimiser_is_looked_into() -> None:
    net = model()

    class Wrapper:
        optimizer = torch.optim.Adam(net.parameters())

    with pytest.raises(ConfigError, match="Adam is not"):
        DGC(net, Wrapper(), transport=LoopbackGroup(1).transport(0))  # type: ignore[arg-type]


def test_a_second_hook_is_refused() -> None:
    net = model()
    net._comm_hooks = [("some", "hook")]  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="has a communication hook already"):
        DGC(net, DGCSGD(net.parameters()), transport=LoopbackGroup(1).transport(0))


def test_epochs_and_schedules_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="epoch=-1"):
        build().step_epoch(-1)
    for settings, said in (
        ({"epochs": -1}, "epochs=-1"),
        ({"epochs": 3, "densities": [0.5, 0.1]}, "2 densities"),
        ({"densities": [0.5, 0.0]}, r"density 0\.0"),
        ({"densities": [0.5, 1.0]}, "must come first"),
        ({"epochs": 2, "coefficient": 0.0}, "coefficient=0"),
        ({"epochs": 2, "coefficient": 1.5}, r"density 1\.5"),
        ({"epochs": 2, "steps_per_epoch": 0}, "steps_per_epoch=0"),
    ):
        with pytest.raises(ConfigError, match=said):
            Warmup(**settings)


def test_schedules() -> None:
    assert [Warmup().density(e, 0.01) for e in range(2)] == [0.01, 0.01]
    rooted = [Warmup.rooted(4).density(e, 0.001) for e in range(6)]
    expected = [10 ** (-3 * (e + 1) / 5) for e in range(5)] + [0.001]
    assert rooted == pytest.approx(expected)
    assert Warmup.rooted(5).density(0, 0.001) == pytest.approx(0.316, abs=1e-3)
    assert Warmup(densities=[1, 0.1]).epochs == 2
    assert [Warmup(densities=[1, 0.1]).is_dense(e) for e in range(3)] == [True, False, False]
    assert [Warmup(3, steps_per_epoch=5).epoch_of(s) for s in (0, 4, 5)] == [0, 0, 1]


def test_ranks_in_different_epochs_are_told() -> None:
    group, states = LoopbackGroup(2, timeout_s=5), []
    for rank in range(2):
        net, warmup = model(), Warmup(4)
        rule = DGCSGD(net.parameters(), 0.1)
        transport = group.transport(rank)
        states.append(DGC(net, rule, density=0.02, warmup=warmup, transport=transport))
    states[1].step_epoch(1)
    grads = {n: torch.randn_like(p) for n, p in states[0].named.items()}
    with pytest.raises(CommunicationError, match="different sizes"):
        group.exchange(states, [grads, grads])


# machines of several ranks


def test_dense_inside_sparse_between_leaders() -> None:
    """Two machines of two ranks give what two ranks with the machines' means give."""
    everyone, heads = LoopbackGroup(4), LoopbackGroup(2)
    inside = [LoopbackGroup(2), LoopbackGroup(2)]
    nodes, flat, flat_group = [], [], LoopbackGroup(2)
    for rank in range(4):
        node, local = divmod(rank, 2)
        leaders = heads.transport(node) if local == 0 else None
        transport = NodeTransport(inside[node].transport(local), leaders, rank=node, size=2)
        net = model()
        rule = DGCSGD(net.parameters(), 0.1)
        nodes.append(DGC(net, rule, density=0.02, clip_norm=3.0, transport=transport))
    for rank in range(2):
        net = model()
        rule, transport = DGCSGD(net.parameters(), 0.1), flat_group.transport(rank)
        flat.append(DGC(net, rule, density=0.02, clip_norm=3.0, transport=transport))
    for _ in range(8):
        grads = [{n: torch.randn_like(p) for n, p in flat[0].named.items()} for _ in range(4)]
        grads[3].pop("1.weight")  # unused on one rank of a machine
        means = [
            {
                n: (grads[2 * node][n] + grads[2 * node + 1].get(n, torch.zeros(()))) / 2
                for n in grads[0]
            }
            for node in range(2)
        ]
        expected = flat_group.exchange(flat, means)[0]
        for out in everyone.exchange(nodes, grads):
            for name, mean in expected.items():
                torch.testing.assert_close(out[name], mean)
    handed = [state.transport.traffic.handed for state in nodes]
    assert handed[0] == handed[2] == flat[0].transport.traffic.handed
    assert handed[1] == handed[3] == 0  # nothing of theirs crosses between machines
    assert nodes[1].transport.inside.traffic.handed > 0  # type: ignore[attr-defined]


# the optimiser


@pytest.mark.parametrize("nesterov", [False, True])
def test_decay_goes_through_momentum_of_its_own(nesterov: bool) -> None:
    """With the loss's momentum applied beforehand the weights are those of torch's SGD."""
    ours = nn.Parameter(torch.ones(3, dtype=torch.float64))
    theirs = nn.Parameter(torch.ones(3, dtype=torch.float64))
    rule = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.3, "nesterov": nesterov}
    mine, reference = DGCSGD([ours], **rule), torch.optim.SGD([theirs], **rule)  # type: ignore[arg-type]
    u = torch.zeros(3, dtype=torch.float64)
    for _ in range(12):
        grad = torch.randn(3, dtype=torch.float64)
        u = 0.8 * u + grad
        ours.grad = grad + 0.8 * u if nesterov else u.clone()
        theirs.grad = grad.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_decay_survives_a_checkpoint() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(3))
    optimizer = DGCSGD([weight], 0.1, weight_decay=0.5)

    def steps(rule: DGCSGD, parameter: nn.Parameter, count: int) -> None:
        for at in range(count):
            parameter.grad = torch.full((3,), float(at))
            rule.step()

    steps(optimizer, weight, 3)
    other = nn.Parameter(weight.detach().clone())
    resumed = DGCSGD([other], 0.1, weight_decay=0.5)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    steps(optimizer, weight, 3)
    steps(resumed, other, 3)
    assert torch.equal(weight, other)


def test_optimiser_closure_gaps_and_bounds() -> None:
    weight, idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = DGCSGD([weight, idle], 0.5, momentum=0.0, weight_decay=0.1)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert weight.tolist() == pytest.approx([1 - 0.5 * (2 + 0.1)] * 2)
    assert idle.tolist() == [1, 1]
    for name, value in (("lr", -1.0), ("momentum", 1.0), ("weight_decay", -0.1)):
        with pytest.raises(ConfigError, match=f"{name}={value}"):
            DGCSGD([weight], **{name: value})  # type: ignore[arg-type]
