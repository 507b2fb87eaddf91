"""How long a search is and on how much data its stages judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from laconic.budget import SOLVERS, LevelTable, Sampler, dynamic_programme, uniform_assignments
from laconic.budget.search import Budget
from laconic.budget.table import Assignment
from laconic.errors import ConfigError, nearest
from laconic.settings import check_settings, setting

Method = Literal["evolve", "dp", "greedy", "random", "uniform", "owl", "policy"]
_MIXED_REACH = 3


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Length of a search.

    Args:
        generations: Rounds of ``evolve`` and ``random``, iterations of ``policy``; for depth
            ``k (n - k) / 1.5`` of n parts with k removed, as in the paper, where None, else 60.
        offspring: Candidates of a round; 8 for ``policy`` where it is not given.
        tokens: Data of the last stage, in tokens or examples; the stages before take a quarter
            and a sixteenth of it.
    """

    generations: int | None = setting(None, help="rounds of a search", low=0)
    offspring: int = setting(32, help="candidates of a round", low=1)
    tokens: int | None = setting(None, help="data of the last stage", low=1)

    def __post_init__(self) -> None:
        check_settings(self, owner="search")

    def stages(self, sampler: Sampler) -> list[tuple[int, int]]:
        """Return the races of a round: ever fewer candidates on ever more data."""
        last = self.last_stage(sampler)
        few, fewer = max(1, self.offspring // 4), max(1, self.offspring // 16)
        least = max(sampler.least, min(sampler.lengths[int(i)] for i in sampler.usable) // 2)
        sizes = [max(least, last // 16), max(least, last // 4), last]
        return [(few, min(sizes[0], last)), (fewer, min(sizes[1], last)), (1, last)]

    def last_stage(self, sampler: Sampler) -> int:
        """Return the data of the last stage: half of the search data, 16 384 at most."""
        if self.tokens is not None:
            sampler.check(self.tokens, "search: tokens")
            return self.tokens
        return max(sampler.least, min(sampler.tokens // 2, 16_384) or sampler.tokens)


def solver_settings(
    method: Method,
    kind: str,
    table: LevelTable,
    budget: Budget,
    sampler: Sampler,
    effort: Effort,
    *,
    starts: Sequence[Assignment] = (),
) -> dict[str, Any]:
    """Return the settings of a solver for a table.

    Args:
        method: Name of the solver.
        kind: What the levels are.
        table: Units by levels.
        budget: Limit of its cost.
        sampler: Draws data.
        effort: Length of the search.
        starts: Assignments that ``evolve`` may begin with, beside those of the table.

    Raises:
        ConfigError: Unknown method.
    """
    if method not in SOLVERS:
        raise ConfigError(
            f"search: method={method!r} must be one of {sorted(SOLVERS)}.{nearest(method, SOLVERS)}"
        )
    last = effort.last_stage(sampler)
    if method in ("greedy", "owl", "uniform"):
        return {"tokens": last}
    if method == "dp":
        return {}
    generations = effort.generations
    if generations is None:
        generations = _depth_generations(budget, table) if kind == "depth" else 60
    if method == "policy":
        return {"iterations": max(1, generations), "rollouts": 8, "tokens": last}
    settings: dict[str, Any] = {
        "generations": generations, "offspring": effort.offspring, "stages": effort.stages(sampler),
    }  # fmt: skip
    if method == "evolve":
        settings["initial"] = (64, settings["stages"][0][1])
        if table.groups is None and table.has_errors:
            settings["start"] = _starts(table, budget, starts)
            settings["initial"] = (64, settings["stages"][1][1])
            settings["reach"] = _MIXED_REACH if kind not in ("bits", "sparsity", "rank") else 1
    return settings


def _depth_generations(budget: Budget, table: LevelTable) -> int:
    """Return ``k (n - k) / 1.5`` for the larger group, at least 10."""
    if not isinstance(budget, Mapping):
        return 60
    sizes = {group: len(table.members(group)) for group in budget}
    return max(10, max(int(k * (sizes[g] - k) / 1.5) for g, k in budget.items()))


def _starts(table: LevelTable, budget: Budget, others: Sequence[Assignment]) -> list[Assignment]:
    """Return what the table says is best, and the uniform levels: the fittest is begun with."""
    if isinstance(budget, Mapping):
        return []
    best = dynamic_programme(table, int(budget))
    found = [best, *uniform_assignments(table, budget), *others]
    return list({given.choice: table.assignment(given.choice) for given in found}.values())
