"""Moves in the space of assignments: random legal states, and switches that keep the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from laconic.budget.search import Budget, Choice, limits_of
from laconic.budget.table import LevelTable

_MOST_REPAIRS = 10  # sites lowered at most to make room for the raised ones
_LEAST_USED = 0.8  # of the cost that a repair frees, the share that must be spent again
_TRIES = 100  # draws for each child before the space counts as exhausted
Move = tuple[int, int]  # site, new level


@dataclass
class Moves:
    """Draws states and mutations of a table under a budget.

    In a grouped table a switch takes one site down and another of its group up by the same cost.
    Without groups it raises some sites, then lowers others until the budget holds.

    Args:
        table: Sites by levels.
        budget: Limit of the cost, or one for each group.
        max_switches: Most switches of a mutation.
        reach: Most steps of a switch.
    """

    table: LevelTable
    budget: Budget
    max_switches: int = 3
    reach: int = 1

    def __post_init__(self) -> None:
        self.limits = limits_of(self.table, self.budget)
        self.ladders = [
            [int(level) for level in self.table.available(site)]
            for site in range(len(self.table.sites))
        ]
        self.cost = [[int(c) for c in row] for row in self.table.costs]

    @cached_property
    def groups(self) -> list[list[int]]:
        """Sites of each group; none where the table has no groups."""
        labels = sorted(set(self.table.groups or ()))
        return [self.table.members(label) for label in labels]

    def left(self, choice: Choice) -> list[int]:
        """Return what a state leaves of each limit; below 0 where it breaks it."""
        return [
            limit - sum(self.cost[site][choice[site]] for site in sites)
            for sites, limit in self.limits.values()
        ]

    def keeps(self, choice: Choice) -> bool:
        """Return whether a state keeps the budget."""
        return min(self.left(choice)) >= 0

    def spends_all(self, choice: Choice) -> bool:
        """Return whether a state spends the budget to the last unit of cost."""
        return not any(self.left(choice))

    def random_state(self, rng: np.random.Generator) -> Choice:
        """Return a state with a level drawn for each site, then repaired to the budget."""
        choice = [ladder[int(rng.integers(len(ladder)))] for ladder in self.ladders]
        return self._repaired(choice, rng)

    def lowered_state(self, rng: np.random.Generator) -> Choice:
        """Return a state just below uniform levels: random sites go down until the budget holds.

        Every site starts at the cheapest level that all share and that reaches the budget, at
        its dearest level where none does.

        Source: Sieberling et al. 2024, section 4.3: start of searches for fractional bits.
        """
        choice = [ladder[-1] for ladder in self.ladders]
        for sites, limit in self.limits.values():
            shared = set.intersection(*(set(self.ladders[site]) for site in sites))
            above = [
                (total, level)
                for level in shared
                if (total := sum(self.cost[site][level] for site in sites)) >= limit
            ]
            for site in sites:
                choice[site] = min(above)[1] if above else choice[site]
        return self._repaired(choice, rng)

    def _repaired(self, choice: list[int], rng: np.random.Generator) -> Choice:
        """Lower random sites until every limit holds, then raise what fits in the gap."""
        for sites, limit in self.limits.values():
            left = limit - sum(self.cost[site][choice[site]] for site in sites)
            while left < 0:
                site, level = _pick(self.steps(choice, sites, down=True), rng)
                left += self.cost[site][choice[site]] - self.cost[site][level]
                choice[site] = level
            while fitting := [
                (site, level)
                for site, level in self.steps(choice, sites, down=False)
                if 0 < self.cost[site][level] - self.cost[site][choice[site]] <= left
            ]:
                site, level = _pick(fitting, rng)
                left -= self.cost[site][level] - self.cost[site][choice[site]]
                choice[site] = level
        return tuple(choice)

    def steps(
        self, choice: Sequence[int], sites: Sequence[int], *, down: bool, reach: int = 1
    ) -> list[Move]:
        """Return a move for each site that can go down (or up), at most ``reach`` steps each."""
        moves: list[Move] = []
        for site in sites:
            ladder = self.ladders[site]
            place = ladder.index(choice[site])
            for step in range(1, reach + 1):
                to = place - step if down else place + step
                if 0 <= to < len(ladder):
                    moves.append((site, ladder[to]))
        return moves

    def offspring(
        self, parent: Choice, count: int, rng: np.random.Generator
    ) -> tuple[list[Choice], bool]:
        """Return up to ``count`` mutations, distinct and none the parent, and whether all came.

        Fewer come where the space around the parent holds no more: none at all where no site
        can move.
        """
        children: dict[Choice, None] = {}
        for _ in range(_TRIES * count):
            if len(children) == count:
                break
            child = self.mutated(parent, rng)
            if child is None:
                break
            if child != parent:
                children.setdefault(child)
        return list(children), len(children) == count

    def mutated(self, parent: Choice, rng: np.random.Generator) -> Choice | None:
        """Return one mutation, perhaps the parent itself; None where no site can move.

        Source: Sieberling et al. 2024, section 3: the number of switches is the smaller of two
        uniform draws.
        """
        switches = draw_switches(rng, self.max_switches)
        if not self.groups:
            return self._swapped_by_repair(parent, switches, rng)
        choice = list(parent)
        for _ in range(switches):
            if not self._switch(choice, rng):
                return None
        return tuple(choice)

    def _switch(self, choice: list[int], rng: np.random.Generator) -> bool:
        """Move one site down and one of its group up by the same cost, in place."""
        movable: list[tuple[list[int], list[Move], list[Move]]] = []
        for sites in self.groups:
            downs = self.steps(choice, sites, down=True, reach=self.reach)
            ups = self.steps(choice, sites, down=False, reach=self.reach)
            if downs and ups:
                movable.append((sites, downs, ups))
        if not movable:
            return False
        weights = np.array([len(sites) for sites, _, _ in movable], dtype=float)
        sites, downs, ups = movable[int(rng.choice(len(movable), p=weights / weights.sum()))]
        # The side that is drawn first decides the amount; with levels equally far apart both
        # sides are drawn independently, as in the paper.
        first_down = bool(rng.integers(2))
        first = _pick(downs if first_down else ups, rng)
        amount = self.change(choice, first)
        if not amount:  # another level of the same cost needs no partner
            choice[first[0]] = first[1]
            return True
        partners = self._changing_by(-amount, choice, sites)
        if partners:
            second = _pick(partners, rng)
            if second[0] != first[0]:  # else down and up again: nothing changes
                for site, level in (first, second):
                    choice[site] = level
        return True

    def _changing_by(self, amount: int, choice: Sequence[int], sites: Sequence[int]) -> list[Move]:
        """Return the moves of sites that change the cost by an amount."""
        rows = np.asarray(sites)
        costs = self.table.costs[rows]
        now = self.table.costs[rows, np.asarray(choice)[rows]]
        found = (costs - now[:, None] == amount) & np.isfinite(self.table.errors[rows])
        return [(int(rows[row]), int(level)) for row, level in np.argwhere(found)]

    def change(self, choice: Sequence[int], move: Move) -> int:
        """Return what a move adds to the cost."""
        site, level = move
        return self.cost[site][level] - self.cost[site][choice[site]]

    def _swapped_by_repair(
        self, parent: Choice, switches: int, rng: np.random.Generator
    ) -> Choice | None:
        """Raise some sites, then lower random ones until the budget holds.

        Returns the parent where the repair takes too many sites or frees far more than is spent.

        Source: the authors' code, ``group_rule="none"``.
        """
        choice = list(parent)
        ((sites, limit),) = self.limits.values()
        spare = limit - sum(self.cost[site][choice[site]] for site in sites)
        if not self.steps(choice, sites, down=False):
            return None
        added = removed = 0
        raised: set[int] = set()
        for _ in range(switches):
            moves = self.steps(choice, sites, down=False, reach=self.reach)
            if not moves:
                break
            site, level = _pick(moves, rng)
            added += self.change(choice, (site, level))
            choice[site] = level
            raised.add(site)
        for _ in range(_MOST_REPAIRS + 1):
            if added - removed <= spare:
                wasted = removed > 0 and added - spare < _LEAST_USED * removed
                return parent if wasted else tuple(choice)
            others = [site for site in sites if site not in raised]
            moves = self.steps(choice, others, down=True, reach=self.reach)
            if not moves:
                break
            site, level = _pick(moves, rng)
            removed -= self.change(choice, (site, level))
            choice[site] = level
        return parent


def draw_switches(rng: np.random.Generator, most: int) -> int:
    """Return the smaller of two draws from 1..most: for 3, shares of 5/9, 3/9 and 1/9."""
    return int(min(rng.integers(1, most + 1, size=2)))


def _pick(moves: Sequence[Move], rng: np.random.Generator) -> Move:
    return moves[int(rng.integers(len(moves)))]
