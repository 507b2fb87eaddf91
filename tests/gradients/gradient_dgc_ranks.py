"""What four real ranks do in one start: DGC in all its settings, and L-GreCo."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gradient_ranks import SMALL, batch, flat, network, train
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from laconic.gradients import DGC, DGCSGD, LGreCo, LoopbackGroup, PowerSGD, Warmup, hook
from laconic.gradients.loopback import fake_buckets
from laconic.gradients.transport import ProcessGroupTransport

RULE = {"momentum": 0.9, "nesterov": True}


def everything(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Run all of it, and say what came of each."""
    parts: list[Callable[..., dict[str, Any]]] = [
        replicas, on_virtual_ranks, dense_sgd, accumulation, uneven_groups, machines, lgreco,
        whole_norm,
    ]  # fmt: skip
    return {part.__name__: part(rank, size) for part in parts}


def same_everywhere(values: Tensor) -> bool:
    lots = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(lots, values.contiguous())
    return all(torch.equal(lot, lots[0]) for lot in lots)


def hooked(**settings: Any) -> tuple[DistributedDataParallel, DGC, DGCSGD]:
    ddp = DistributedDataParallel(network(), bucket_cap_mb=SMALL)
    optimizer = DGCSGD(ddp.parameters(), 0.05, weight_decay=1e-3, **RULE)
    options = {"density": 0.05, "min_numel": 0, "nesterov": True} | settings
    state = DGC(ddp, optimizer, **options)
    ddp.register_comm_hook(state, hook)
    return ddp, state, optimizer


class Watch:
    """Notes from which thread collectives are launched."""

    def __init__(self, transport: Any) -> None:
        self.inner, self.threads, self.buckets = transport, set(), set()
        self.rank, self.size, self.traffic = transport.rank, transport.size, transport.traffic

    def __getattr__(self, name: str) -> Any:
        self.threads.add(threading.get_ident())
        return getattr(self.inner, name)


def replicas(rank: int, size: int) -> dict[str, Any]:
    warmup = Warmup(densities=[1.0, 0.25], steps_per_epoch=5)
    ddp, state, optimizer = hooked(
        warmup=warmup, values="bfloat16", clip_norm=5.0, clip_scope="model"
    )
    state.transport = watch = Watch(state.transport)
    losses = train(ddp, optimizer, range(30), rank, jitter_s=0.002)
    return {
        "equal": same_everywhere(flat(ddp)),
        "residuals differ": not same_everywhere(state.memory("0.weight", "residual").flatten()),
        "threads": len(watch.threads),
        "losses": losses,
        "report": state.report()["density"],
    }


def on_virtual_ranks(rank: int, size: int) -> dict[str, Any]:
    """The same training in one process gives the same weights."""
    ddp, _, optimizer = hooked()
    train(ddp, optimizer, range(4), rank)
    group, states, nets, optimizers = LoopbackGroup(size), [], [], []
    for virtual in range(size):
        net = network()
        rule = DGCSGD(net.parameters(), 0.05, weight_decay=1e-3, **RULE)
        transport = group.transport(virtual)
        state = DGC(net, rule, density=0.05, min_numel=0, nesterov=True, transport=transport)
        nets.append(net)
        optimizers.append(rule)
        states.append(state)
    for step in range(4):
        lots = []
        for virtual, net in enumerate(nets):
            inputs, labels = batch(step, virtual)
            net.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            lots.append({n: p.grad for n, p in net.named_parameters()})
        for net, rule, out in zip(nets, optimizers, group.exchange(states, lots), strict=True):
            for name, parameter in net.named_parameters():
                parameter.grad = out[name]
            rule.step()
    return {"difference": float((flat(ddp) - flat(nets[rank])).abs().max())}


def dense_sgd(rank: int, size: int) -> dict[str, Any]:
    ddp, _, optimizer = hooked(density=1.0, masking=False)
    train(ddp, optimizer, range(10), rank)
    plain = DistributedDataParallel(network())
    theirs = torch.optim.SGD(plain.parameters(), 0.05, weight_decay=1e-3, **RULE)
    train(plain, theirs, range(10), rank)
    return {"difference": float((flat(ddp) - flat(plain)).abs().max())}


def accumulation(rank: int, size: int) -> dict[str, Any]:
    """Two micro-batches under no_sync are one step of their mean."""
    weights = []
    for parts in (1, 2):
        ddp, state, optimizer = hooked()
        for step in range(3):
            optimizer.zero_grad()
            inputs, labels = batch(step, rank)
            lots = list(zip(inputs.chunk(parts), labels.chunk(parts), strict=True))
            for at, (x, y) in enumerate(lots):
                ddp.require_backward_grad_sync = at == parts - 1  # what no_sync() sets
                (nn.functional.cross_entropy(ddp(x), y) / parts).backward()
            optimizer.step()
        weights.append(flat(ddp))
    return {"difference": float((weights[0] - weights[1]).abs().max()), "steps": state.step}


def machines(rank: int, size: int) -> dict[str, Any]:
    """Two machines of two ranks: as two ranks with twice the batch."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    ddp, state, optimizer = hooked(intra_group=groups[rank // 2])
    train(ddp, optimizer, range(4), rank)
    pair = LoopbackGroup(2)
    states, nets, optimizers = [], [], []
    for node in range(2):
        net = network()
        rule = DGCSGD(net.parameters(), 0.05, weight_decay=1e-3, **RULE)
        transport = pair.transport(node)
        states.append(DGC(net, rule, density=0.05, min_numel=0, nesterov=True, transport=transport))
        nets.append(net)
        optimizers.append(rule)
    for step in range(4):
        lots = []
        for node, net in enumerate(nets):
            net.zero_grad()
            for member in (2 * node, 2 * node + 1):
                inputs, labels = batch(step, member)
                (nn.functional.cross_entropy(net(inputs), labels) / 2).backward()
            lots.append({n: p.grad for n, p in net.named_parameters()})
        for net, rule, out in zip(nets, optimizers, pair.exchange(states, lots), strict=True):
            for name, parameter in net.named_parameters():
                parameter.grad = out[name]
            rule.step()
    return {
        "equal": same_everywhere(flat(ddp)),
        "difference": float((flat(ddp) - flat(nets[0])).abs().max()),
        "handed": state.transport.traffic.handed,
        "refused": refused([dist.new_group([0]), dist.new_group([1, 2, 3])][rank > 0]),
    }


def uneven_groups(rank: int, size: int) -> dict[str, Any]:
    """Ranks that are in unequal numbers of groups still meet in one of their own."""
    dist.new_group([0])  # rank 0 alone is in one group more
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    transport = ProcessGroupTransport(pairs[rank // 2], timeout_s=20)
    return {"sum": float(transport.all_reduce(torch.ones(1) * rank, where="here").wait())}


def refused(intra: dist.ProcessGroup) -> str:
    net = network()
    try:
        DGC(net, DGCSGD(net.parameters()), intra_group=intra)
    except ValueError as error:
        return str(error)
    return ""


def lgreco(rank: int, size: int) -> dict[str, Any]:
    ddp = DistributedDataParallel(network(), bucket_cap_mb=SMALL)
    inner = PowerSGD(ddp, rank=4, min_compression_rate=1.1)
    inner.transport = watch = Watch(inner.transport)
    state = LGreCo(inner, start_step=2, period=4, probe_steps=3)
    ddp.register_comm_hook(state, hook)
    optimizer = torch.optim.SGD(ddp.parameters(), 0.05, momentum=0.9)
    train(ddp, optimizer, range(16), rank, jitter_s=0.002)
    q = torch.cat([inner.memory(name, "q").flatten() for name in state.problem.names])
    return {
        "equal": same_everywhere(flat(ddp)),
        "q": same_everywhere(q),
        "threads": len(watch.threads),
        "periods": state.report()["periods"],
    }


def whole_norm(rank: int, size: int) -> dict[str, Any]:
    """The first step's residuals show the clip factor of the whole model."""
    ddp, state, optimizer = hooked(clip_norm=0.01, clip_scope="model", masking=False)
    train(ddp, optimizer, range(1), rank)
    net = network()
    inputs, labels = batch(0, rank)
    nn.functional.cross_entropy(net(inputs), labels).backward()
    named = dict(net.named_parameters())
    norm = torch.stack([p.grad.norm() for p in named.values()]).norm()
    factor = float(0.01 * size**-0.5 / (norm + 1e-6))
    kept = state.memory("0.weight", "momentum")
    expected = 0.9 * factor * named["0.weight"].grad
    buckets = len(fake_buckets(state.named, {}, bucket_bytes=1))
    return {"difference": float((kept - expected).abs().max() / expected.abs().max()),
            "factor": factor, "buckets": buckets}  # fmt: skip
