"""State of one search, from its problem to the levels that are built."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from laconic import artifact, measure
from laconic.budget import (
    Fitness,
    LevelTable,
    Minibatch,
    Sampler,
    SearchResult,
    open_workers,
    solver,
)
from laconic.budget.table import Assignment
from laconic.checkpoints import WorkFolder
from laconic.errors import ConfigError
from laconic.files import write_atomic
from laconic.outcome import example_of
from laconic.progress import Progress
from laconic.runner import told_once
from laconic.search.builder import Builder
from laconic.search.evaluator import EvaluatorJob, build_evaluator
from laconic.search.families import Point, compared
from laconic.search.goal import parse_goal
from laconic.search.outliers import outlier_ratios
from laconic.search.problem import Problem, pose_depth, pose_sites
from laconic.search.settings import Effort, solver_settings
from laconic.search.split import SearchData, search_data
from laconic.search.verdict import Judged, judged
from laconic.task import Task
from laconic.weights.base import Where


@dataclass
class Searching:
    """State of one search: what it is about, and what was found so far."""

    model: nn.Module
    levels: str
    task: Task | None
    work: WorkFolder
    effort: Effort
    job: dict[str, Any]
    progress: Progress
    extra_files: tuple[Path, ...]
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = None
        if self.task is not None:
            data = search_data(self.task, limit=self.job["examples"])
        self.data: SearchData | None = data
        example = example_of(self.task) if self.task is not None else None
        architecture = artifact.Architecture.of(self.model, example)
        kept = ("levels", "budget", "method", "cost", "fitness")
        self.recipe = {"name": self.name, "search": {key: self.job[key] for key in kept}}
        self.provenance = {
            **{key: self.job[key] for key in ("seed", "device", "threads", "task")},
            "versions": measure.environment()["versions"],
        }
        self.builder = Builder(
            self.model, self.work.path, architecture, self.recipe, self.provenance,
            self.extra_files, self.job["coding"],
        )  # fmt: skip
        begun = time.perf_counter()
        with told_once() as said:
            self.problem = self._pose()
        self.notes += said
        self.seconds["levels"] = time.perf_counter() - begun

    @property
    def name(self) -> str:
        """Name for tables and files."""
        kind = Path(self.levels).stem if self.levels.endswith((".yaml", ".yml")) else self.levels
        return f"search-{kind}"

    def _pose(self) -> Problem:
        goal, size_of = parse_goal(self.job["budget"]), self.builder.measure
        if self.levels == "depth":
            return pose_depth(self.model, goal, size_of=size_of)
        return pose_sites(
            self.model, self.levels, goal, self.data.task if self.data else None,
            cost=self.job["cost"], where=Where(**self.job["where"]), folder=self.work.path,
            size_of=size_of, seed=self.job["seed"], effort=self.job["coding"],
            progress=self.progress,
        )  # fmt: skip

    @property
    def sampler(self) -> Sampler:
        """Draws documents that are searched on; those held out have no tokens to draw."""
        if self.data is None:
            return Sampler([1])
        documents, inside = self.data.documents, set(self.data.searched)
        lengths = [n if i in inside else 0 for i, n in enumerate(documents.lengths)]
        return Sampler(lengths, least=documents.least)

    def find(self, fitness: Fitness) -> None:
        """Search, compare with the baselines on held-out data, and settle on real bytes."""
        begun = time.perf_counter()
        self.found = self._found(fitness)
        self.seconds["search"] = self.found.seconds
        self.judged: Judged = judged(
            self.problem, self.found.assignment, fitness if self.data else None, self.model,
            self.data,
        )  # fmt: skip
        settled, reason = self.builder.settle(self.problem, self.judged.assignment)
        self.final = self._final(fitness, settled)
        if reason is not None:
            self.notes.append(f"budget: {reason}")
        self.seconds["settle"] = time.perf_counter() - begun - self.found.seconds
        self.points = self._points(fitness)

    def _points(self, fitness: Fitness) -> list[Point]:
        """Return the comparison of families, where it was asked for; kept once it is done."""
        if not self.job["families"]:
            return []
        file = self.work.path / "families.json"
        if not file.is_file():
            begun = time.perf_counter()
            rows = [vars(point) for point in self.compare(fitness, self.job["families"])]
            self.seconds["families"] = time.perf_counter() - begun
            write_atomic(file, json.dumps(rows))
        held = json.loads(file.read_text())
        return [Point(**{**row, "choice": tuple(row["choice"])}) for row in held]

    def _found(self, fitness: Fitness) -> SearchResult:
        file = self.work.path / "found.json"
        if file.is_file():
            return SearchResult.from_dict(json.loads(file.read_text()))
        method, problem, sampler = self.job["method"], self.problem, self.sampler
        if self.levels == "depth" and method in ("dp", "policy"):
            problem.table = alone(problem, fitness, sampler.everything())
        settings = solver_settings(
            method, problem.kind, problem.table, problem.budget, sampler, self.effort
        )
        if method == "owl" and self.data is not None:
            settings["outliers"] = outlier_ratios(self.model, problem.sites, self.data.task)
            settings["dense_costs"] = problem.dense_costs
        found = solver(method)(
            problem.table, fitness, sampler, budget=problem.budget, seed=self.job["seed"],
            checkpoint=self.work.path / "search.state", progress=self.progress, **settings,
        )  # fmt: skip
        write_atomic(file, json.dumps(found.to_dict()))
        return found

    def compare(self, fitness: Fitness, ratios: Sequence[float]) -> list[Point]:
        """Return what each family comes to at some multiples of the budget."""
        if self.data is None or self.problem.bytes_limit is None:
            raise ConfigError("search: families are compared at equal bytes, and on data.")
        held_out, sampler = self.data.documents.take(self.data.held_out), self.sampler
        method = self.job["method"]

        def solve(part: Problem, starts: Sequence[Assignment]) -> SearchResult:
            settings = solver_settings(
                method, part.kind, part.table, part.budget, sampler, self.effort, starts=starts
            )
            return solver(method)(
                part.table, fitness, sampler, budget=part.budget, seed=self.job["seed"],
                progress=self.progress, **settings,
            )  # fmt: skip

        def judge(assignment: Assignment) -> float:
            return fitness([assignment], held_out)[0]

        limits = [int(self.problem.bytes_limit * ratio) for ratio in ratios]
        return compared(self.problem, limits, self.builder, solve, judge, self._test_kl)

    def _test_kl(self, assignment: Assignment) -> dict[str, float] | None:
        """Return the KL divergence on the test split, for the report alone."""
        if self.task is None or self.task.kind not in ("classification", "causal-lm"):
            return None
        made = self.builder.build(self.problem.units, assignment.choice)
        found = measure.logit_kl(self.model, made, self.task, device=self.job["device"])
        return {"value": found["value"], "low": found["low"], "high": found["high"]}

    def _final(self, fitness: Fitness, settled: Assignment) -> Assignment:
        """Return the settled assignment, or the winner where it fits as it is and is better."""
        winner = self.judged.assignment
        if settled.choice == winner.choice or self.data is None:
            return settled
        size, limit = self.builder.measure(self.problem), self.problem.bytes_limit
        if limit is None or size(winner.choice) > limit:
            return settled
        if self.judged.is_uniform:
            return winner
        held_out = self.data.documents.take(self.data.held_out)
        mine, theirs = fitness([winner, settled], held_out)
        return settled if theirs <= mine else winner


def alone(problem: Problem, fitness: Fitness, minibatch: Minibatch) -> LevelTable:
    """Return the table of parts with the fitness of each removed alone as its error."""
    count = len(problem.units)
    tried = [problem.table.assignment([int(u != v) for v in range(count)]) for u in range(count)]
    values = fitness([problem.table.assignment([1] * count), *tried], minibatch)
    errors = [[max(value - values[0], 0.0), 0.0] for value in values[1:]]
    table = problem.table
    return LevelTable(
        table.sites, table.levels, table.costs, errors, fixed_bytes=table.fixed_bytes,
        groups=table.groups, unit=table.unit,
    )  # fmt: skip


@contextmanager
def open_fitness(
    searching: Searching, *, workers: int, threads: int | None, cluster: str | None
) -> Iterator[Fitness]:
    """Give what judges candidates: the model on data, or the table's errors without any."""
    if searching.data is None:
        yield by_table
        return
    job = EvaluatorJob(
        searching.model, searching.problem.units, searching.data.task, searching.data.documents,
        fitness=searching.job["fitness"], device=searching.job["device"],
    )  # fmt: skip
    with open_workers(
        build_evaluator, job, workers=workers, threads=threads, cluster=cluster
    ) as fitness:
        yield fitness


def by_table(assignments: list[Assignment], minibatch: Minibatch, /) -> list[float]:
    """Return the summed errors of assignments by the table."""
    return [assignment.error for assignment in assignments]
