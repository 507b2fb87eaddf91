"""What a search would do, before any work: its units, their levels, and what they would cost."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from laconic.errors import LayerError, RecipeError
from laconic.plan import sketch_of
from laconic.search.goal import Cost, parse_goal
from laconic.search.levels import level_set
from laconic.search.problem import check_goal, chosen_sites
from laconic.task import Task
from laconic.weights.base import LayerStep, Site, Where
from laconic.weights.depth.subblocks import sub_blocks_of
from laconic.weights.sites import find_sites


@dataclass(frozen=True)
class UnitPlan:
    """One row of the level table that a search would fill.

    Attributes:
        name: Weight, or part of a block.
        kind: Kind of the weight or part.
        levels: Bytes of each level at fixed width, before entropy coding; None where the shape
            does not allow it. For parts: the bytes that go when it is removed.
        original_bytes: Bytes as it is.
    """

    name: str
    kind: str
    levels: dict[str, int | None]
    original_bytes: int


def plan_search(
    model: nn.Module,
    levels: str,
    task: Task | None,
    *,
    budget: str,
    cost: Cost = "bytes",
    where: Where | None = None,
) -> list[UnitPlan]:
    """Return the units and levels of a search; arguments as of :func:`laconic.search.run.search`.

    Raises:
        ConfigError: Levels, cost and budget do not go together, or nothing has levels.
    """
    goal, scope = parse_goal(budget), where or Where()
    if levels == "depth":
        return [
            UnitPlan(part.name, part.kind, {"removed": 0, "kept": size}, size)
            for part in sub_blocks_of(model)
            for size in [_bytes_of(model, part.block_path, (*part.members, *part.norms))]
        ]
    check_goal(levels, goal, cost)
    everything = find_sites(model)
    zeros = goal.value if levels == "sparsity" and goal.kind == "share" else None
    inside = [s for s in everything if scope.matches(s.name, s.kind, ("linear", "conv"))]
    data = task is not None and bool(len(task.calibration_split() or ()))
    found = level_set(
        levels, data=data, sites=inside or everything, sparsity=zeros, dense=cost != "bytes"
    )
    rows = []
    for site in chosen_sites(model, scope, found):
        sizes = {
            name: _sketched(site, level.steps) if level is not None else None
            for name, level in zip(found.names, found.of(site), strict=True)
        }
        rows.append(UnitPlan(site.name, site.kind, sizes, site.form.nbytes))
    return rows


def _sketched(site: Site, steps: tuple[LayerStep, ...]) -> int | None:
    form = sketch_of(site)
    try:
        for step in steps:
            form = step.sketch(form, site=site.name)
    except (LayerError, RecipeError):
        return None
    return form.nbytes


def _bytes_of(model: nn.Module, block: str, members: tuple[str, ...]) -> int:
    modules = [model.get_submodule(f"{block}.{name}") for name in members]
    return sum(p.numel() * p.element_size() for m in modules for p in m.parameters())
