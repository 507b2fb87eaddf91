"""What the EvoPress study stands on: a model, three texts apart, and searches under one budget."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from laconic.budget import (
    LevelTable,
    Minibatch,
    Sampler,
    SearchResult,
    bits_table,
    evolve,
    owl,
    random_search,
    solver,
)
from laconic.budget.mutate import Moves
from laconic.budget.search import Budget, Choice, Stage
from laconic.errors import LaconicWarning
from laconic.search.build import fill_
from laconic.search.database import FormDatabase
from laconic.search.documents import Documents
from laconic.search.evaluator import EvaluatorJob, ModelEvaluator, build_evaluator
from laconic.search.fitting import Level
from laconic.search.levels import level_set
from laconic.search.outliers import outlier_ratios
from laconic.search.split import ExampleSplit
from laconic.search.units import SiteUnit, Unit
from laconic.studies.base import Conditions
from laconic.task import Split, Task
from laconic.weights.base import Site, Where
from laconic.weights.quantize.gptq import Gptq
from laconic.weights.sites import find_sites

BLOCKS = Where(include=("*.layers.*",), types=("linear",))  # not the embedding, not the output


@dataclass(frozen=True)
class Effort:
    """How long a search may be.

    Attributes:
        generations: Rounds.
        offspring: Candidates in each.
        stages: Survivors and tokens of each stage.
        initial: Random states to start from, and the tokens they are judged on.
    """

    generations: int
    offspring: int
    stages: tuple[Stage, ...]
    initial: Stage


@dataclass(frozen=True)
class Problem:
    """Units, levels and a budget.

    Attributes:
        units: What is put into the model.
        table: Units by levels, with the errors of the layers where these are known.
        budget: Limit of the cost.
        dense_costs: What each unit costs as it is.
    """

    units: Sequence[Unit]
    table: LevelTable
    budget: Budget
    dense_costs: Sequence[int] = ()


@dataclass
class Bench:
    """A model, the texts, and what judges assignments on them.

    Args:
        model: The dense model.
        task: Gives the calibration text.
        documents: Texts to search on, then those to judge on in the end.
        searched: How many of them are searched on.
        conditions: Seed, device and progress.
    """

    model: nn.Module
    task: Task
    documents: Documents
    searched: int
    conditions: Conditions
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        lengths = self.documents.lengths[: self.searched]
        self.sampler = Sampler(lengths, least=self.documents.least)

    @classmethod
    def of(
        cls, model: nn.Module, task: Task, search: Split, test: Split, conditions: Conditions
    ) -> Bench:
        """Return the bench of a model, with texts to search on and to judge on."""
        found = [Documents.of(task, split) for split in (search, test)]
        examples = ExampleSplit([e for docs in found for e in docs.examples])
        return cls(model, task, Documents.of(task, examples), len(found[0]), conditions)

    def judge(self, units: Sequence[Unit]) -> ModelEvaluator:
        """Return what gives the KL divergence from the dense model."""
        device = self.conditions.device
        return build_evaluator(
            EvaluatorJob(self.model, units, self.task, self.documents, device=device)
        )

    def first(self, tokens: int) -> tuple[Sampler, Minibatch]:
        """Return a sampler of the first search documents up to so many tokens, and them all."""
        ends = np.cumsum(self.sampler.lengths)
        count = max(1, int(np.searchsorted(ends, tokens, side="right")))
        held = Sampler(self.sampler.lengths[:count], least=self.documents.least)
        return held, held.everything()

    @property
    def test(self) -> Minibatch:
        """All documents to judge on in the end."""
        return self.documents.take(range(self.searched, len(self.documents)))

    def sites(self) -> list[Site]:
        """Return the linear layers of the blocks."""
        return [
            site
            for site in find_sites(self.model)
            if BLOCKS.matches(site.name, site.kind, ("linear",))
        ]

    def sparsity(self, share: float) -> Problem:
        """Fit SparseGPT at equally many weights above and below a share of zeros."""
        sites = self.sites()
        levels = level_set("sparsity", data=True, sites=sites, sparsity=share)
        sizes = [site.form.rows * site.form.cols for site in sites]
        database = FormDatabase(levels.names)
        self._fill(database, sites, levels.of, levels.calibration)
        errors = database.table([site.name for site in sites]).errors
        costs = [
            [size - round(share * size) - int(name) * levels.step for name in levels.names]
            for size in sizes
        ]
        table = LevelTable(
            [site.name for site in sites], levels.names,
            np.where(np.isfinite(errors), costs, 0), errors,
            groups=["weights"] * len(sites), unit="weights",
        )  # fmt: skip
        budget = sum(size - round(share * size) for size in sizes)
        return Problem([SiteUnit(s, database) for s in sites], table, budget, sizes)

    def bits(self, bits: Sequence[int], *, group: int, calibrated_at: int) -> Problem:
        """Fit GPTQ at some bit-widths, asymmetric and in groups; the budget is still to be set."""
        sites = self.sites()
        steps = [Gptq(bits=b, group_size=group, symmetric=False, order="none") for b in bits]
        levels = [Level(f"{b} bits", (step,)) for b, step in zip(bits, steps, strict=True)]
        database = FormDatabase([level.name for level in levels])
        self._fill(database, sites, lambda site: levels, bits.index(calibrated_at))
        errors = database.table([site.name for site in sites]).errors
        sizes = {site.name: site.form.rows * site.form.cols for site in sites}
        table = bits_table(sizes, bits, errors=errors)
        dense = [16 * size for size in sizes.values()]
        return Problem([SiteUnit(s, database) for s in sites], table, 0, dense)

    def _fill(
        self, database: FormDatabase, sites: Sequence[Site], levels_of: Any, calibration: int | None
    ) -> None:
        fill_(
            database, self.model, sites, levels_of, self.task, calibration=calibration,
            seed=self.conditions.seed, progress=self.conditions.progress,
        )  # fmt: skip


def with_average(problem: Problem, average: float) -> Problem:
    """Return a problem of bit-widths with a budget of so many bits a weight."""
    weights = sum(problem.dense_costs) // 16
    return replace(problem, budget=int(average * weights))


@dataclass(frozen=True)
class Compared:
    """What several solvers made of one problem.

    Attributes:
        found: Results by solver.
        test: KL on the test text by solver.
        searched: KL on the whole search text by solver.
    """

    found: Mapping[str, SearchResult]
    test: Mapping[str, float]
    searched: Mapping[str, float]

    def ratio(self, rival: str) -> float:
        """Return EvoPress's test KL as a share of a rival's."""
        return self.test["evolve"] / self.test[rival]

    def rows(self, problem: str, bench: Bench) -> list[dict[str, Any]]:
        """Return a row for each solver."""
        return [
            {
                "problem": problem, "solver": name, "KL, test": self.test[name],
                "KL, search": self.searched[name], "evaluations": found.evaluations,
                "tokens": found.tokens, "cost": found.cost, "seconds": round(found.seconds, 1),
            }
            for name, found in self.found.items()
        ]  # fmt: skip


def compare(
    bench: Bench,
    problem: Problem,
    effort: Effort,
    *,
    solvers: Sequence[str] = ("uniform", "random", "dp", "owl", "evolve"),
) -> Compared:
    """Run solvers on one problem and judge what they find on text that none has seen.

    Random search gets the rounds, candidates and tokens of the evolution; OWL the best of its
    twenty settings on four times the text of the last stage.
    """
    judge = bench.judge(problem.units)
    found = {name: _solved(name, bench, problem, judge, effort) for name in solvers}
    chosen = [result.assignment for result in found.values()]
    test = judge(chosen, bench.test)
    searched = judge(chosen, bench.sampler.everything())
    return Compared(
        found, dict(zip(found, test, strict=True)), dict(zip(found, searched, strict=True))
    )


def _solved(
    name: str, bench: Bench, problem: Problem, judge: ModelEvaluator, effort: Effort
) -> SearchResult:
    table, sampler, seed = problem.table, bench.sampler, bench.conditions.seed
    rounds: dict[str, Any] = {
        "budget": problem.budget, "generations": effort.generations, "seed": seed,
        "offspring": effort.offspring, "stages": effort.stages,
        "progress": bench.conditions.progress,
    }  # fmt: skip
    if name == "evolve":
        return evolve(table, judge, sampler, initial=effort.initial, **rounds)
    if name == "random":
        with warnings.catch_warnings():
            # How noisy a race between random states is tells nothing of the search judged here.
            warnings.simplefilter("ignore", LaconicWarning)
            return random_search(table, judge, sampler, **rounds)
    if name == "owl":
        outliers = outlier_ratios(bench.model, bench.sites(), bench.task)
        return owl(
            table, judge, sampler, budget=problem.budget, outliers=outliers,
            dense_costs=problem.dense_costs, tokens=min(4 * effort.stages[-1][1], sampler.tokens),
        )  # fmt: skip
    return solver(name)(table, judge, sampler, budget=problem.budget)


def rank_correlation(
    bench: Bench, problem: Problem, judge: ModelEvaluator, count: int, tokens: int
) -> float:
    """Return Spearman's correlation of summed layer errors with the KL over random states."""
    rng = np.random.default_rng(bench.conditions.seed)
    moves = Moves(problem.table, problem.budget)
    states: list[Choice] = [moves.random_state(rng) for _ in range(count)]
    drawn = [problem.table.assignment(state) for state in states]
    _, minibatch = bench.first(tokens)
    values = judge(drawn, minibatch)
    errors = [given.error for given in drawn]
    ranks = [np.argsort(np.argsort(column)) for column in (values, errors)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
