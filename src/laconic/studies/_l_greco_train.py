"""Training on several ranks with one way to exchange gradients: what every rank does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from laconic.budget import cheapest
from laconic.gradients import QSGD, CommState, Dense, Half, LGreCo, Observer, PowerSGD, TopK, hook
from laconic.gradients.planning import Problem
from laconic.seeds import generator_for
from laconic.studies._l_greco_models import build_model
from laconic.studies._l_greco_probes import endless
from laconic.task import Task

_METHODS: dict[str, type[CommState]] = {
    "dense": Dense, "fp16": Half, "PowerSGD": PowerSGD, "TopK": TopK, "QSGD": QSGD,
}  # fmt: skip


class RandomErrors(Observer):
    """Chooses settings as L-GreCo does, but from errors that are drawn and not measured.

    A tensor's errors are random numbers in falling order, times a random size of the tensor. One
    draw serves the whole training. The limit is the error of the uniform setting by these numbers.

    Args:
        state: The compressor.
        first: Step at which the settings begin.
        gamma: Least rank as a share of the uniform one.
        beta: Largest rank as a multiple.
        seed: Of the errors; the same on all ranks.
    """

    def __init__(
        self, state: CommState, *, first: int, gamma: float, beta: float, seed: int
    ) -> None:
        self.first = first
        problem = Problem.of(state, gamma=gamma, beta=beta)
        source = np.random.default_rng(seed)
        errors = {
            name: (np.sort(source.random(len(problem.values[name])))[::-1]
                   * source.lognormal(0.0, 1.0)).tolist()
            for name in problem.names
        }  # fmt: skip
        table = problem.table(errors)
        uniform = table.assignment(problem.uniform())
        choice = cheapest(table, uniform.error, fallback=uniform.choice).choice
        self.values = {
            n: problem.values[n][at] for n, at in zip(problem.names, choice, strict=True)
        }
        state.observers.append(self)

    def step_begins(self, state: CommState) -> None:
        """Set what was chosen, once."""
        if state.step == self.first:
            for name, value in self.values.items():
                state.set_parameter(name, value)


def train(
    spec: Mapping[str, Any], variant: Mapping[str, Any], seed: int, task: Task
) -> dict[str, Any]:
    """Train one network with one way to exchange gradients; call it on every rank.

    Args:
        spec: The job: ``model``, ``optimizer``, ``steps``, ``batch`` of a rank, ``period``,
            ``probe_steps``, ``start``, ``gamma``, ``beta``, ``device``.
        variant: ``method``, its ``settings`` and ``choose``: null, ``"l-greco"`` or ``"random"``.
        seed: Of weights, batches and random errors.
        task: The data.

    Returns:
        ``loss`` and ``top1`` on the test examples, ``bytes`` handed over a step by this rank,
        dense tensors included, and ``periods`` of L-GreCo.
    """
    device, rank = rank_device(spec["device"]), dist.get_rank()
    model = DistributedDataParallel(build_model(spec["model"], seed).train().to(device))
    state = _METHODS[variant["method"]](model, **variant.get("settings", {}))
    chooser: LGreCo | None = None
    shared = {"gamma": spec["gamma"], "beta": spec["beta"]}
    if variant.get("choose") == "l-greco":
        chooser = LGreCo(
            state, period=spec["period"], probe_steps=spec["probe_steps"],
            start_step=spec["start"], **shared,
        )  # fmt: skip
    elif variant.get("choose") == "random":
        RandomErrors(state, first=spec["start"] + spec["period"], seed=seed, **shared)
    model.register_comm_hook(chooser or state, hook)
    optimizer, schedule = _optimizer(spec, model)
    batches = endless(task, spec["batch"], generator_for(seed, "batches", rank))
    for _ in range(spec["steps"]):
        batch = {name: value.to(device) for name, value in next(batches).items()}
        optimizer.zero_grad(set_to_none=True)
        task.compute_loss(task.forward(model, batch), batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    found = evaluate(model.module, task, device) if rank == 0 else {}
    return {
        **found,
        "bytes": state.transport.traffic.handed / spec["steps"],
        "periods": chooser.report()["periods"] if chooser else [],
    }


def rank_device(name: str) -> torch.device:
    """Return the device of this rank."""
    if name != "cuda":
        return torch.device(name)
    return torch.device("cuda", dist.get_rank() % torch.cuda.device_count())


def _optimizer(spec: Mapping[str, Any], model: nn.Module) -> tuple[Any, Any]:
    """Return the optimiser and its schedule, which is called once a step."""
    told = dict(spec["optimizer"])
    kind, fall = told.pop("kind"), told.pop("fall")
    make = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind]
    optimizer = make(model.parameters(), **told)
    steps = spec["steps"]

    def factor(step: int) -> float:
        if fall == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
        return math.pow(fall["factor"], sum(step >= at * steps for at in fall["at"]))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, device: torch.device) -> dict[str, float]:
    """Return the mean loss on the test examples, and top-1 of a classifier."""
    model.eval()
    total = right = count = 0.0
    for rows in task.test.batches(task.batch_size):
        batch = {name: value.to(device) for name, value in rows.items()}
        outputs = task.forward(model, batch)
        size = len(outputs)
        total += float(task.compute_loss(outputs, batch)) * size
        count += size
        if task.kind == "classification":
            right += float((outputs.argmax(1) == batch["y"]).sum())
    found = {"loss": total / count}
    return found | ({"top1": right / count} if task.kind == "classification" else {})
