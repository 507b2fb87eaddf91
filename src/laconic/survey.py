"""Every level of a dial at every site: fitted once, kept as packed forms, chosen by a solver."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor

from laconic import artifact
from laconic.budget import Assignment, LevelTable, meet, smallest
from laconic.errors import BudgetError, LayerError
from laconic.forms.base import Form
from laconic.forms.layers import install_
from laconic.plan import require_selection
from laconic.runner import Run, gathered, save_state
from laconic.weights.base import LayerStep, Site


@dataclass(frozen=True)
class Fitted:
    """One level at one site.

    Attributes:
        form: What the step made of the site.
        cost: Predicted bytes.
        error: Relative squared error of the output.
        name: Settings of the level that differ from those of other levels.
        said: Warnings of the fit; given on where the level is chosen.
    """

    form: Form
    cost: int
    error: float
    name: str
    said: tuple[warnings.WarningMessage, ...]


class Survey:
    """Levels of some steps of a run, which together select every site at most once.

    Args:
        run: The run, as it stands before the first of the steps.
        indices: Indices of the steps.
    """

    def __init__(self, run: Run, indices: range) -> None:
        self.run = run
        self.steps: dict[int, LayerStep] = {
            index: step
            for index in indices
            if isinstance(step := run.recipe.steps[index], LayerStep)
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

    def _fit_site(self, index: int, site: Site, levels: list[LayerStep]) -> list[Fitted | None]:
        """Fit every level at a site; None stands for one that its shape does not allow."""
        found: list[Fitted | None] = []
        refused: LayerError | None = None
        for level, name in zip(levels, level_names(levels), strict=True):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    form = level.fit(site, self.run.generator(index, site.name))
                except LayerError as error:
                    refused = error
                    found.append(None)
                    continue
            cost = artifact.predict_bytes(form, effort=self.run.recipe.coding)
            found.append(Fitted(form, cost, output_error(site, form), name, tuple(said)))
        if refused and not any(found):
            raise refused
        return found

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


def level_names(levels: list[LayerStep]) -> list[str]:
    """Return what tells the levels of one site apart, such as ``bits=3``."""
    differing = [
        field.name
        for field in fields(levels[0])
        if any(getattr(s, field.name) != getattr(levels[0], field.name) for s in levels)
    ]
    shown = [[f"{name}={getattr(step, name)}" for name in differing] for step in levels]
    return [", ".join(words) or "as given" for words in shown]


def output_error(site: Site, form: Form) -> float:
    """Return the squared error that a form brings at a site, as a share of what is there.

    With a Gram matrix ``G`` it is ``tr(D G D.T) / tr(W G W.T)`` for ``D`` the difference from the
    original weight ``W``: the squared error of the output over its square. Without one ``G`` is
    the identity. A share, for norms between layers make the scale of a weight meaningless, and
    an embedding can then be weighed against a layer that was calibrated.

    Source: Malinovskii et al. 2024 (HIGGS), theorem 1: the loss grows with the sum of the layers'
    relative squared errors, each times a factor; here all factors are alike.
    """
    original = site.original_matrix()
    gram = site.statistics.gram if site.statistics else None
    dense = form.dense().detach().float().reshape(form.rows, form.cols)
    error, whole = _energy(dense - original, gram), _energy(original, gram)
    return error / whole if whole > 0 else error


def _energy(matrix: Tensor, gram: Tensor | None) -> float:
    if gram is None:
        return float(matrix.double().square().sum())
    if gram.dim() == 3:  # a Gram matrix for each group's or expert's rows
        matrix = matrix.reshape(gram.shape[0], -1, matrix.shape[1])
    return float(((matrix @ gram) * matrix).double().sum().clamp_min(0))
