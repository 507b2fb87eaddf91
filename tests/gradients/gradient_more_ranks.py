"""What three real ranks do: long runs, another number of ranks, a rank that dies."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gradient_ranks import batch, flat, network, train, wrap
from torch import nn

from laconic.errors import CommunicationError
from laconic.gradients import QSGD, CommState, Dense, Half, PowerSGD, SignSGD, TopK, load, save
from laconic.gradients.transport import ProcessGroupTransport

METHODS: dict[str, Callable[[nn.Module], CommState]] = {
    "dense": Dense,
    "half": Half,
    "bfloat16": lambda ddp: Half(ddp, dtype="bfloat16"),
    "top-k": lambda ddp: TopK(ddp, density=0.05, values="float16"),
    "qsgd": lambda ddp: QSGD(ddp, bits=4, bucket=128),
    "powersgd": lambda ddp: PowerSGD(ddp, rank=2),
    "sign": SignSGD,
}


def replicas(rank: int, size: int, folder: Path) -> dict[str, Any]:
    out = {name: long_run(build, rank) for name, build in METHODS.items()}
    return {**out, "from_two": from_two(rank, folder)}


def long_run(build: Callable[[nn.Module], CommState], rank: int) -> dict[str, Any]:
    """Fifty steps in which ranks come at different times."""
    ddp, state = wrap(network(), build)
    threads = {threading.get_ident()}
    launch = state.transport.all_reduce
    gather = state.transport.all_gather

    def watch(call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            threads.add(threading.get_ident())
            return call(*arguments, **named)

        return watched

    state.transport.all_reduce, state.transport.all_gather = watch(launch), watch(gather)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.15, momentum=0.9)
    losses = train(ddp, optimizer, range(49), rank, jitter_s=0.004)
    before = state.transport.traffic.collectives
    losses += train(ddp, optimizer, range(49, 50), rank)
    return {
        "parameters": flat(ddp),
        "losses": losses,
        "buckets": state.transport.traffic.collectives - before,
        "threads": len(threads),
    }


def from_two(rank: int, folder: Path) -> dict[str, Any]:
    """Take over what two ranks saved, train on, save again."""
    model = network()
    model.load_state_dict(torch.load(folder / "two" / "model.pt", weights_only=True))
    ddp, state = wrap(model, lambda ddp: TopK(ddp, density=0.05))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(state, folder / "two")
    held = state.memory("0.weight", "residual")
    held = torch.zeros_like(model[0].weight.detach()) if held is None else held
    train(ddp, torch.optim.SGD(ddp.parameters(), lr=0.05), range(5, 9), rank)
    save(state, folder / "three")
    dist.barrier()
    return {
        "residual": held,
        "warning": str(caught[0].message),
        "after": flat(ddp),
        "saved": state.memory("0.weight", "residual"),
    }


def setup() -> tuple[nn.Module, CommState, torch.optim.Optimizer]:
    ddp, state = wrap(network(), lambda ddp: TopK(ddp, density=0.05, timeout_s=10.0))
    return ddp, state, torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)


def too_late(rank: int) -> tuple[str, float]:
    """Wait for a rank that does not come, on a group of its own."""
    transport = ProcessGroupTransport(timeout_s=1.0)
    started, said = time.monotonic(), ""
    if rank == 1:
        time.sleep(3)
    else:
        try:
            transport.all_gather(torch.zeros(8, dtype=torch.uint8), where="step 3, bucket 1").wait()
        except CommunicationError as error:
            said = str(error)
    return said, time.monotonic() - started


def killed(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Save at step 5; in step 7 rank 1 dies between two buckets. Before that it is late once."""
    late = too_late(rank)
    ddp, state, optimizer = setup()
    train(ddp, optimizer, range(5), rank)
    save(state, folder / "at-5")
    if rank == 0:
        torch.save(
            {"model": ddp.module.state_dict(), "optimizer": optimizer.state_dict()},
            folder / "at-5" / "model.pt",
        )
    train(ddp, optimizer, range(5, 7), rank)
    if rank == 1:
        sound, calls = state.encode, []

        def encode(*arguments: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            sound(*arguments)

        state.encode = encode  # type: ignore[method-assign]
    started = time.monotonic()
    inputs, labels = batch(7, rank)
    try:
        nn.functional.cross_entropy(ddp(inputs), labels).backward()
    except CommunicationError as error:
        seconds = time.monotonic() - started
        return {
            "type": type(error).__name__,
            "message": str(error),
            "seconds": seconds,
            "late": late,
        }
    return {"type": "none"}


def resumed(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Go on from step 5, and beside it run all ten steps without a break."""
    ddp, state, optimizer = setup()
    unbroken = train(ddp, optimizer, range(10), rank)
    whole = flat(ddp)
    ddp, state, optimizer = setup()
    saved = torch.load(folder / "at-5" / "model.pt", weights_only=True)
    ddp.module.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    restored = load(state, folder / "at-5")
    losses = train(ddp, optimizer, range(5, 10), rank)
    return {
        "losses": losses,
        "unbroken": unbroken[5:],
        "difference": float((flat(ddp) - whole).abs().max()),
        "from_step": restored.step,
    }
