"""Evolutionary search for the levels: one parent, many offspring, a race in stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from laconic.budget.sampler import Sampler
from laconic.budget.search import Budget, Fitness, SearchResult, Stage
from laconic.budget.table import Assignment, LevelTable
from laconic.progress import Progress

Start = Literal["auto", "uniform", "random"] | Sequence[Assignment]


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
    initial: Stage = (64, 2048),
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search by mutation and selection, at a cost that never leaves the budget.

    Args:
        table: Sites by levels; ``table.grouped("size")`` makes switches exact.
        fitness: Judges assignments.
        sampler: Draws a fresh minibatch for each stage.
        budget: Limit of the cost, or one for each group.
        generations: Rounds.
        offspring: Candidates in a round.
        stages: ``(survivors, tokens)`` of each stage; the last keeps one.
        max_switches: Most level switches of one mutation.
        reach: Most steps that one switch goes; 1 as in the paper, more where a table mixes
            families and a good level lies behind a bad one.
        start: ``"uniform"``: one level everywhere; ``"random"``: the best of ``initial``;
            ``"auto"``: uniform where it meets the budget exactly, else random; or assignments
            of which the fittest is taken.
        initial: How many random states are drawn, and the tokens they are judged on.
        seed: Seed of everything random.
        checkpoint: File that is written after each generation, and continued from where it is.
        progress: Where progress is shown.

    Source: Sieberling et al. 2024 (EvoPress), sections 3 and 4, algorithm 1.
    """
    raise NotImplementedError
