"""Digits by virtual ranks: no loss at fewer bytes. All methods do well here."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from laconic import datasets, gradients, measure, zoo
from laconic.gradients.base import CommState
from laconic.seeds import generator_for
from laconic.studies.base import Section
from laconic.task import Batch, Task

SIZES = (64, 256, 256, 10)
METHODS = ("dense", "DGC")
RANKS, EPOCHS, BATCH, LR, MOMENTUM, DENSITY = 4, 30, 100, 0.05, 0.9, 0.001
_WARMUP = 4  # epochs


def study_digits(seeds: Sequence[int]) -> tuple[float, Section]:
    """Return the points of top-1 that DGC loses in the mean of seeds, and a section."""
    found = {name: [train(name, seed) for seed in seeds] for name in METHODS}
    tops = {name: fmean(top for top, _ in runs) for name, runs in found.items()}
    sent = {name: runs[0][1] for name, runs in found.items()}
    rows = tuple(
        {
            "method": name,
            "seeds": len(found[name]),
            "top-1": tops[name],
            "bytes a step": sent[name],
            "times fewer": sent["dense"] / sent[name],
        }
        for name in METHODS
    )
    about = (
        f"ReLU network {'-'.join(map(str, SIZES))}, {RANKS} virtual ranks in one process, "
        f"{EPOCHS} epochs of {BATCH} images a step, density {DENSITY} after {_WARMUP} epochs of "
        "warm-up, momentum 0.9, no clipping. Format bytes of a step, all tensors, after warm-up. "
        "Digits do not tell methods apart: this says that nothing is lost, not why."
    )
    return 100 * (tops["dense"] - tops["DGC"]), Section("B. Digits", about, rows)


def train(method: str, seed: int) -> tuple[float, int]:
    """Train by one method; return top-1 on unseen digits and the bytes of a step.

    All virtual ranks share one copy of the weights, for they would be the same.
    """
    task = datasets.load("digits", seed=seed)
    model = zoo.mlp(SIZES, seed=seed)
    group = gradients.LoopbackGroup(RANKS)
    optimizer, states = _build(method, model, group)
    source = generator_for(seed, "digits")
    named = dict(model.named_parameters())
    for epoch in range(EPOCHS):
        for state in states:
            if isinstance(state, gradients.DGC):
                state.step_epoch(epoch)
        for batch in _batches(task, source):
            lots = [_gradients(model, task, share) for share in _shares(batch)]
            mean = group.exchange(states, lots)[0]
            for name, parameter in named.items():
                parameter.grad = mean[name]
            optimizer.step()
    top = measure.evaluate(model, task)["top1"]["value"]
    return float(top), int(states[0].report()["step_bytes"])


def _build(
    method: str, model: nn.Module, group: gradients.LoopbackGroup
) -> tuple[torch.optim.Optimizer, list[CommState]]:
    transports = [group.transport(rank) for rank in range(RANKS)]
    if method == "dense":
        sgd = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        return sgd, [gradients.Dense(model, transport=t) for t in transports]
    own = gradients.DGCSGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    shared: dict[str, Any] = {"density": DENSITY, "warmup": gradients.Warmup(_WARMUP)}
    return own, [gradients.DGC(model, own, transport=t, **shared) for t in transports]


def _batches(task: Task, source: torch.Generator) -> list[Batch]:
    if task.train is None:
        return []
    return list(task.train.batches(BATCH, generator=source))


def _shares(batch: Batch) -> list[Batch]:
    return [{name: t[rank::RANKS] for name, t in batch.items()} for rank in range(RANKS)]


def _gradients(model: nn.Module, task: Task, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    loss = task.compute_loss(task.forward(model, batch), batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
