"""Random search: the best of many legal assignments, judged by the same races as evolution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from laconic.budget.loop import Loop, check_counts
from laconic.budget.mutate import Moves
from laconic.budget.sampler import Sampler
from laconic.budget.search import Budget, Choice, Fitness, SearchResult, Stage
from laconic.budget.table import LevelTable
from laconic.progress import Progress

_REDRAWS = 20  # draws for each candidate before those that differ count as exhausted


def random_search(
    table: LevelTable,
    fitness: Fitness,
    sampler: Sampler,
    *,
    budget: Budget,
    generations: int = 150,
    offspring: int = 128,
    stages: Sequence[Stage] = ((16, 2048), (4, 16384), (1, 131072)),
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Draw assignments at random and keep the best.

    It is :func:`laconic.budget.evolve` but for where candidates come from: each is drawn afresh,
    a level for every site and then repaired to the budget. With the same settings both judge
    as many assignments on as much text, so that they can be compared.

    Args:
        table: Sites by levels.
        fitness: Judges assignments.
        sampler: Draws a fresh minibatch for each stage.
        budget: Limit of the cost, or one for each group.
        generations: Rounds, 0 or more.
        offspring: Candidates in a round.
        stages: ``(survivors, tokens)`` of each stage; the best so far joins at the last.
        seed: Seed of everything random.
        checkpoint: File that is written after each round, and continued from where it is.
        progress: Where progress is shown.

    Raises:
        BudgetError: The budget is outside what the levels can attain.
        ConfigError: A setting is out of its bounds, or the checkpoint is of another search.
    """
    stages = check_counts("random search", sampler, stages, generations, offspring)
    moves = Moves(table, budget)

    loop = Loop(
        "random", table, fitness, sampler, stages, generations,
        {"budget": budget, "offspring": offspring, "stages": stages},
        seed=seed, checkpoint=checkpoint, progress=progress,
    )  # fmt: skip

    def step() -> bool:
        drawn: dict[Choice, None] = {}
        for _ in range(_REDRAWS * offspring):
            if len(drawn) == offspring:
                break
            choice = moves.random_state(loop.rng)
            if choice != loop.parent:
                drawn.setdefault(choice)
        return loop.breed(list(drawn))

    return loop.run(lambda rng: [moves.random_state(rng)], step)
