"""Real ranks: processes of their own on gloo, under a hard limit of time."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from laconic.gradients import CommState, hook

Work = Callable[[int, int, Path], dict[str, Any]]
SMALL = 0.001  # bucket_cap_mb that gives every large tensor a bucket of its own


def run_ranks(work: Work, size: int, folder: Path, *, limit_s: float = 90) -> list[dict[str, Any]]:
    """Run ``work(rank, size, folder)`` in ``size`` processes; a rank that hangs is ended.

    Returns:
        What each rank returned; ``{"error": traceback}`` where it raised, ``{"exit": code}``
        where it ended without a word.
    """
    context = get_context("spawn")
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f"{work.__name__}-{size}"
    meeting.mkdir()
    processes = [
        context.Process(target=_child, args=(work, rank, size, folder, meeting))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + limit_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    out = []
    for rank, process in enumerate(processes):
        file = meeting / f"result-{rank}.pt"
        missing = {"exit": "hung" if process in late else process.exitcode}
        out.append(torch.load(file, weights_only=True) if file.exists() else missing)
    return out


def _child(work: Work, rank: int, size: int, folder: Path, meeting: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {  # as torchrun does, for accelerate
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    start(rank, size, meeting)
    try:
        result = work(rank, size, folder)
    except BaseException:
        result = {"error": traceback.format_exc()}  # reported by the parent
    torch.save(result, meeting / f"result-{rank}.tmp")
    os.replace(meeting / f"result-{rank}.tmp", meeting / f"result-{rank}.pt")
    # Not destroy_process_group: a rank that failed must not wait for the others to leave.
    os._exit(0)


def start(rank: int, size: int, folder: Path) -> None:
    """Join the process group through a file."""
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=20)
    )


def network(seed: int = 0) -> nn.Sequential:
    """Four matrices and their biases: more than three buckets at ``SMALL``."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 36), nn.ReLU(),
        nn.Linear(36, 10),
    )  # fmt: skip


def batch(step: int, rank: int, count: int = 16) -> tuple[Tensor, Tensor]:
    """Return inputs and labels that a fixed teacher gives."""
    source = torch.Generator().manual_seed(1000 * step + rank)
    inputs = torch.randn(count, 32, generator=source)
    teacher = torch.randn(32, 10, generator=torch.Generator().manual_seed(99))
    return inputs, (inputs @ teacher).argmax(1)


def wrap(
    model: nn.Module, state: Callable[[nn.Module], CommState] | None = None, **settings: Any
) -> tuple[DistributedDataParallel, CommState | None]:
    """Return the DDP module and its state; no hook where there is none."""
    ddp = DistributedDataParallel(model, **{"bucket_cap_mb": SMALL, **settings})
    if state is None:
        return ddp, None
    built = state(ddp)
    ddp.register_comm_hook(built, hook)
    return ddp, built


def train(
    ddp: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    rank: int,
    *,
    jitter_s: float = 0.0,
) -> list[float]:
    """Train on this rank's batches; returns the losses."""
    losses = []
    draws = torch.Generator().manual_seed(rank)
    for step in steps:
        inputs, labels = batch(step, rank)
        if jitter_s:
            time.sleep(jitter_s * float(torch.rand((), generator=draws)))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(ddp(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def flat(module: nn.Module) -> Tensor:
    """Return all parameters as one vector."""
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def grads(module: nn.Module) -> Tensor:
    """Return all gradients as one vector; a missing one is NaN."""
    parts = [
        torch.full_like(p, torch.nan) if p.grad is None else p.grad for p in module.parameters()
    ]
    return torch.cat([part.detach().reshape(-1) for part in parts])
