"""Meets a budget: the last step that has a dial gets its setting per site from a solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from laconic import artifact
from laconic.budget import Assignment, LevelTable, meet
from laconic.errors import BudgetError, ConfigError, LayerError
from laconic.forms.base import Form
from laconic.forms.layers import install_
from laconic.plan import require_selection
from laconic.runner import Run, checkpointed, gathered, run_steps, save_state
from laconic.units import format_bytes
from laconic.weights.base import LayerStep, Site

_ATTEMPTS = 4


def dial_index(run: Run) -> int | None:
    """Return the index of the last step with levels; None where the recipe has no dial."""
    steps = run.recipe.steps
    dials = [i for i, s in enumerate(steps) if isinstance(s, LayerStep) and s.levels()]
    return dials[-1] if dials else None


def meet_budget(run: Run, budget_bytes: int) -> None:
    """Run the recipe so that the artefact on disk is at most ``budget_bytes``.

    Steps after the dial add bytes that the table does not know, so the dial's share is corrected
    by what the finished artefact really measured, and the steps from the dial on run again.

    Raises:
        BudgetError: The smallest level of every site is still too large, or the recipe has no
            dial and ends above the budget.
    """
    index = dial_index(run)
    if index is None:
        run_steps(run)
        final = run.steps[-1]["bytes_after"]
        if final > budget_bytes:
            raise BudgetError(_no_dial(run, final, budget_bytes))
        run.notes.append("budget: kept, but the recipe has no step with a dial to use it up.")
        return
    run_steps(run, stop=index)
    survey = _Survey(run, index)
    share = budget_bytes
    for attempt in range(_ATTEMPTS):
        tag = f"-try{attempt}" if attempt else ""
        checkpointed(run, index, tag, survey.settling(share))
        run_steps(run, first=index + 1, tag=tag)
        final = int(run.steps[-1]["bytes_after"])
        last = index == len(run.recipe.steps) - 1
        if final <= budget_bytes and (last or final >= 0.99 * budget_bytes):
            break
        share += budget_bytes - final - (final > budget_bytes) * (budget_bytes // 500)
        survey.rewind()
    if final > budget_bytes:
        raise BudgetError(
            f"budget {format_bytes(budget_bytes)}: after {_ATTEMPTS} attempts the artefact is "
            f"{format_bytes(final)}; the steps after {run.recipe.steps[index].method_name!r} add "
            "more than its levels can give back. Raise the budget or drop a later step."
        )
    reason = run.steps[index].get("details", {}).get("reason")
    if reason:
        run.notes.append(f"budget: {reason}")


def _no_dial(run: Run, final: int, budget_bytes: int) -> str:
    return (
        f"budget {format_bytes(budget_bytes)}: the recipe {run.recipe.name!r} gives "
        f"{format_bytes(final)} and has no step with a dial (bits, sparsity or rank). Raise the "
        "budget or add a quantizing step."
    )


@dataclass(frozen=True)
class _Fitted:
    form: Form
    cost: int
    error: float


class _Survey:
    """Every level of the dial at every site: fitted once, kept as packed forms."""

    def __init__(self, run: Run, index: int) -> None:
        self.run, self.index = run, index
        step = run.recipe.steps[index]
        if not isinstance(step, LayerStep):
            raise ConfigError(f"step {index + 1} ({step.method_name}) has no levels to choose.")
        self.step = step
        self.sites = require_selection(step, run.sites, index + 1)
        self.before = {site.name: site.form for site in self.sites}
        self.levels = self.step.levels()
        self.fitted: dict[str, list[_Fitted | None]] = {}

    def rewind(self) -> None:
        """Put back the forms from before the dial, for another attempt."""
        for site in self.sites:
            self._install(site, self.before[site.name])

    def settling(self, limit: int) -> Callable[[Run, int, str], dict[str, Any]]:
        """Return the work of the dial's step under a limit, as ``checkpointed`` takes it."""
        return lambda _run, _index, name: self.settle(limit, name)

    def settle(self, limit: int, name: str) -> dict[str, Any]:
        """Choose and install levels so that the artefact measures at most ``limit`` bytes."""
        if not self.fitted:
            self._fit_all()
        table = self._table()
        met = meet(limit, lambda assignment: self._measure(assignment, name), table)
        self._apply(met.assignment)
        return {
            "levels": table.named(met.assignment),
            "budget_bytes": limit,
            **({"reason": met.reason} if met.reason else {}),
        }

    def _fit_all(self) -> None:
        bar = self.run.progress.start(f"{self.index + 1}. levels", len(self.sites))
        resolved = [level.resolve(self.sites) for level in self.levels]
        widest = {
            site.name: max((r[site.name] for r in resolved), key=lambda s: len(s.needs))
            for site in self.sites
        }
        for group in gathered(self.run, self.step, self.sites, widest):
            for site in group:
                self.fitted[site.name] = [self._fit(site, r[site.name]) for r in resolved]
                self.run.progress.advance(bar, note=site.name)
        self.run.progress.finish(bar)

    def _fit(self, site: Site, level: LayerStep) -> _Fitted | None:
        try:
            form = level.fit(site, self.run.generator(self.index, site.name))
        except LayerError:
            return None  # this level does not exist for this shape
        cost = artifact.predict_bytes(form, effort=self.run.recipe.coding)
        return _Fitted(form, cost, output_error(site, form))

    def _table(self) -> LevelTable:
        rows = [self.fitted[site.name] for site in self.sites]
        costs = [[f.cost if f else 0 for f in row] for row in rows]
        errors = [[f.error if f else np.inf for f in row] for row in rows]
        names = [f"{number}" for number in range(len(self.levels))]
        largest = [_largest(row) for row in rows]
        whole = LevelTable([s.name for s in self.sites], names, costs, errors)
        reference = whole.assignment(largest)
        fixed = max(0, self._measure(reference, "survey") - reference.cost)
        return LevelTable(whole.sites, whole.levels, costs, errors, fixed_bytes=fixed)

    def _measure(self, assignment: Assignment, name: str) -> int:
        self._apply(assignment)
        return save_state(self.run, f"{name}.trial")

    def _apply(self, assignment: Assignment) -> None:
        for site, level in zip(self.sites, assignment.choice, strict=True):
            fitted = self.fitted[site.name][level]
            if fitted is None:
                raise LayerError(f"{site.name}: level {level} of {self.step.method_name} is void.")
            self._install(site, fitted.form)

    def _install(self, site: Site, form: Form) -> None:
        site.form = form
        install_(self.run.model, site.name, form, layout=site.layout)


def _largest(row: list[_Fitted | None]) -> int:
    costs = [fitted.cost if fitted else -1 for fitted in row]
    return costs.index(max(costs))


def output_error(site: Site, form: Form) -> float:
    """Return the squared error that a form brings at a site.

    With a Gram matrix ``G`` it is ``tr(D G D.T)`` for ``D`` the difference from the original
    weight: the squared error of the output per token. Without one ``G`` is the identity.
    """
    dense = form.dense().detach().float().reshape(form.rows, form.cols)
    delta = dense - site.original_matrix()
    gram = site.statistics.gram if site.statistics else None
    if gram is None:
        return float(delta.double().square().sum())
    if gram.dim() == 3:
        delta = delta.reshape(gram.shape[0], -1, delta.shape[1])
    return float(torch.einsum("...oi,...ij,...oj->", delta, gram, delta).clamp_min(0))
