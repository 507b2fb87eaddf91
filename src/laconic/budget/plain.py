"""Solvers that search nothing, in the words of those that do; and a guard against bad winners."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path

import numpy as np

from laconic.budget.mutate import Moves
from laconic.budget.race import Race
from laconic.budget.sampler import Minibatch, Sampler
from laconic.budget.search import Budget, Fitness, SearchResult, limits_of
from laconic.budget.solve import dynamic_programme
from laconic.budget.table import Assignment, LevelTable
from laconic.errors import BudgetError
from laconic.progress import Progress


def uniform_search(
    table: LevelTable,
    fitness: Fitness,
    sampler: Sampler,
    *,
    budget: Budget,
    tokens: int | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Return the fittest assignment of one level for all sites.

    Args:
        table: Sites by levels.
        fitness: Judges the levels where several keep the budget.
        sampler: Draws the documents they are judged on.
        budget: Limit of the cost, or one for each group.
        tokens: Size of the minibatch; the whole search set where None.
        seed: Seed of the minibatch.
        checkpoint: Not used; there is one step.
        progress: Not used.

    Raises:
        BudgetError: No single level keeps the budget.
    """
    begun = time.monotonic()
    moves = Moves(table, budget)
    found = uniform_assignments(table, budget)
    if not found:
        raise BudgetError(
            f"uniform: no level that all sites have keeps the budget {budget}. A mixed assignment "
            "does: use another solver."
        )
    race = Race(table, fitness, sampler)
    values = np.array([nan])
    if len(found) > 1:
        size = sampler.tokens if tokens is None else tokens
        minibatch = sampler.draw(size, np.random.default_rng(seed))
        values = race.score([given.choice for given in found], minibatch)
    best = int(np.argmin(values)) if len(found) > 1 else 0
    left = sum(moves.left(found[best].choice))
    notes = (f"{table.tell(left)} of the budget cannot be spent by one level",) if left else ()
    return SearchResult(
        "uniform", found[best], float(values[best]), evaluations=race.evaluations,
        tokens=race.tokens, seconds=time.monotonic() - begun,
        settings={"budget": budget, "tokens": tokens, "seed": seed}, notes=notes,
    )  # fmt: skip


def programme_search(
    table: LevelTable,
    fitness: Fitness,
    sampler: Sampler,
    *,
    budget: Budget,
    cells: int | None = 100_000,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Return the assignment of least summed error by the table; nothing is judged.

    Args:
        table: Sites by levels, with errors.
        fitness: Not used.
        sampler: Not used.
        budget: Limit of the cost, or one for each group.
        cells: Largest grid of the dynamic programme; None is exact whatever it takes.
        seed: Not used.
        checkpoint: Not used; there is one step.
        progress: Not used.

    Raises:
        BudgetError: The budget is outside what the levels can attain.
        ConfigError: The table has no errors.

    Source: Frantar and Alistarh 2022 (SPDY), section 3, without its learned sensitivities.
    """
    begun = time.monotonic()
    choice = [0] * len(table.sites)
    slack = 0
    for sites, limit in limits_of(table, budget).values():
        part = table.take(sites)
        solved = dynamic_programme(part, limit, cells=cells)
        slack += solved.slack_bytes
        for site, level in zip(sites, solved.choice, strict=True):
            choice[site] = level
    return SearchResult(
        "dp", table.assignment(choice, slack_bytes=slack), nan,
        seconds=time.monotonic() - begun, settings={"budget": budget, "cells": cells},
    )  # fmt: skip


def uniform_assignments(table: LevelTable, budget: Budget) -> list[Assignment]:
    """Return the assignments of one level for all sites that keep the budget, dearest first.

    Where the table has errors, those that another beats in summed error at no more cost are
    left out; where it has none, all but the dearest.
    """
    moves = Moves(table, budget)
    shared = set.intersection(*(set(ladder) for ladder in moves.ladders))
    found = [table.assignment([level] * len(table.sites)) for level in sorted(shared)]
    kept = [given for given in found if moves.keeps(given.choice)]
    if not table.has_errors:
        most = max((given.cost for given in kept), default=0)
        return [given for given in kept if given.cost == most]
    front: list[Assignment] = []
    for given in sorted(kept, key=lambda given: (given.cost, given.error)):
        if not front or given.error < front[-1].error:
            front.append(given)
    return front[::-1]


@dataclass(frozen=True)
class Verdict:
    """What a winner is worth on data the search has not seen.

    Attributes:
        assignment: The winner, or the uniform assignment where that is better.
        fitness: Its held-out fitness.
        winner_fitness: Held-out fitness of the winner.
        uniform_fitness: The best held-out fitness of one level for all sites within the budget;
            infinity where no level keeps it.
        reason: What was decided, and why.
        is_uniform: The uniform assignment took the winner's place.
    """

    assignment: Assignment
    fitness: float
    winner_fitness: float
    uniform_fitness: float
    reason: str
    is_uniform: bool


def never_worse(
    table: LevelTable, winner: Assignment, fitness: Fitness, held_out: Minibatch, *, budget: Budget
) -> Verdict:
    """Compare a winner with uniform levels at the same budget, and return the better one.

    Args:
        table: Sites by levels.
        winner: What a search found.
        fitness: Judges on held-out documents.
        held_out: All of them.
        budget: Limit that the uniform assignment must keep too.
    """
    rivals = uniform_assignments(table, budget)
    values = fitness([winner, *rivals], held_out)
    mine = float(values[0])
    if not rivals:
        reason = "no single level for all sites keeps the budget: there is no uniform to compare."
        return Verdict(winner, mine, mine, inf, reason, False)
    place = int(np.argmin(np.nan_to_num(np.array(values[1:]), nan=inf)))
    rival, theirs = rivals[place], float(values[1 + place])
    name = table.levels[rival.choice[0]]
    told = f"held-out fitness {mine:.4g} against {theirs:.4g} of {name!r} everywhere"
    if theirs < mine or mine != mine:
        reason = f"uniform is returned: {told}, at {table.tell(rival.cost)}."
        return Verdict(rival, theirs, mine, theirs, reason, True)
    return Verdict(winner, mine, mine, theirs, f"the winner is kept: {told}.", False)
