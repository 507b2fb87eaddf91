"""Part B of the L-GreCo study: bytes at equal error on gradients of networks in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laconic.budget import cheapest
from laconic.errors import DataError
from laconic.gradients import QSGD, CommState, LoopbackGroup, PowerSGD, TopK
from laconic.gradients.base import Value
from laconic.gradients.planning import Problem, error_table
from laconic.seeds import generator_for
from laconic.studies._l_greco_rivals import at_random, greedy, lagrangian, proportional
from laconic.studies.base import Section
from laconic.task import Batch, Task

FAMILIES = ("PowerSGD", "TopK", "QSGD")
GAMMA, BETA = 0.5, 2.0
PROBE_STEPS = 10
_REPEATS = {"PowerSGD": 5, "TopK": 1, "QSGD": 4}  # iterations, or draws that are averaged
_RANDOM_DRAWS = 5
_FINE = 100_000  # ten times the solver's units
_WHOLE = 1 << 40  # bytes of a bucket: one bucket

Make = Callable[[bool], CommState]


@dataclass(frozen=True)
class Bench:
    """A network, its data, how it is trained and what is compared on its gradients.

    Args:
        title: Of the table.
        about: The network, its data and its training.
        make: Builds the network.
        task: Its data.
        optimizer: Builds the optimiser of its parameters.
        batch: Examples in a batch.
        moments: Steps after which a probe is complete, rising.
        rank: PowerSGD's uniform rank.
        density: TopK's uniform density.
        bits: QSGD's uniform bits.
        seed: Of batches and rivals.
    """

    title: str
    about: str
    make: Callable[[], nn.Module]
    task: Task
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
    batch: int
    moments: tuple[int, ...]
    rank: int
    density: float
    bits: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Probed:
    """Rows of one network, a family and a moment each, and their table."""

    rows: tuple[dict[str, Any], ...]
    section: Section

    def ratio(self, family: str, over: str) -> float:
        """Return bytes over those of another way, worst moment; of all moments for uniform."""
        rows = [row for row in self.rows if row["family"] == family]
        if over == "uniform":
            return float(sum(r["bytes"] for r in rows) / sum(r["uniform"] for r in rows))
        return float(max(row["bytes"] / (row[over] or row["uniform"]) for row in rows))

    def worst(self, key: str) -> float:
        """Return the largest value of a column."""
        return float(max(row[key] for row in self.rows))


def states(bench: Bench, model: nn.Module) -> dict[str, Make]:
    """Return what builds the compressor of each family; its argument: with error memory or not."""

    def lone() -> Any:
        return LoopbackGroup(1).transport(0)

    return {
        "PowerSGD": lambda memory: PowerSGD(
            model, rank=bench.rank, error_feedback=memory, seed=bench.seed, transport=lone()
        ),
        "TopK": lambda memory: TopK(model, density=bench.density, transport=lone()),
        "QSGD": lambda memory: QSGD(model, bits=bench.bits, seed=bench.seed, transport=lone()),
    }


def study_probes(bench: Bench) -> Probed:
    """Train a network and compare settings on its gradients at several moments."""
    model = bench.make().train()
    makers = states(bench, model)
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    for step, loss, family, probes in _walk(bench, model, makers):
        row = compare(makers[family], family, probes, seed=bench.seed + step)
        rows.append({"family": family, "step": step, "training loss": round(loss, 3), **row})
        state = makers[family](False)
        dense = sum(state.dense_bytes(name) for name in state.dense_names)
        facts[f"bytes of dense tensors beside those of {family}"] = dense
    return Probed(tuple(rows), Section(bench.title, bench.about, tuple(map(_told, rows)), facts))


def _walk(
    bench: Bench, model: nn.Module, makers: Mapping[str, Make]
) -> Iterator[tuple[int, float, str, dict[str, Tensor]]]:
    """Train; yield step, loss, family and mean gradient with error memory at every moment."""
    shadows = {family: make(True) for family, make in makers.items()}
    optimizer = bench.optimizer(model.parameters())
    sums: dict[str, dict[str, Tensor]] = {family: {} for family in shadows}
    batches = endless(bench.task, bench.batch, generator_for(bench.seed, "batches"))
    for step in range(1, bench.moments[-1] + 1):
        batch = next(batches)
        optimizer.zero_grad()
        loss = bench.task.compute_loss(bench.task.forward(model, batch), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        counted = any(at - PROBE_STEPS < step <= at for at in bench.moments)
        for family, state in shadows.items():
            for name in state.named if counted else ():
                seen = state.corrected(name, grads[name]) / PROBE_STEPS
                sums[family][name] = sums[family].get(name, torch.zeros_like(seen)) + seen
            if state.stateful:
                _lone(state, grads)
        optimizer.step()
        if step in bench.moments:
            for family in shadows:
                yield step, float(loss.detach()), family, sums[family]
                sums[family] = {}


def endless(task: Task, size: int, source: torch.Generator) -> Iterator[Batch]:
    """Yield training batches of full size, epoch after epoch.

    Raises:
        DataError: Fewer training examples than one batch has.
    """
    if task.train is None or len(task.train) < size:
        count = 0 if task.train is None else len(task.train)
        raise DataError(
            f"task {task.name!r}: {count} training examples are fewer than a batch of {size}. "
            "Use a smaller batch or more data."
        )
    while True:
        for batch in task.train.batches(size, generator=source):
            if len(next(iter(batch.values()))) == size:
                yield batch


def compare(
    make: Make, family: str, probes: Mapping[str, Tensor], *, seed: int = 0
) -> dict[str, Any]:
    """Return bytes of all ways at the error of the uniform setting, and errors of two of them."""
    state = make(False)
    problem = Problem.of(state, gamma=GAMMA, beta=BETA)
    table = problem.table(error_table(state, problem, probes, method="power"))
    uniform = table.assignment(problem.uniform())
    limit = uniform.error
    ours = cheapest(table, limit, fallback=uniform.choice)
    fine = cheapest(table, limit, units=_FINE, fallback=uniform.choice)
    dense = [state.dense_bytes(name) for name in problem.names]
    rivals = {
        "greedy": greedy(table, limit),
        "proportional": proportional(table, dense, limit),
        "lagrangian": lagrangian(table, limit),
    }
    source = np.random.default_rng(seed)
    drawn = [at_random(table, ours.cost, source).error / limit for _ in range(_RANDOM_DRAWS)]
    told = {
        which: run_error(make, family, probes, _values(problem, choice))
        for which, choice in (("ours", ours.choice), ("uniform", uniform.choice))
    }
    return {
        "bytes": ours.cost,
        "bytes, 100 000 units": fine.cost,
        "uniform": uniform.cost,
        **{name: found.cost if found else None for name, found in rivals.items()},
        "error by table": ours.error / limit,
        "error as run": told["ours"] / told["uniform"],
        "error, random at equal bytes": fmean(drawn),
        "settings": sorted(set(_values(problem, ours.choice).values())),
    }  # fmt: skip


def _values(problem: Problem, choice: tuple[int, ...]) -> dict[str, Value]:
    return {n: problem.values[n][at] for n, at in zip(problem.names, choice, strict=True)}


def run_error(
    make: Make, family: str, probes: Mapping[str, Tensor], values: Mapping[str, Value]
) -> float:
    """Return summed norms of what the compressor itself loses of the probes.

    PowerSGD takes five steps with a standing gradient, as its table does; QSGD's random
    rounding is averaged over four draws.
    """
    state, losses = make(False), []
    for name, value in values.items():
        state.set_parameter(name, value)
    for _ in range(_REPEATS[family]):
        sent = _lone(state, probes)
        losses.append(sum(float(torch.dist(sent[name], probes[name])) for name in values))
    return fmean(losses) if family == "QSGD" else losses[-1]


def _lone(state: CommState, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what one rank that is alone gets back from a step."""
    return LoopbackGroup(1).exchange([state], [gradients], bucket_bytes=_WHOLE)[0]


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    settings = row["settings"]
    shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
    return {
        **shown,
        "uniform over bytes": round(row["uniform"] / row["bytes"], 3),
        "settings": f"{settings[0]:g} to {settings[-1]:g}",
    }
