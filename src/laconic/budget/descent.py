"""Greedy descent by fitness: lower the site whose lowering hurts least, judge again, repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from laconic.budget.loop import Loop
from laconic.budget.mutate import Moves
from laconic.budget.sampler import Sampler
from laconic.budget.search import Budget, Choice, Fitness, SearchResult, StageRecord
from laconic.budget.table import LevelTable
from laconic.progress import Progress


def greedy_search(
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
    """Start from the dearest levels and go down step by step, each step judged on fresh text.

    Every site that shares a broken limit is lowered to its next cheaper levels, one at a time; the
    move that adds least to the fitness for each unit of cost it saves is taken. Once the budget
    holds, sites that fit in what is left go up again for as long as that helps.

    Args:
        table: Sites by levels.
        fitness: Judges assignments.
        sampler: Draws a fresh minibatch for each step.
        budget: Limit of the cost, or one for each group.
        tokens: Size of a minibatch; the whole search set where None.
        seed: Seed of the minibatches.
        checkpoint: File that is written after each step, and continued from where it is.
        progress: Where progress is shown.

    Returns:
        The search; its history shows costs above the budget on the way down.

    Raises:
        BudgetError: The budget is outside what the levels can attain.
        ConfigError: More tokens than there are, or the checkpoint is of another search.
    """
    size = sampler.tokens if tokens is None else tokens
    sampler.check(size, "greedy search")
    moves = Moves(table, budget)
    top = tuple(ladder[-1] for ladder in moves.ladders)
    loop = Loop(
        "greedy", table, fitness, sampler, (), None, {"budget": budget, "tokens": size},
        seed=seed, checkpoint=checkpoint, progress=progress,
    )  # fmt: skip
    return loop.run(lambda rng: [top], _Descent(loop, moves, size).step)


class _Descent:
    """Steps of a greedy search."""

    def __init__(self, loop: Loop, moves: Moves, tokens: int) -> None:
        self.loop, self.moves, self.tokens = loop, moves, tokens

    def step(self) -> bool:
        """Take the best move down, or up once the budget holds; False where none is left."""
        now = self.loop.parent
        above = not self.moves.keeps(now)
        tried = self._lowered(now) if above else self._raised(now)
        if not tried:
            return False
        minibatch = self.loop.sampler.draw(self.tokens, self.loop.rng)
        values = self.loop.race.score([now, *tried], minibatch)
        gains = values[1:] - values[0]
        prices = np.array([self._change(now, choice) for choice in tried])
        if not above and not (gains < 0).any():
            return False
        best = int(np.argmin(gains / np.abs(prices)))
        spread = float(np.ptp(values[np.isfinite(values)])) if np.isfinite(values).any() else 0.0
        record = StageRecord(len(values), 1, self.tokens, spread)
        self.loop.record(tried[best], float(values[1 + best]), True, (record,))
        return True

    def _change(self, before: Choice, after: Choice) -> int:
        table = self.loop.table
        return table.assignment(after).cost - table.assignment(before).cost

    def _lowered(self, now: Choice) -> list[Choice]:
        """Return one lowered site each, of those in limits that are broken."""
        broken = zip(self.moves.limits.values(), self.moves.left(now), strict=True)
        return [
            replaced(now, site, level)
            for (sites, _), left in broken
            if left < 0
            for site in sites
            for level in self._next(now, site, down=True)
        ]

    def _raised(self, now: Choice) -> list[Choice]:
        """Return one raised site each, where what is left pays for it."""
        raised = [
            replaced(now, site, level)
            for site in range(len(now))
            for level in self._next(now, site, down=False)
        ]
        return [choice for choice in raised if self.moves.keeps(choice)]

    def _next(self, now: Choice, site: int, *, down: bool) -> list[int]:
        """Return the levels of the next lower (or higher) cost of a site."""
        costs = self.moves.cost[site]
        others = [
            level
            for level in self.moves.ladders[site]
            if (costs[level] < costs[now[site]] if down else costs[level] > costs[now[site]])
        ]
        nearest = (max if down else min)((costs[level] for level in others), default=0)
        return [level for level in others if costs[level] == nearest]


def replaced(choice: Choice, site: int, level: int) -> Choice:
    """Return a choice with one site's level changed."""
    return (*choice[:site], level, *choice[site + 1 :])
