"""Meets a budget: the last steps that have a dial get their setting per site from a solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from laconic.errors import BudgetError
from laconic.plan import require_selection
from laconic.runner import Run, checkpointed, refer, reset, restore, rewrite_ahead, run_steps
from laconic.survey import Survey
from laconic.units import format_bytes
from laconic.weights.base import LayerStep

_ATTEMPTS = 5
_TOLERANCE = 0.01  # gap below the budget, as a share of it, that counts as met
_MARGIN = 0.002  # share of the budget kept free per attempt, for what later steps may move


def dial_steps(run: Run) -> range | None:
    """Return the indices of the steps that the budget sets; None where no step has a dial.

    It is the last step with levels that selects a site, together with the steps with levels just
    before it that work on other sites: the embeddings of a model beside its linear layers.
    """
    found: range | None = None
    taken: set[str] = set()
    for index in reversed(range(len(run.recipe.steps))):
        step = run.recipe.steps[index]
        has_levels = isinstance(step, LayerStep) and bool(step.levels())
        names = {site.name for site in require_selection(step, run.sites, index + 1)}
        if found is None:
            if has_levels and names:
                found, taken = range(index, index + 1), names
        elif has_levels and not names & taken:
            found, taken = range(index, found.stop), taken | names
        else:
            break
    return found


def meet_budget(run: Run, budget_bytes: int) -> None:
    """Run the recipe so that the artefact on disk is at most ``budget_bytes``.

    Steps after the dial change the size in a way that the table does not know. The dial's share
    is corrected by what the finished artefact really measured, and the steps from the dial on
    run again; the attempt that fits best is kept.

    Raises:
        BudgetError: The smallest level of every site is still too large, or the recipe has no
            dial and ends above the budget.
    """
    indices = dial_steps(run)
    if indices is None:
        run_steps(run)
        _check_no_dial(run, budget_bytes)
        return
    run_steps(run, stop=indices.start)
    rewrite_ahead(run, indices)
    search = _Search(run, indices, budget_bytes)
    for number in range(_ATTEMPTS):
        search.attempt(number)
        if search.done:
            break
    search.take_best()


def _check_no_dial(run: Run, budget_bytes: int) -> None:
    final = int(run.steps[-1]["bytes_after"])
    if final > budget_bytes:
        raise BudgetError(
            f"budget {_exact(budget_bytes)}: the recipe {run.recipe.name!r} gives {_exact(final)} "
            "and has no step with a dial (bits, sparsity or rank). Raise the budget or add a "
            "quantizing step."
        )
    if final < (1 - _TOLERANCE) * budget_bytes:
        run.notes.append(
            f"budget: {format_bytes(final)} of {format_bytes(budget_bytes)} are used: the recipe "
            "has no step with a dial to spend the rest on."
        )


@dataclass(frozen=True)
class _Attempt:
    """A finished attempt: the dial's share, its size after the dial and at the end."""

    share: int
    after_dial: int
    final: int
    checkpoint: str
    rows: list[dict[str, Any]]

    @property
    def details(self) -> dict[str, Any]:
        return dict(self.rows[0]["details"])


class _Search:
    """Attempts at a budget, each with another share of it for the dial."""

    def __init__(self, run: Run, indices: range, budget_bytes: int) -> None:
        self.run, self.indices, self.budget = run, indices, budget_bytes
        self.before, self.rows = run.last_checkpoint, len(run.steps)
        self.reference = run.reference
        self.survey = Survey(run, indices)
        self.share = budget_bytes - predicted_change(run, indices)
        self.tried: list[_Attempt] = []
        self.done = False

    def attempt(self, number: int) -> None:
        """Run the dial and all steps after it with the share as it stands."""
        tag = f"-try{number}" if number else ""
        if number:
            self._rewind()
        run, last = self.run, self.indices[-1]
        checkpointed(run, last, tag, self._settle, label=self._label())
        run_steps(run, first=last + 1, tag=tag)
        made = run.steps[self.rows :]
        sizes = [int(row["bytes_after"]) for row in made]
        self.tried.append(_Attempt(self.share, sizes[0], sizes[-1], run.last_checkpoint, made))
        self._move_share()

    def take_best(self) -> None:
        """Let the run end with the largest attempt that keeps the budget.

        Raises:
            BudgetError: None does.
        """
        fitting = [tried for tried in self.tried if tried.final <= self.budget]
        if not fitting:
            least = min(self.tried, key=lambda tried: tried.final)
            raise BudgetError(
                f"budget {_exact(self.budget)}: the smallest artefact of {len(self.tried)} "
                f"attempts is {_exact(least.final)}, of which the steps after {self._label()} "
                f"added {least.final - least.after_dial} B. Raise the budget, add smaller levels "
                "or drop a later step."
            )
        best = max(fitting, key=lambda tried: tried.final)
        self.run.steps[self.rows :] = best.rows
        self.run.last_checkpoint = best.checkpoint
        if best.final < (1 - _TOLERANCE) * self.budget:
            self.run.notes.append(f"budget: {self._reason(best)}")

    def _label(self) -> str:
        return " + ".join(self.run.recipe.steps[index].method_name for index in self.indices)

    def _settle(self, run: Run, index: int, name: str) -> dict[str, Any]:
        return self.survey.settle(self.share, name, final=index + 1 == len(run.recipe.steps))

    def _rewind(self) -> None:
        """Go back to the model from before the dial."""
        if self.before:
            restore(self.run, self.before)
        else:
            reset(self.run)
        refer(self.run, self.reference)
        del self.run.steps[self.rows :]

    def _move_share(self) -> None:
        """Correct the dial's share by what the later steps added, or end the search."""
        last = self.tried[-1]
        margin = round(len(self.tried) * _MARGIN * self.budget)
        wanted = self.budget - (last.final - last.after_dial) - margin
        above = min((t.share for t in self.tried if t.final > self.budget), default=None)
        below = max((t.share for t in self.tried if t.final <= self.budget), default=0)
        if last.final > self.budget:
            self.done = bool(last.details["at_least"])
        else:
            close = last.final >= (1 - _TOLERANCE) * self.budget
            self.done = close or bool(last.details["at_best"]) or wanted <= last.share
        if above is not None and not below < wanted < above:
            wanted = (below + above) // 2 if below else above - max(margin, 1)
        self.share = wanted

    def _reason(self, best: _Attempt) -> str:
        if best.details.get("reason") and best.final == best.after_dial:
            return str(best.details["reason"])
        used = f"{format_bytes(best.final)} of {format_bytes(self.budget)} are used"
        if best.details["at_best"]:
            return f"{used}: every site is at its best level; there is nothing left to spend on."
        return (
            f"{used}: closest of {len(self.tried)} attempts; the steps after {self._label()} "
            "change the size."
        )


def predicted_change(run: Run, indices: range) -> int:
    """Return the bytes that the steps after ``indices`` add to the sites' sketches.

    It is the first guess of what the dial must leave to them; negative where they save bytes.
    """
    change = 0
    forms = {site.name: site.form for site in run.sites}
    for index, step in enumerate(run.recipe.steps[indices.start :], indices.start):
        for site in require_selection(step, run.sites, index + 1):
            before = forms[site.name]
            forms[site.name] = step.for_site(site.name).sketch(before, site=site.name)
            if index not in indices:
                change += forms[site.name].nbytes - before.nbytes
    return change


def _exact(count: int) -> str:
    return f"{format_bytes(count)} ({count} B)"
