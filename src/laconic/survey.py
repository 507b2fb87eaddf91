"""Every level of a dial at every site: fitted once, kept as packed forms, chosen by a solver."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from laconic.budget import Assignment, LevelTable, meet, smallest
from laconic.errors import BudgetError, LayerError
from laconic.forms.layers import install_
from laconic.plan import require_selection
from laconic.runner import Run, gathered, save_state
from laconic.search.fitting import Fitted, Level, fit_site, level_names, output_error
from laconic.weights.base import LayerStep, Site

__all__ = ["Survey", "output_error"]


class Survey:
    """Levels of some steps of a run, which together select every site at most once.

    Args:
        run: The run, as it stands before the first of the steps.
        indices: Indices of the steps.
    """

    def __init__(self, run: Run, indices: range) -> None:
        self.run = run
        self.steps: dict[int, LayerStep] = {
            index: step for index in indices if isinstance(step := run.step(index), LayerStep)
        }
        self.selected = {
            index: require_selection(step, run.sites, index + 1)
            for index, step in self.steps.items()
        }
        self.sites = [site for sites in self.selected.values() for site in sites]
        self.fitted: dict[str, list[Fitted | None]] = {}
        self.table: LevelTable | None = None

    def settle(self, limit: int, name: str, *, final: bool) -> dict[str, Any]:
        """Choose and install levels so that the artefact measures at most ``limit`` bytes.

        Args:
            limit: Bytes on disk.
            name: Name of the checkpoint that is being made; trials are saved beside it.
            final: No step comes after. Otherwise the smallest levels are taken where none fits,
                for only the finished artefact can tell.

        Returns:
            The level of every site, the limit, whether every site is at its best or its smallest
            level, and why more than the tolerance is left over, where it is.

        Raises:
            BudgetError: Even the smallest levels measure more, and ``final``.
        """
        if self.table is None:
            for index in self.steps:
                self._fit_all(index)
            self.table = self._tabulate(f"{name}.trial")
        least, reason = smallest(self.table), None
        try:
            met = meet(limit, lambda choice: self._measure(choice, f"{name}.trial"), self.table)
            taken, reason = met.assignment, met.reason
        except BudgetError:
            if final:
                raise
            taken = least
        self._apply(taken)
        chosen = self._chosen(taken)
        for fitted in chosen.values():
            for said in fitted.said:
                warnings.warn_explicit(said.message, said.category, said.filename, said.lineno)
        best = [self.table.front(row)[-1] for row in range(len(self.sites))]
        return {
            "levels": {site: fitted.name for site, fitted in chosen.items()},
            "budget_bytes": limit,
            "at_best": list(taken.choice) == best,
            "at_least": taken.choice == least.choice,
            **({"reason": reason} if reason else {}),
        }

    def _fit_all(self, index: int) -> None:
        step, sites = self.steps[index], self.selected[index]
        if not sites:
            return
        bar = self.run.progress.start(f"{index + 1}. levels", len(sites))
        resolved = [level.resolve(sites) for level in step.levels()]
        widest = {
            site.name: max((r[site.name] for r in resolved), key=lambda s: len(s.needs))
            for site in sites
        }
        for group in gathered(self.run, step, sites, widest):
            for site in group:
                levels = [r[site.name] for r in resolved]
                self.fitted[site.name] = self._fit_site(index, site, levels)
                self.run.progress.advance(bar, note=site.name)
        self.run.progress.finish(bar)

    def _fit_site(self, index: int, site: Site, steps: list[LayerStep]) -> list[Fitted | None]:
        """Fit every level at a site; None stands for one that its shape does not allow."""
        levels = [Level(n, (s,)) for n, s in zip(level_names(steps), steps, strict=True)]
        effort = self.run.recipe.coding
        return fit_site(site, levels, lambda _: self.run.generator(index, site.name), effort=effort)

    def _tabulate(self, trial: str) -> LevelTable:
        width = max(len(row) for row in self.fitted.values())
        rows = [
            [*self.fitted[site.name], *[None] * (width - len(self.fitted[site.name]))]
            for site in self.sites
        ]
        names = [site.name for site in self.sites]
        levels = [f"{number}" for number in range(width)]
        costs = [[f.cost if f else 0 for f in row] for row in rows]
        errors = [[f.error if f else np.inf for f in row] for row in rows]
        largest = [int(np.argmax([f.cost if f else -1 for f in row])) for row in rows]
        reference = LevelTable(names, levels, costs, errors).assignment(largest)
        fixed = max(0, self._measure(reference, trial) - reference.cost)
        return LevelTable(names, levels, costs, errors, fixed_bytes=fixed)

    def _chosen(self, assignment: Assignment) -> dict[str, Fitted]:
        chosen: dict[str, Fitted] = {}
        for site, level in zip(self.sites, assignment.choice, strict=True):
            fitted = self.fitted[site.name][level]
            if fitted is None:
                raise LayerError(f"{site.name}: level {level} does not exist for its shape.")
            chosen[site.name] = fitted
        return chosen

    def _measure(self, assignment: Assignment, trial: str) -> int:
        self._apply(assignment)
        return save_state(self.run, trial)

    def _apply(self, assignment: Assignment) -> None:
        chosen = self._chosen(assignment)
        for site in self.sites:
            install_(self.run.model, site.name, chosen[site.name].form, layout=site.layout)
