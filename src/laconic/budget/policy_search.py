"""Levels chosen by a recurrent policy that reads the table and learns from the fitness."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.budget.policy import Decisions, PolicySpec, Reinforce
from laconic.budget.sampler import Sampler
from laconic.budget.search import (
    Budget,
    Choice,
    Fitness,
    Generation,
    SearchResult,
    StageRecord,
    limits_of,
)
from laconic.budget.solve import uniform
from laconic.budget.table import Assignment, LevelTable
from laconic.errors import BudgetError, ConfigError
from laconic.files import write_atomic
from laconic.progress import NullProgress, Progress

_FINALISTS = 4


def policy_search(
    table: LevelTable,
    fitness: Fitness,
    sampler: Sampler,
    *,
    budget: Budget,
    iterations: int = 60,
    rollouts: int = 8,
    tokens: int | None = None,
    policy: PolicySpec | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    save_policy: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search a level table by policy gradient, at a cost that never leaves the budget.

    A rollout names a level for every site. Where it costs more than the budget, sites step down
    where the table says that a byte saved spoils least, and where room is left they step up
    again; the reward is what the fitness says of the assignment that results, as a share of the
    reference's (the best uniform assignment, or the cheapest where none fits). At the end the
    best few and the reference are judged on the same documents and the fittest is returned, so
    the result is never worse than the reference there.

    Args:
        table: Sites by levels.
        fitness: Judges assignments; lower is better.
        sampler: Draws a minibatch for each iteration.
        budget: Limit of the cost, or one for each group.
        iterations: Updates of the policy.
        rollouts: Assignments sampled for an update.
        tokens: Size of a minibatch; all where None.
        policy: Which policy and how it learns; bidirectional at 0.03 where None.
        seed: Seed of everything random.
        checkpoint: File that is written after each iteration, and continued from where it is.
        save_policy: File for the trained policy, to go on from with ``PolicySpec(init=...)``.
        progress: Where progress is shown.

    Raises:
        BudgetError: The budget is outside what the levels can attain.
        ConfigError: A number below 1, or a checkpoint of another search.

    Source: Ashok et al. 2018 (N2N Learning), sections 3.1 and 3.4, for level tables.
    """
    if iterations < 1 or rollouts < 1:
        raise ConfigError(
            f"policy search: iterations={iterations} and rollouts={rollouts} must be at least 1."
        )
    search = _Search(table, fitness, sampler, budget, tokens, rollouts, policy, seed)
    search.resume(checkpoint, iterations)
    bar = (progress or NullProgress()).start("policy search", iterations)
    (progress or NullProgress()).advance(bar, search.done)
    while search.done < iterations:
        search.iterate()
        search.write(checkpoint, iterations)
        (progress or NullProgress()).advance(bar, note=f"fitness {search.best()[1]:.4g}")
    (progress or NullProgress()).finish(bar)
    if save_policy is not None:
        search.learner.policy.save(save_policy)
    return search.finish(iterations)


def describe(table: LevelTable) -> Tensor:
    """Return what a policy reads of each site, (sites, 2 + 2 * levels).

    Its place from 0 to 1, its largest cost as a share of the table's, each level's cost as a
    share of that, and each level's error on a logarithmic scale from 0 (least of all sites and
    levels) to 1 (most); 1 where the site lacks the level.
    """
    held = np.isfinite(table.errors)
    costs = np.where(held, table.costs, 0).astype(np.float64)
    most = np.maximum(costs.max(1, keepdims=True), 1.0)
    logs = np.log10(np.where(held & (table.errors > 0), table.errors, np.nan))
    low, high = (0.0, 1.0) if np.isnan(logs).all() else (np.nanmin(logs), np.nanmax(logs))
    scaled = np.where(np.isnan(logs), 0.0, (logs - low) / max(high - low, 1e-9))
    place = np.linspace(0, 1, len(table.sites))[:, None]
    rows = [place, most / most.max(), costs / most, np.where(held, scaled, 1.0)]
    return torch.from_numpy(np.concatenate(rows, 1)).float()


@dataclass
class _Search:
    table: LevelTable
    fitness: Fitness
    sampler: Sampler
    budget: Budget
    tokens: int | None
    rollouts: int
    policy: PolicySpec | None
    seed: int
    done: int = 0
    evaluations: int = 0
    judged_tokens: int = 0
    seconds: float = 0.0
    seen: dict[Choice, float] = field(default_factory=dict)  # best share of the reference
    history: list[Generation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec = self.policy or PolicySpec(lr=0.03)
        self.limits = limits_of(self.table, self.budget)
        held = torch.from_numpy(np.isfinite(self.table.errors))
        self.decisions = Decisions(describe(self.table), held)
        self.learner = Reinforce.start(self.spec, self.decisions, seed=self.seed)
        self.reference = self._reference()

    def _reference(self) -> Assignment:
        """Return the best uniform assignment that keeps the budget, else the legalised cheapest."""
        limit = sum(limit for _, limit in self.limits.values()) + self.table.fixed_bytes
        try:
            found = uniform(self.table, limit)
        except BudgetError:
            return self.legal(
                [int(self.table.available(s)[0]) for s in range(len(self.table.sites))]
            )
        kept = all(self._cost(found.choice, sites) <= most for sites, most in self.limits.values())
        return found if kept else self.legal(list(found.choice))

    def _cost(self, choice: Any, sites: list[int]) -> int:
        return sum(int(self.table.costs[site, choice[site]]) for site in sites)

    def legal(self, wanted: list[int]) -> Assignment:
        """Return the assignment that a wish becomes within the budget."""
        choice = list(wanted)
        for sites, limit in self.limits.values():
            self._step(choice, sites, limit, down=True)
            self._step(choice, sites, limit, down=False)
        return self.table.assignment(choice)

    def _step(self, choice: list[int], sites: list[int], limit: int, *, down: bool) -> None:
        """Move sites along their fronts, in place, cheapest in error a byte first."""
        cost = self._cost(choice, sites)
        while True:
            moves = [m for site in sites for m in self._moves(choice, site, down=down)]
            if down:
                if cost <= limit or not moves:
                    return
            else:
                moves = [move for move in moves if cost + move[3] <= limit]
            if not moves:
                return
            _, site, level, price = min(moves)
            choice[site], cost = level, cost + price

    def _moves(
        self, choice: list[int], site: int, *, down: bool
    ) -> list[tuple[float, int, int, int]]:
        """Return ``(rank, site, level, price)`` of the nearest move of a site; one at most."""
        costs, errors = self.table.costs[site], self.table.errors[site]
        held = choice[site]
        found = []
        for level in self.table.front(site):
            price, gain = int(costs[level] - costs[held]), float(errors[held] - errors[level])
            if (down and price < 0) or (not down and price > 0 and gain > 0):
                found.append((abs(price), -gain / price, site, level, price))
        return [min(found)[1:]] if found else []

    def judge(self, assignments: list[Assignment], number: int) -> list[float]:
        """Return how much better than the reference each is, as a share of the reference."""
        rng = np.random.default_rng((self.seed, number))
        batch = self.sampler.draw(self.tokens or self.sampler.tokens, rng)
        unique = list({a.choice: a for a in (self.reference, *assignments)}.values())
        values = dict(zip((a.choice for a in unique), self.fitness(unique, batch), strict=True))
        self.evaluations += len(unique)
        self.judged_tokens += len(unique) * batch.tokens
        base = values[self.reference.choice]
        return [(base - values[a.choice]) / max(abs(base), 1e-12) for a in assignments]

    def iterate(self) -> None:
        """Sample, judge, update."""
        begun = time.perf_counter()
        actions = self.learner.sample(self.decisions, self.rollouts)
        made = [self.legal(row) for row in actions.tolist()]
        rewards = [max(reward, -1.0) for reward in self.judge(made, self.done)]
        before = self.best()[0] if self.seen else None
        for assignment, reward in zip(made, rewards, strict=True):
            self.seen[assignment.choice] = max(reward, self.seen.get(assignment.choice, -2.0))
        self.learner.update(self.decisions, actions, torch.tensor(rewards))
        self.done += 1
        self.seconds += time.perf_counter() - begun
        choice, share = self.best()
        stage = StageRecord(len(made), 1, self.judged_tokens, max(rewards) - min(rewards))
        cost = self.table.assignment(choice).cost
        self.history.append(
            Generation(
                self.done, choice, cost, -share, choice != before, self.evaluations,
                self.judged_tokens, (stage,),
            )
        )  # fmt: skip

    def best(self) -> tuple[Choice, float]:
        """Return the choice of the highest reward so far."""
        choice = max(self.seen, key=lambda c: (self.seen[c], [-level for level in c]))
        return choice, self.seen[choice]

    def finish(self, iterations: int) -> SearchResult:
        """Judge the best few and the reference on all documents and return the fittest."""
        ranked = sorted(self.seen, key=lambda c: (-self.seen[c], c))[:_FINALISTS]
        finals = [self.reference, *(self.table.assignment(c) for c in ranked)]
        values = self.fitness(finals, self.sampler.everything())
        self.evaluations += len(finals)
        self.judged_tokens += len(finals) * self.sampler.everything().tokens
        place = int(np.argmin(values))
        notes = () if place else ("no rollout beat the reference on all documents",)
        return SearchResult(
            method="policy",
            assignment=finals[place],
            fitness=float(values[place]),
            history=tuple(self.history),
            evaluations=self.evaluations,
            tokens=self.judged_tokens,
            seconds=self.seconds,
            settings=self.settings(iterations),
            notes=notes,
        )

    def settings(self, iterations: int) -> dict[str, Any]:
        """Return what the search is run with, as plain values."""
        budget = dict(self.budget) if isinstance(self.budget, Mapping) else self.budget
        spec = {**asdict(self.spec), "init": self.spec.init and self.spec.init.name}
        return {
            "budget": budget, "iterations": iterations, "rollouts": self.rollouts,
            "tokens": self.tokens, "policy": spec, "seed": self.seed,
            "sites": len(self.table.sites),
        }  # fmt: skip

    def write(self, path: Path | None, iterations: int) -> None:
        """Write the checkpoint, atomically."""
        if path is None:
            return
        content = {
            "settings": self.settings(iterations),
            "learner": self.learner.state(),
            "counts": [self.done, self.evaluations, self.judged_tokens],
            "seconds": self.seconds,
            "seen": [[list(choice), share] for choice, share in self.seen.items()],
            "history": [asdict(row) for row in self.history],
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomic(path, buffer.getvalue())

    def resume(self, path: Path | None, iterations: int) -> None:
        """Take up a checkpoint where there is one.

        Raises:
            ConfigError: It belongs to another search, or is damaged.
        """
        if path is None or not path.exists():
            return
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
            same = held["settings"] == self.settings(iterations)
        except Exception as error:  # a damaged file fails in many ways, all with one remedy
            raise ConfigError(
                f"search checkpoint {path.name} cannot be read ({type(error).__name__}). Remove it "
                "to start again."
            ) from error
        if not same:
            raise ConfigError(
                f"search checkpoint {path.name} belongs to a search with other settings. Give the "
                "settings of that one, or remove the file to start again."
            )
        self.learner.load_state(held["learner"])
        self.done, self.evaluations, self.judged_tokens = held["counts"]
        self.seconds = held["seconds"]
        self.seen = {tuple(choice): share for choice, share in held["seen"]}
        self.history = [_generation(row) for row in held["history"]]


def _generation(row: Mapping[str, Any]) -> Generation:
    stages = tuple(StageRecord(**stage) for stage in row["stages"])
    return Generation(**{**row, "choice": tuple(row["choice"]), "stages": stages})
