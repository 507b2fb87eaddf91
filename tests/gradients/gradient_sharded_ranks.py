"""Four real ranks: two shards of each of two replicas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gradient_ranks import batch, flat, network, wrap
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from laconic.errors import UnsupportedModelError
from laconic.gradients import QSGD, PowerSGD, SignSGD, TopK
from laconic.gradients.fsdp import Replicas, compress_replicas


def sharded(mesh: Any, method: Any, **settings: Any) -> tuple[nn.Module, Replicas]:
    model = network()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh["inside"])
    fully_shard(model, mesh=mesh["inside"])
    return model, compress_replicas(
        model, method, group=mesh.get_group("between"), timeout_s=15, **settings
    )


def whole(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.full_tensor().detach().reshape(-1) for p in model.parameters()])


def steps(model: nn.Module, rank: int, first: int, last: int) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(first, last):
        inputs, labels = batch(step, rank)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def replicas(rank: int, size: int, folder: Path) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("between", "inside"))
    plain, _ = wrap(network())
    steps(plain, rank, 0, 4)
    out: dict[str, Any] = {}
    for name, method, settings in (
        ("all", TopK, {"density": 1.0}),
        ("top-k", TopK, {"density": 0.1}),
        ("qsgd", QSGD, {"bits": 4}),
        ("sign", SignSGD, {}),
    ):
        model, states = sharded(mesh, method, **settings)
        steps(model, rank, 0, 4)
        lots = [torch.empty_like(whole(model)) for _ in range(size)]
        dist.all_gather(lots, whole(model))
        out[name] = {
            "same": all(torch.equal(lot, lots[0]) for lot in lots),
            "from ddp": float((whole(model) - flat(plain)).abs().max()),
            "modules": list(states.states),
            "bytes": {n: r["step_bytes"] for n, r in states.report().items()},
            "dense": {n: r["dense_bytes"] for n, r in states.report().items()},
            "steps": [state.step for state in states.states.values()],
        }
    out["restart"] = restart(mesh, rank)
    try:
        sharded(mesh, PowerSGD)
    except UnsupportedModelError as error:
        out["refused"] = str(error)
    try:
        TopK(sharded(mesh, TopK)[0])
    except UnsupportedModelError as error:
        out["as ddp"] = str(error)
    return out


def restart(mesh: Any, rank: int) -> bool:
    model, states = sharded(mesh, TopK, density=0.1)
    steps(model, rank, 0, 3)
    saved, values = states.state_dict(), [p.to_local().clone() for p in model.parameters()]
    steps(model, rank, 3, 6)
    again, fresh = sharded(mesh, TopK, density=0.1)
    with torch.no_grad():
        for parameter, value in zip(again.parameters(), values, strict=True):
            parameter.to_local().copy_(value)
    fresh.load_state_dict(saved)
    steps(again, rank, 3, 6)
    return torch.equal(whole(model), whole(again))
