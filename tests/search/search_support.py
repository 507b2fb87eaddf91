"""Small models, databases and tables for the tests of the search."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laconic import zoo
from laconic.budget import Assignment, LevelTable
from laconic.search.build import fill_
from laconic.search.database import FormDatabase
from laconic.search.documents import Documents
from laconic.search.evaluator import EvaluatorJob
from laconic.search.levels import LevelSet, level_set
from laconic.search.units import PartUnit, SiteUnit, Unit
from laconic.task import Task, TensorSplit
from laconic.weights.depth.subblocks import sub_blocks_of
from laconic.weights.sites import find_sites

VOCABULARY, BLOCKS = 40, 4


def text(count: int, length: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count, length), generator=source)


def language_task(count: int = 16, length: int = 14) -> Task:
    return Task(
        kind="causal-lm",
        name="drawn text",
        test=TensorSplit({"input_ids": text(6, length, seed=9)}),
        train=TensorSplit({"input_ids": text(count, length)}),
        batch_size=4,
    )


def decoder(blocks: int = BLOCKS, seed: int = 0) -> nn.Module:
    """A Llama whose blocks all say something."""
    model = zoo.tiny_llama(
        vocabulary=VOCABULARY, width=32, blocks=blocks, heads=4, hidden=48, seed=seed
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(8.0)
    return model


def classifier() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(),
                             nn.Linear(96, 5)).eval()  # fmt: skip


def class_task() -> Task:
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(4))
    y = x[:, :5].argmax(1)
    return Task(
        kind="classification",
        name="argmax",
        test=TensorSplit({"x": x[:24], "y": y[:24]}),
        train=TensorSplit({"x": x[24:], "y": y[24:]}),
        batch_size=16,
        metrics={"rank": lambda out, batch: out.gather(1, batch["y"][:, None])[:, 0]},
    )


def bits_set() -> LevelSet:
    return level_set("bits", data=False)


def filled(
    model: nn.Module, task: Task, levels: LevelSet | None = None, **more: Any
) -> tuple[FormDatabase, list[Unit], LevelTable]:
    """A database of rounded weights, its units and its table."""
    levels = levels or bits_set()
    sites = [site for site in find_sites(model) if any(levels.of(site))]
    database = FormDatabase(levels.names, **more)
    fill_(database, model, sites, levels.of, task, calibration=levels.calibration)
    units: list[Unit] = [SiteUnit(site, database) for site in sites]
    return database, units, database.table([site.name for site in sites])


def job(model: nn.Module, units: list[Unit], task: Task, **more: Any) -> EvaluatorJob:
    assert task.train is not None
    return EvaluatorJob(model, units, task, Documents.of(task, task.train), **more)


def part_units(model: nn.Module) -> list[Unit]:
    return [PartUnit(part) for part in sub_blocks_of(model)]


def drawn(table: LevelTable, count: int, seed: int = 0, *, changes: int = 2) -> list[Assignment]:
    """A random assignment and mutations of it."""
    rng = np.random.default_rng(seed)
    parent = [int(rng.choice(table.available(site))) for site in range(len(table.sites))]
    found = [table.assignment(parent)]
    while len(found) < count:
        child = list(parent)
        for site in rng.integers(len(parent), size=changes):
            child[site] = int(rng.choice(table.available(site)))
        found.append(table.assignment(child))
    return found
