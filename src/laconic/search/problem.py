"""Pose a search: its units, their levels and costs, and the budget in the units of the costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from laconic import artifact, measure
from laconic.artifact.tree import named_tensors
from laconic.budget import LevelTable, depth_table
from laconic.budget.search import Budget
from laconic.errors import BudgetError, ConfigError
from laconic.files import write_atomic
from laconic.forms.dense import Dense
from laconic.progress import Progress
from laconic.search.build import fill_
from laconic.search.costs import Costs, latency, macs
from laconic.search.database import FormDatabase
from laconic.search.goal import Cost, Goal
from laconic.search.levels import LevelSet, base_zeros, level_set
from laconic.search.units import PartUnit, SiteUnit, Unit
from laconic.task import Task
from laconic.weights.base import Site, Where
from laconic.weights.depth.remove import dropped_count
from laconic.weights.depth.subblocks import SubBlock, sub_blocks_of
from laconic.weights.sites import find_sites

Measure = Callable[[Sequence[int]], int]


@dataclass
class Problem:
    """A search as solvers see it, and what it stands for.

    Attributes:
        kind: What the levels are.
        units: Rows of the table.
        table: Units by levels.
        budget: Limit of the table's cost, or one for each group.
        bytes_limit: Most bytes on disk, where that was asked for.
        sites: Sites behind the units; none for depth.
        database: Their forms.
        levels: Their levels.
        parts: Parts behind the units, for depth.
        dense_costs: What each unit costs when it is not compressed.
    """

    kind: str
    units: list[Unit]
    table: LevelTable
    budget: Budget
    bytes_limit: int | None = None
    sites: list[Site] = field(default_factory=list)
    database: FormDatabase | None = None
    levels: LevelSet | None = None
    parts: list[SubBlock] = field(default_factory=list)
    dense_costs: list[int] = field(default_factory=list)


def chosen_sites(model: nn.Module, where: Where, levels: LevelSet) -> list[Site]:
    """Return the sites in a scope that have levels.

    Raises:
        ConfigError: There is none.
    """
    found = [
        site
        for site in find_sites(model)
        if where.matches(site.name, site.kind, ("linear", "conv", "embedding", "experts"))
        and any(level is not None for level in levels.of(site))
    ]
    if not found:
        raise ConfigError(
            f"search: no weight of {type(model).__name__} is in the scope include="
            f"{list(where.include)}, exclude={list(where.exclude)} and has levels of kind "
            f"{levels.kind!r}. `laconic doctor MODEL` lists its weights."
        )
    return found


def pose_sites(
    model: nn.Module,
    kind: str,
    goal: Goal,
    task: Task | None,
    *,
    cost: Cost,
    where: Where,
    folder: Path,
    size_of: Callable[[Problem], Measure],
    seed: int,
    effort: artifact.Effort,
    progress: Progress | None,
) -> Problem:
    """Fit the levels of all sites and return the table with its budget.

    Args:
        model: The dense model.
        kind: Levels, see :func:`laconic.search.levels.level_set`.
        goal: The budget.
        task: Calibration data; None fits without.
        cost: What the table counts; a share of zeros counts weights.
        where: Which sites.
        folder: Where forms and measured costs are kept.
        size_of: Gives what measures the bytes on disk of a choice.
        seed: Seed of everything random.
        effort: Entropy coding.
        progress: Where progress is shown.

    Raises:
        BudgetError: The budget is outside what the levels can attain.
        ConfigError: Levels, cost and budget that do not go together.
    """
    data = task is not None and bool(len(task.calibration_split() or ()))
    zeros = goal.value if kind == "sparsity" and goal.kind == "share" and cost == "bytes" else None
    check_goal(kind, goal, cost)
    everything = find_sites(model)
    inside = [
        site for site in everything if where.matches(site.name, site.kind, ("linear", "conv"))
    ]
    levels = level_set(
        kind, data=data, sites=inside or everything, sparsity=zeros, dense=cost != "bytes"
    )
    sites = chosen_sites(model, where, levels)
    database = FormDatabase(levels.names, folder / "levels")
    fill_(
        database, model, sites, levels.of, task, calibration=levels.calibration, seed=seed,
        effort=effort, progress=progress,
    )  # fmt: skip
    units: list[Unit] = [SiteUnit(site, database) for site in sites]
    table = database.table([site.name for site in sites])
    problem = Problem(kind, units, table, 0, sites=sites, database=database, levels=levels)
    if zeros is not None:
        return _by_weights(problem, zeros)
    if cost == "bytes":
        return _by_bytes(problem, model, goal, size_of)
    if task is None:
        raise ConfigError(f"search: cost={cost!r} needs an example to run: give a Task or --data.")
    return _by_costs(problem, _kept_costs(folder, cost, model, sites, database, task), goal)


def check_goal(kind: str, goal: Goal, cost: Cost) -> None:
    """Raise ConfigError unless levels, budget and cost go together."""
    if goal.kind == "time" and cost != "latency":
        raise ConfigError(f"search: budget {goal.text!r} is a time; give cost='latency' with it.")
    if goal.kind == "share" and cost == "bytes" and kind != "sparsity":
        raise ConfigError(
            f"search: budget {goal.text!r} is a share: of zeros for levels 'sparsity', of parts "
            "removed for 'depth', or of what remains with cost='macs' or 'latency'. Give a size "
            "(1.5MB), a ratio (8x) or bits (3bits)."
        )
    if goal.kind == "bytes" and cost != "bytes":
        raise ConfigError(
            f"search: budget {goal.text!r} counts bytes and cost={cost!r}; give a share of what "
            "remains (70%), or a time (40ms) for the latency."
        )


def _by_weights(problem: Problem, share: float) -> Problem:
    """Count weights that are kept: a step is as many at every site, so that switches are exact."""
    if problem.database is None or problem.levels is None:
        raise ConfigError("search: sparsity needs sites.")
    rows = []
    sizes = [site.form.rows * site.form.cols for site in problem.sites]
    for site, size in zip(problem.sites, sizes, strict=True):
        base, held = size - base_zeros(size, share), problem.database.entries[site.name]
        names = zip(held, problem.levels.names, strict=True)
        rows.append(
            [0 if e is None else base - int(name) * problem.levels.step for e, name in names]
        )
    problem.table = LevelTable(
        problem.table.sites, problem.table.levels, rows, problem.table.errors,
        groups=["weights"] * len(rows), unit="weights",
    )  # fmt: skip
    problem.dense_costs = sizes
    problem.budget = sum(size - base_zeros(size, share) for size in sizes)
    return problem


def _by_bytes(
    problem: Problem, model: nn.Module, goal: Goal, size_of: Callable[[Problem], Measure]
) -> Problem:
    weights = sum(site.original.numel() for site in problem.sites)
    limit = goal.bytes_for(measure.dense_bytes(model), weights)
    table = problem.table
    dearest = [int(np.argmax(np.where(np.isfinite(e), c, -1)))
               for c, e in zip(table.costs, table.errors, strict=True)]  # fmt: skip
    fixed = max(0, size_of(problem)(dearest) - table.assignment(dearest).cost)
    problem.table = _with(table, fixed_bytes=fixed)
    problem.dense_costs = [_dense_cost(site) for site in problem.sites]
    problem.budget = problem.bytes_limit = limit
    low, high = problem.table.attainable()
    if limit < low:
        raise BudgetError(
            f"budget {goal.text} is {table.tell(limit)}, below the smallest that these levels can "
            f"reach, about {table.tell(low)} ({fixed} B of it are not compressible here). Raise "
            "the budget or add smaller levels."
        )
    problem.budget = min(limit, high)
    return problem


def _dense_cost(site: Site) -> int:
    return site.original.numel() * site.original.element_size()


def _by_costs(problem: Problem, costs: Costs, goal: Goal) -> Problem:
    limit = round(goal.value) if goal.kind == "time" else int(goal.value * costs.dense)
    table = problem.table
    problem.table = LevelTable(
        table.sites, table.levels, costs.rows, table.errors, fixed_bytes=costs.fixed,
        unit=costs.unit,
    )  # fmt: skip
    low, high = problem.table.attainable()
    if limit < low:
        raise BudgetError(
            f"budget {goal.text} is {limit} {costs.unit}, below what these levels can reach: {low} "
            f"{costs.unit} of {costs.dense} as the model was. Raise the budget, or add smaller "
            "levels."
        )
    problem.budget = min(limit, high)
    problem.dense_costs = [max(row) for row in costs.rows]
    return problem


def _kept_costs(
    folder: Path,
    cost: Cost,
    model: nn.Module,
    sites: Sequence[Site],
    database: FormDatabase,
    task: Task,
) -> Costs:
    """Return the costs, measured once a search: a run that goes on has those of its beginning."""
    file = folder / "costs.json"
    if file.is_file():
        return Costs(**json.loads(file.read_text()))
    found = (macs if cost == "macs" else latency)(model, sites, database, task)
    write_atomic(file, json.dumps(asdict(found)))
    return found


def pose_depth(model: nn.Module, goal: Goal, *, size_of: Callable[[Problem], Measure]) -> Problem:
    """Return the table of a decoder's parts: removed or kept.

    A share removes as many attentions as feed-forward parts, rounded down, as in the paper; a
    size on disk removes whichever bring it below.

    Raises:
        BudgetError: The share removes nothing, or the size cannot be reached.
        ConfigError: A time, or bytes by another cost.
    """
    parts = sub_blocks_of(model)
    units: list[Unit] = [PartUnit(part) for part in parts]
    kinds = {part.name: part.kind for part in parts}
    if goal.kind == "time":
        raise ConfigError("search: depth takes a share (25%) or a size (8x, 1.5MB), not a time.")
    if goal.kind == "share":
        table = depth_table(kinds)
        groups = {kind: len(table.members(kind)) for kind in sorted(set(kinds.values()))}
        gone = {kind: dropped_count(goal.value, count) for kind, count in groups.items()}
        if not any(gone.values()):
            raise BudgetError(
                f"budget {goal.text} of {groups} parts rounds down to none. Ask for more."
            )
        budget: dict[str, int] = {kind: groups[kind] - gone[kind] for kind in groups}
        return Problem("depth", units, table, budget, parts=parts, dense_costs=[1] * len(parts))
    costs = [_part_bytes(model, part) for part in parts]
    table = depth_table(kinds, costs=costs).grouped("none")
    problem = Problem("depth", units, table, 0, parts=parts, dense_costs=costs)
    weights = sum(site.original.numel() for site in find_sites(model))
    limit = goal.bytes_for(measure.dense_bytes(model), weights)
    whole = size_of(problem)([1] * len(parts))
    problem.table = _with(table, fixed_bytes=max(0, whole - sum(costs)))
    low, high = problem.table.attainable()
    if limit < low:
        raise BudgetError(
            f"budget {goal.text} is {table.tell(limit)}; without any part the model still takes "
            f"{table.tell(low)}. Raise the budget, or use levels 'bits' or 'mixed'."
        )
    problem.budget, problem.bytes_limit = min(limit, high), limit
    return problem


def _part_bytes(model: nn.Module, part: SubBlock) -> int:
    total = 0
    for member in (*part.members, *part.norms):
        for held in named_tensors(
            model.get_submodule(f"{part.block_path}.{member}"), without=set()
        ):
            if held.persistent:
                total += artifact.predict_bytes(Dense(held.tensor.detach()))
    return total


def _with(table: LevelTable, *, fixed_bytes: int) -> LevelTable:
    errors = table.errors if table.has_errors else None
    return LevelTable(
        table.sites, table.levels, table.costs, errors, fixed_bytes=fixed_bytes,
        groups=table.groups, unit=table.unit,
    )  # fmt: skip


def budget_text(problem: Problem) -> str:
    """Return the budget of a problem in words."""
    if isinstance(problem.budget, Mapping):
        return ", ".join(f"{count} {kind} kept" for kind, count in problem.budget.items())
    return problem.table.tell(int(problem.budget))


def as_json(budget: Any) -> Any:
    """Return a budget as plain values."""
    return dict(budget) if isinstance(budget, Mapping) else int(budget)
