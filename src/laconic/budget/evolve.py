"""Evolutionary search for the levels: one parent, many offspring, a race in stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from laconic.budget.loop import Loop, check_counts
from laconic.budget.mutate import Moves
from laconic.budget.sampler import Sampler
from laconic.budget.search import Budget, Choice, Fitness, SearchResult, Stage
from laconic.budget.table import Assignment, LevelTable
from laconic.errors import ConfigError
from laconic.progress import Progress

Start = Literal["auto", "uniform", "random"] | Sequence[Assignment]
_REDRAWS = 50  # draws for each initial state before those that differ count as exhausted


# Long for its signature and docstring: every setting of the search is named and told here once.
def evolve(
    table: LevelTable,
    fitness: Fitness,
    sampler: Sampler,
    *,
    budget: Budget,
    generations: int = 150,
    offspring: int = 128,
    stages: Sequence[Stage] = ((16, 2048), (4, 16384), (1, 131072)),
    max_switches: int = 3,
    reach: int = 1,
    start: Start = "auto",
    initial: Stage | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search by mutation and selection, at a cost that never leaves the budget.

    In a grouped table every assignment that is visited costs exactly as much as the first, which
    is as much of the budget as a start could spend. Without groups none costs more than the
    budget.

    Args:
        table: Sites by levels; ``table.grouped("size")`` makes switches exact.
        fitness: Judges assignments.
        sampler: Draws a fresh minibatch for each stage.
        budget: Limit of the cost, or one for each group.
        generations: Rounds, 0 or more.
        offspring: Candidates in a round; the default and those of the stages are the paper's for
            bit-widths.
        stages: ``(survivors, tokens)`` of each stage; the last keeps one.
        max_switches: Most level switches of one mutation.
        reach: Most steps that one switch goes; 1 as in the paper, more where a table mixes
            families and a good level lies behind a bad one.
        start: ``"uniform"``: one level everywhere; ``"random"``: the best of ``initial``;
            ``"auto"``: uniform where it meets the budget exactly, else random; or assignments
            of which the fittest is taken.
        initial: How many random states are drawn, and the tokens that starts are judged on; 64,
            as in the paper, on as many as the first stage where None.
        seed: Seed of everything random.
        checkpoint: File that is written after each generation, and continued from where it is.
        progress: Where progress is shown.

    Raises:
        BudgetError: The budget is outside what the levels can attain.
        ConfigError: A setting is out of its bounds, the stages make no race, no uniform level
            meets the budget, or the checkpoint is of another search.

    Source: Sieberling et al. 2024 (EvoPress), sections 3 and 4, algorithms 1 and 2.
    Differs: offspring equal to the parent are never judged; where fewer than ``offspring``
        distinct mutations exist, fewer are taken; the search ends where there are none.
    """
    stages = check_counts("evolve", sampler, stages, generations, offspring)
    initial = initial or (64, stages[0][1])
    if max_switches < 1 or reach < 1 or initial[0] < 1:
        raise ConfigError(
            f"evolve: max_switches={max_switches}, reach={reach} and initial={tuple(initial)} "
            "must all be at least 1."
        )
    moves = Moves(table, budget, max_switches, reach)
    begin = _starts(moves, start, initial[0])
    sampler.check(initial[1], "evolve: initial")
    told = start if isinstance(start, str) else [list(given.choice) for given in start]
    loop = Loop(
        "evolve", table, fitness, sampler, stages, generations,
        {
            "budget": budget, "offspring": offspring, "stages": stages, "initial": list(initial),
            "max_switches": max_switches, "reach": reach, "start": told,
        },
        initial[1], seed, checkpoint, progress,
    )  # fmt: skip

    def step() -> bool:
        children, complete = moves.offspring(loop.parent, offspring, loop.rng)
        if children and not complete:
            loop.note("some generations have fewer offspring: there are no more distinct ones.")
        return loop.breed(children)

    return loop.run(begin, step)


def _starts(
    moves: Moves, start: Start, count: int
) -> Callable[[np.random.Generator], list[Choice]]:
    """Return what draws the states that a search begins with."""
    if not isinstance(start, str):
        given = _allowed(moves, start)
        return lambda rng: given
    if start not in ("auto", "uniform", "random"):
        raise ConfigError(
            f"evolve: start={start!r} must be 'auto', 'uniform', 'random' or assignments."
        )
    if start == "random":
        return lambda rng: random_starts(moves, count, rng)
    exact = uniform_choice(moves)
    if exact is not None and (start == "uniform" or moves.spends_all(exact)):
        return lambda rng: [exact]
    if start == "uniform":
        raise ConfigError(
            "evolve: no single level for all sites keeps the budget; use start='random'."
        )
    return lambda rng: random_starts(moves, count, rng)


def uniform_choice(moves: Moves) -> Choice | None:
    """Return the dearest assignment of one level for all sites that keeps the budget.

    Among equals the one of less error by the table. None where no shared level keeps it.
    """
    table = moves.table
    shared = set.intersection(*(set(ladder) for ladder in moves.ladders))
    found = [table.assignment([level] * len(table.sites)) for level in sorted(shared)]
    kept = [given for given in found if moves.keeps(given.choice)]
    best = max(kept, key=lambda given: (given.cost, -given.error), default=None)
    return None if best is None else best.choice


def random_starts(moves: Moves, count: int, rng: np.random.Generator) -> list[Choice]:
    """Return up to ``count`` distinct states near uniform that spend as much as any drawn."""
    drawn: dict[Choice, int] = {}
    for _ in range(_REDRAWS * count):
        if len(drawn) == count:
            break
        choice = moves.lowered_state(rng)
        drawn.setdefault(choice, moves.table.assignment(choice).cost)
    most = max(drawn.values())
    return [choice for choice, cost in drawn.items() if cost == most]


def _allowed(moves: Moves, start: Sequence[Assignment]) -> list[Choice]:
    choices = list(dict.fromkeys(given.choice for given in start))
    if not choices:
        raise ConfigError("evolve: start is an empty list; give at least one assignment.")
    for choice in choices:
        if not moves.table.is_legal(choice) or not moves.keeps(choice):
            raise ConfigError(
                f"evolve: the start {list(choice)} has a level that its site does not have, or "
                "costs more than the budget."
            )
    return choices
