"""What two real ranks do in one start: parity with DDP and its hooks, and DDP's hard cases."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gradient_ranks import batch, flat, grads, network, train, wrap
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from laconic.gradients import (
    QSGD,
    CommState,
    Dense,
    Half,
    PowerSGD,
    SignSGD,
    TopK,
    hook,
    load,
    save,
)
from laconic.gradients.base import Observer


def everything(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Run all of it, and say what came of each."""
    parts: list[Callable[..., dict[str, Any]]] = [
        dense_is_no_hook, half_is_torchs, powersgd_is_torchs, accumulation, unused, join_ends,
        kinds_of_ddp, mixed_types, loss_scaling, not_finite, rebuilding, saved_for_others,
        accelerated, fitted, broken_method, restarted,
    ]  # fmt: skip
    return {part.__name__: part(rank, folder) for part in parts}


def same_everywhere(values: Tensor) -> bool:
    lots = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(lots, values.contiguous())
    return all(torch.equal(lot, lots[0]) for lot in lots)


def trained(
    state: Callable[[nn.Module], CommState] | None, rank: int, steps: int = 4, **settings: Any
) -> tuple[Tensor, CommState | None]:
    ddp, built = wrap(network(), state, **settings)
    train(ddp, torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9), range(steps), rank)
    return flat(ddp), built


def dense_is_no_hook(rank: int, folder: Path) -> dict[str, Any]:
    plain, _ = trained(None, rank)
    ours, state = trained(Dense, rank)
    detached, _ = trained(detach_at_once, rank)
    traffic = state.transport.traffic
    return {
        "equal": torch.equal(plain, ours),
        "detached": torch.equal(plain, detached),
        "handed": traffic.handed,
        "expected": 4 * 4 * plain.numel(),
        "collectives": traffic.collectives,
    }


def detach_at_once(ddp: nn.Module) -> CommState:
    state = TopK(ddp)
    state.detach()
    return state


def half_is_torchs(rank: int, folder: Path) -> dict[str, Any]:
    """Compare the gradients of one backward."""

    def gradient(register: Callable[[DistributedDataParallel], None]) -> Tensor:
        ddp = DistributedDataParallel(network())
        register(ddp)
        inputs, labels = batch(0, rank)
        nn.functional.cross_entropy(ddp(inputs), labels).backward()
        return grads(ddp).double()

    theirs = gradient(lambda ddp: ddp.register_comm_hook(None, default_hooks.fp16_compress_hook))
    ours = gradient(lambda ddp: ddp.register_comm_hook(Half(ddp), hook))
    brain = gradient(lambda ddp: ddp.register_comm_hook(Half(ddp, dtype="bfloat16"), hook))
    plain = gradient(lambda ddp: None)
    # Torch divides after rounding: the same, unless a rank's value is below the normal range.
    alone, (inputs, labels) = network(), batch(0, rank)
    nn.functional.cross_entropy(alone(inputs), labels).backward()
    own = grads(alone).double().abs()
    least = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(least, own)
    normal = torch.minimum(*least) > 2**-13
    return {
        "equal": torch.equal(theirs[normal], ours[normal]),
        "normal": float(normal.double().mean()),
        "elsewhere": float((theirs - ours).abs().max() / plain.abs().max()),
        "float16": float((ours - plain).abs().max()),
        "bfloat16": float((brain - plain).abs().max()),
    }


def powersgd_is_torchs(rank: int, folder: Path) -> dict[str, Any]:
    """Compare gradients over five steps; the first two of torch's hook are dense."""
    seed = 5

    def gradients_of(register: Callable[[DistributedDataParallel], Any]) -> list[Tensor]:
        ddp = DistributedDataParallel(network())
        state = register(ddp)
        out = []
        for step in range(6):
            inputs, labels = batch(step, rank)
            ddp.zero_grad()
            if step == 2 and isinstance(state, PowerSGD):
                start_as_torch_does(state, seed)
            nn.functional.cross_entropy(ddp(inputs), labels).backward()
            out.append(grads(ddp))
        return out

    def theirs(ddp: DistributedDataParallel) -> None:
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=2, start_powerSGD_iter=2, random_seed=seed
        )
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    def ours(ddp: DistributedDataParallel) -> CommState:
        state = PowerSGD(ddp, rank=2, start_step=2)
        ddp.register_comm_hook(state, hook)
        return state

    pairs = list(zip(gradients_of(theirs), gradients_of(ours), strict=True))
    return {"difference": [float((a - b).abs().max() / a.abs().max()) for a, b in pairs]}


def start_as_torch_does(state: PowerSGD, seed: int) -> None:
    """Draw Q in torch's order: by shape of the matrix, in the order of the rebuilt bucket."""
    import numpy as np

    names = [n for n in reversed(list(state.named)) if n not in state.dense_names]
    by_shape: dict[tuple[int, int], list[str]] = {}
    for name in names:
        by_shape.setdefault(state.sides(name), []).append(name)
    drawn = int(np.random.RandomState(seed).randint(1_000_000_000))
    source = torch.Generator().manual_seed(drawn)
    memory = {}
    for (_, cols), group in by_shape.items():
        draw = torch.randn(len(group), cols, 2, generator=source)
        memory |= {name: {"q": draw[at]} for at, name in enumerate(group)}
    state.replace_memory(memory)


def accumulation(rank: int, folder: Path) -> dict[str, Any]:
    """Two micro-batches, the first without exchange, against their mean at once."""
    results = []
    for parts in (True, False):
        ddp, state = wrap(network(), lambda ddp: TopK(ddp, density=0.1))
        inputs, labels = batch(0, rank)
        for _ in range(2):
            ddp.zero_grad()
            if parts:
                with ddp.no_sync():
                    (nn.functional.cross_entropy(ddp(inputs[:8]), labels[:8]) / 2).backward()
                (nn.functional.cross_entropy(ddp(inputs[8:]), labels[8:]) / 2).backward()
            else:
                nn.functional.cross_entropy(ddp(inputs), labels).backward()
        results.append((grads(ddp), state.step))
    (first, steps), (second, _) = results
    return {"difference": float((first - second).abs().max()), "steps": steps}


class Branches(nn.Module):
    """Two layers, of which a batch takes one or both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.left, self.right = nn.Linear(32, 40), nn.Linear(32, 40)

    def forward(self, inputs: Tensor, which: str) -> Tensor:
        used = [getattr(self, name)(inputs) for name in which.split("+")]
        return torch.stack(used).sum(0).square().mean()


def unused(rank: int, folder: Path) -> dict[str, Any]:
    ddp, state = wrap(Branches(), lambda ddp: TopK(ddp, density=0.1), find_unused_parameters=True)
    inputs, _ = batch(0, rank)
    ddp(inputs, "left+right").backward()
    held = state.memory("right.weight", "residual")
    ddp.zero_grad()
    ddp(inputs, "left").backward()
    nobody = {
        "grad is none": ddp.module.right.weight.grad is None,
        "memory stays": state.memory("right.weight", "residual") is held,
        "left moves on": bool(ddp.module.left.weight.grad.any()),
    }
    ddp.zero_grad()
    ddp(inputs, "left+right" if rank == 1 else "left").backward()
    out = ddp.module.right.weight.grad
    return {
        **nobody,
        "one is enough": bool(out.any()) and same_everywhere(out),
        "memory moves": state.memory("right.weight", "residual") is not held,
    }


def join_ends(rank: int, folder: Path) -> dict[str, Any]:
    """Rank 1 has three batches more; its zeros let rank 0's memory drain."""
    ddp, state = wrap(network(), lambda ddp: TopK(ddp, density=0.2))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    norms = []
    with ddp.join():
        for step in range(3 + 3 * rank):
            inputs, labels = batch(step, rank)
            optimizer.zero_grad()
            nn.functional.cross_entropy(ddp(inputs), labels).backward()
            optimizer.step()
            norms.append(float(state.memory("0.weight", "residual").norm()))
    return {
        "same": same_everywhere(flat(ddp)),
        "steps": state.step,
        "drained": float(state.memory("0.weight", "residual").norm()) / norms[2],
    }


def kinds_of_ddp(rank: int, folder: Path) -> dict[str, Any]:
    """Options of DDP that must not change the result."""
    out = {}
    for name, build in {
        "top-k": lambda ddp: TopK(ddp, density=0.1),
        "powersgd": lambda ddp: PowerSGD(ddp, rank=2),
        "qsgd": QSGD,
    }.items():
        base, _ = trained(build, rank, 5)
        for settings in ({"gradient_as_bucket_view": True}, {"static_graph": True}):
            other, _ = trained(build, rank, 5, **settings)
            out[f"{name} {settings}"] = torch.equal(base, other)
        # One bucket or many: rounding of sums may differ, where there are any.
        other, _ = trained(build, rank, 5, bucket_cap_mb=25)
        out[f"{name} one bucket"] = float((base - other).abs().max()) < 1e-5
        inside, _ = trained(lambda ddp, build=build: build(ddp.module), rank, 5)
        out[f"{name} by the module inside"] = torch.equal(base, inside)
    return out


def mixed_types(rank: int, folder: Path) -> dict[str, Any]:
    torch.manual_seed(2)
    model = nn.ModuleList([nn.Linear(32, 40), nn.Linear(40, 40).bfloat16(), nn.Linear(40, 10)])

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, inputs: Tensor) -> Tensor:
            middle = self.parts[1](self.parts[0](inputs).bfloat16())
            return self.parts[2](torch.relu(middle).float())

    ddp, state = wrap(Chain(), lambda ddp: TopK(ddp, density=0.1))
    losses = train(ddp, torch.optim.SGD(ddp.parameters(), lr=0.1), range(6), rank)
    return {
        "same": all(same_everywhere(p.detach().float()) for p in ddp.parameters()),
        "memory": str(state.memory("parts.1.weight", "residual").dtype),
        "finite": all(loss == loss for loss in losses),
    }


def loss_scaling(rank: int, folder: Path) -> dict[str, Any]:
    """A GradScaler whose first scales overflow, against none; scales are powers of two."""
    out = []
    for scaled in (True, False):
        ddp, state = wrap(network(), lambda ddp: TopK(ddp, density=0.1))
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, enabled=scaled)
        state.scaler = scaler
        done = step = 0
        while done < 3:
            inputs, labels = batch(done, rank)
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(ddp(inputs), labels) * 8).backward()
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            done += scaler.get_scale() >= before
            step += 1
        out.append((flat(ddp), state.skipped, step, state.memory("0.weight", "residual")))
    (a, skipped, steps, held), (b, _, _, other) = out
    return {
        "difference": float((a - b).abs().max()),
        "memory": float((held - other).abs().max()),
        "skipped": skipped,
        "steps": steps,
    }


def not_finite(rank: int, folder: Path) -> dict[str, Any]:
    """Infinity on rank 1 alone."""
    ddp, state = wrap(network(), lambda ddp: TopK(ddp, density=0.1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    train(ddp, optimizer, range(2), rank)
    before = {name: slots["residual"].clone() for name, slots in state.remembered().items()}
    inputs, labels = batch(2, rank)
    optimizer.zero_grad()
    factor = float("inf") if rank == 1 else 1.0
    (nn.functional.cross_entropy(ddp(inputs), labels) * factor).backward()
    after = state.remembered()
    seen = not bool(grads(ddp).isfinite().all())
    train(ddp, optimizer, range(3, 6), rank)
    return {
        "kept": all(torch.equal(value, after[name]["residual"]) for name, value in before.items()),
        "seen": seen,
        "skipped": state.skipped,
        "goes on": bool(flat(ddp).isfinite().all()) and same_everywhere(flat(ddp)),
    }


def rebuilding(rank: int, folder: Path) -> dict[str, Any]:
    """Count buckets: DDP lays them out anew after the first step."""

    class Count(Observer):
        def __init__(self) -> None:
            self.order: list[list[str]] = []

        def step_begins(self, state: CommState) -> None:
            self.order.append([])

        def gradient_ready(self, state: CommState, name: str, grad: Tensor) -> None:
            self.order[-1].append(name)

    ddp, state = wrap(network(), lambda ddp: TopK(ddp, density=0.1))
    state.observers.append(look := Count())
    per_step, before = [], 0
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for step in range(3):
        train(ddp, optimizer, range(step, step + 1), rank)
        per_step.append(state.transport.traffic.collectives - before)
        before = state.transport.traffic.collectives
    return {"collectives": per_step, "order": look.order, "names": len(state.remembered())}


def saved_for_others(rank: int, folder: Path) -> dict[str, Any]:
    """Leave checkpoints for three ranks and for one."""
    ddp, state = wrap(network(), lambda ddp: TopK(ddp, density=0.05))
    train(ddp, torch.optim.SGD(ddp.parameters(), lr=0.05), range(5), rank)
    save(state, folder / "two")
    if rank == 0:
        torch.save(ddp.module.state_dict(), folder / "two" / "model.pt")
    dist.barrier()
    return {"residual": state.memory("0.weight", "residual")}


def accelerated(rank: int, folder: Path) -> dict[str, Any]:
    """A script on accelerate, with gradient accumulation."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = network(), None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    state = TopK(model, density=0.1)
    model.register_comm_hook(state, hook)
    for step in range(6):
        inputs, labels = batch(step, rank)
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(inputs), labels))
            optimizer.step()
            optimizer.zero_grad()
    return {
        "kind": type(model).__name__,
        "steps": state.step,
        "same": same_everywhere(flat(model)),
        "sent": state.transport.traffic.handed,
    }


def fitted(rank: int, folder: Path) -> dict[str, Any]:
    """The library's own training loop."""
    from laconic.task import TensorSplit
    from laconic.training import fit

    inputs, labels = batch(0, 0, 128)
    states = []

    def compress(ddp: nn.Module) -> None:
        states.append(TopK(ddp, density=0.1))
        ddp.register_comm_hook(states[0], hook)

    model = network()
    summary = fit(
        model,
        lambda model, lot: nn.functional.cross_entropy(model(lot["x"]), lot["y"]),
        data=TensorSplit({"x": inputs, "y": labels}),
        steps=12,
        batch_size=32,
        wrapped=compress,
    )
    return {"steps": states[0].step, "same": same_everywhere(flat(model)), "ran": summary.steps}


def broken_method(rank: int, folder: Path) -> dict[str, Any]:
    """An exception inside the hook leaves backward with its own type."""
    ddp, state = wrap(network(), lambda ddp: TopK(ddp, density=0.1))
    sound, calls = state.encode, []

    def encode(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise ArithmeticError("in the hook")
        sound(*arguments)

    def accumulate(*arguments: Any) -> None:
        raise ArithmeticError("while decoding")

    said = []
    inputs, labels = batch(0, rank)
    for name, value in (("encode", encode), ("accumulate", accumulate)):
        ddp, state = wrap(network(), lambda ddp: TopK(ddp, density=0.1))
        sound = state.encode
        setattr(state, name, value)
        try:
            nn.functional.cross_entropy(ddp(inputs), labels).backward()
        except ArithmeticError as error:
            said.append(str(error))
    return {"said": said, "memory": len(state.remembered())}


def restarted(rank: int, folder: Path) -> dict[str, Any]:
    """Train ten steps; or five, then go on in a new DDP module from what was saved."""
    out = {}
    for name, build in {
        "top-k": lambda ddp: TopK(ddp, density=0.1),
        "qsgd": QSGD,
        "powersgd": lambda ddp: PowerSGD(ddp, rank=2),
        "sign": SignSGD,
    }.items():
        ddp, state = wrap(network(), build)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)
        train(ddp, optimizer, range(5), rank)
        save(state, folder / name)
        dist.barrier()
        saved = {n: v.clone() for n, v in ddp.module.state_dict().items()}
        momentum = copy.deepcopy(optimizer.state_dict())
        train(ddp, optimizer, range(5, 10), rank)
        again, other = wrap(network(seed=1), build)
        again.module.load_state_dict(saved)
        optimizer = torch.optim.SGD(again.parameters(), lr=0.05, momentum=0.9)
        optimizer.load_state_dict(momentum)
        load(other, folder / name)
        train(again, optimizer, range(5, 10), rank)
        out[name] = torch.equal(flat(ddp), flat(again))
    return out
