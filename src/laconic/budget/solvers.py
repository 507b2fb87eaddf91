"""Solvers by name, all called in one way."""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

from laconic.budget.sampler import Sampler
from laconic.budget.search import Budget, Fitness, SearchResult
from laconic.budget.table import LevelTable
from laconic.errors import ConfigError, nearest

SOLVERS = {
    "evolve": "laconic.budget.evolve:evolve",
    "random": "laconic.budget.random_search:random_search",
    "greedy": "laconic.budget.descent:greedy_search",
    "owl": "laconic.budget.owl:owl",
    "policy": "laconic.budget.policy_search:policy_search",
    "dp": "laconic.budget.plain:programme_search",
    "uniform": "laconic.budget.plain:uniform_search",
}


class Solver(Protocol):
    """Finds an assignment within a budget.

    Every solver also takes ``seed``, ``checkpoint`` and ``progress``, and settings of its own.
    """

    def __call__(
        self,
        table: LevelTable,
        fitness: Fitness,
        sampler: Sampler,
        *,
        budget: Budget,
        **settings: Any,
    ) -> SearchResult:
        """Return what was found."""
        ...


def solver(name: str) -> Solver:
    """Return a solver by its name.

    Raises:
        ConfigError: No solver has this name; the message has the nearest one.
    """
    if name not in SOLVERS:
        raise ConfigError(
            f"no solver {name!r}.{nearest(name, SOLVERS)} There are: {', '.join(sorted(SOLVERS))}."
        )
    module, function = SOLVERS[name].split(":")
    return cast("Solver", getattr(importlib.import_module(module), function))
