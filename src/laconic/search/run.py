"""search(): model + levels + task + budget -> the levels to take, and the artefact made of them."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
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
from laconic.checkpoints import WorkFolder, fingerprint, is_finished
from laconic.errors import BackendError, ConfigError, LaconicError, LaconicWarning
from laconic.files import refuse_existing, write_atomic
from laconic.outcome import example_of
from laconic.pipeline import describe_task, holder, thread_count, tokenizer_files
from laconic.progress import NullProgress, Progress
from laconic.result import Result, TemporaryFolder
from laconic.runner import frozen
from laconic.search.builder import Builder
from laconic.search.evaluator import EvaluatorJob, build_evaluator
from laconic.search.families import Point, compared
from laconic.search.finish import SearchOutcome, opened, published
from laconic.search.goal import Cost, parse_goal
from laconic.search.outliers import outlier_ratios
from laconic.search.problem import Problem, pose_depth, pose_sites
from laconic.search.settings import Effort, Method, solver_settings
from laconic.search.split import SearchData, search_data
from laconic.search.verdict import Judged, judged
from laconic.task import Task
from laconic.weights.base import Where

_WITHOUT_DATA = ("dp", "uniform")


# Long for its signature and docstring: every setting of a search is named and told here once.
def search(
    model: nn.Module,
    levels: str,
    task: Task | None = None,
    *,
    budget: str,
    method: Method = "evolve",
    cost: Cost = "bytes",
    fitness: str = "kl",
    effort: Effort | None = None,
    where: Where | None = None,
    out: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    threads: int | None = None,
    workers: int = 1,
    cluster: str | None = None,
    examples: int | None = None,
    families: Sequence[float] = (),
    coding: artifact.Effort = "fast",
    resume: bool = False,
    force: bool = False,
    latency: bool = False,
    baselines: bool = False,
    source: Path | None = None,
    progress: Progress | None = None,
) -> SearchOutcome:
    """Search which level each weight (or part) of a model takes; the given model is not changed.

    Args:
        model: Trained model.
        levels: ``"bits"``, ``"sparsity"``, ``"rank"``, ``"mixed"``, ``"depth"``, or a YAML file;
            see :func:`laconic.search.levels.level_set`.
        task: Its training examples are calibrated, searched and judged on, in parts that share
            nothing; its test split is only measured on. Methods ``dp`` and ``uniform`` do without.
        budget: ``8x``, ``1.5MB`` or ``3.0bits`` on disk; ``70%`` zeros for sparsity, removed parts
            for depth, or what remains of ``cost``; ``40ms`` for ``cost="latency"``.
        method: ``evolve``, ``dp``, ``greedy``, ``random``, ``uniform``, ``owl`` or ``policy``.
        cost: What the budget counts: ``bytes`` on disk, ``macs``, or ``latency`` on this device.
        fitness: What is made small; see :func:`laconic.search.judge.make_judge`.
        effort: Length of the search.
        where: Which weights; all that have levels where None.
        out: Folder of the artefact; a temporary one that lives as long as the result if None.
        device: Where the work is done.
        seed: Seed of everything random.
        threads: CPU threads; those of the process if None.
        workers: Processes that judge candidates.
        cluster: Address of a Ray cluster, or ``"local"``.
        examples: Most documents or examples to search on.
        families: Also search each family of the levels alone, and all together, at these multiples
            of a budget in bytes, for curves at equal bytes.
        coding: Entropy coding of the artefact.
        resume: Go on where a killed search with the same arguments stopped.
        force: Replace ``out`` and what an unfinished run left.
        latency: Measure latency and peak memory of the result too.
        baselines: Also measure every uniform level, for the trade-off plot.
        source: Folder of the original Hugging Face model, for its tokenizer files.
        progress: Where progress is shown.

    Returns:
        The artefact with its report, the levels, and how they were found.

    Raises:
        BudgetError: The budget is outside what the levels can attain.
        ConfigError: Settings that do not go together, or no data to judge on.
    """
    goal, how = parse_goal(budget), effort or Effort()
    _check(levels, method, task)
    if families and (goal.kind != "bytes" or levels == "depth"):
        raise ConfigError("search: families are compared at equal bytes; give a size or a ratio.")
    with thread_count(threads):
        job: dict[str, Any] = {
            "levels": _told(levels), "budget": budget, "method": method, "cost": cost,
            "fitness": fitness, "effort": vars(how), "where": vars(where or Where()), "seed": seed,
            "device": device, "threads": torch.get_num_threads(), "examples": examples,
            "coding": coding, "task": describe_task(task), "families": list(families),
        }  # fmt: skip
        key = fingerprint(model, job, task)
        keep = TemporaryFolder() if out is None else None
        folder = keep.path / "artifact" if keep else Path(str(out))
        place = folder.parent / f".{folder.name}.work"
        if resume and is_finished(folder, key, force=force):
            if place.exists():  # killed between the last two moves
                WorkFolder(place, key, resume=True, force=force).remove()
            return opened(Result.open(folder, holder(folder, model, device), device=device))
        refuse_existing(folder, force=force)
        work = WorkFolder(place, key, resume=resume, force=force)
        try:
            searching = _Search(
                frozen(model, device), levels, task, work, how,
                {**job, "job": key}, progress or NullProgress(), tokenizer_files(source),
            )  # fmt: skip
            with open_fitness(searching, workers=workers, threads=threads, cluster=cluster) as fit:
                searching.find(fit)
        except LaconicError as error:
            if not isinstance(error, BackendError):
                work.remove()  # the same arguments end here again
            raise
        outcome = published(
            searching, folder, goal=goal, latency=latency, baselines=baselines, force=force,
            keep=keep,
        )  # fmt: skip
        work.remove()
        return outcome


def _check(levels: str, method: str, task: Task | None) -> None:
    if task is None and method not in _WITHOUT_DATA:
        raise ConfigError(
            f"search: method={method!r} judges candidates on data and there is none. Give --data "
            f"NAME or a Task, or one of {list(_WITHOUT_DATA)}, which read the table of errors."
        )
    if levels == "depth" and (method in ("uniform", "owl") or task is None):
        raise ConfigError(
            f"search: levels='depth' with method={method!r}"
            f"{' and without data' if task is None else ''} says nothing of which parts to remove. "
            "Give data and one of 'evolve', 'greedy', 'random', 'dp' or 'policy'."
        )


def _told(levels: str) -> str:
    """Return the levels as they fix the answer: the content of a file."""
    path = Path(levels)
    return path.read_text(encoding="utf-8") if path.is_file() else levels


@dataclass
class _Search:
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
        with _told_once() as said:
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
        return compared(self.problem, limits, self.builder, solve, judge)

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
    searching: _Search, *, workers: int, threads: int | None, cluster: str | None
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


@contextmanager
def _told_once() -> Iterator[list[str]]:
    """Give each warning of the block on once, and yield a list that then holds laconic's own."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield told
    once = {(str(w.message), w.category): w for w in said}
    told += [text for text, category in once if issubclass(category, LaconicWarning)]
    for w in once.values():
        warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
