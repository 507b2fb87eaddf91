"""Publish what a search found: the artefact, its report, the assignment, and how it was found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from laconic import artifact, measure
from laconic.budget import SearchResult, uniform_assignments
from laconic.budget.table import Assignment
from laconic.errors import ArtifactError
from laconic.files import write_atomic
from laconic.outcome import build_report, compacted
from laconic.recipe import Recipe
from laconic.report.searched import render_search
from laconic.result import Result, TemporaryFolder
from laconic.runner import Run, attach, frozen
from laconic.search.families import curves
from laconic.search.goal import Goal
from laconic.search.problem import as_json, budget_text
from laconic.weights.quantize.round_to_nearest import RoundToNearest

if TYPE_CHECKING:
    from laconic.search.state import Searching

ASSIGNMENT, HISTORY, PAGE = "assignment.json", "search.json", "search.html"


@dataclass(frozen=True)
class SearchOutcome:
    """What a search ends in.

    Attributes:
        result: The artefact with its report, as :func:`laconic.compress` returns it.
        assignment: Level of each unit by name.
        reason: Whether the winner or a uniform baseline was taken, and why.
        is_uniform: A baseline was better on held-out data and is what was built.
        held_out: Held-out fitness of the winner, the baselines, and of what was built.
        found: What the solver did.
        details: All of ``search.json``.
    """

    result: Result
    assignment: dict[str, str]
    reason: str
    is_uniform: bool
    held_out: dict[str, float]
    found: SearchResult
    details: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The artefact."""
        return self.result.folder


def opened(result: Result) -> SearchOutcome:
    """Return the outcome of a search that is complete, from its folder.

    Raises:
        ArtifactError: The folder does not hold one.
    """
    try:
        details = json.loads((result.folder / HISTORY).read_text(encoding="utf-8"))
        levels = json.loads((result.folder / ASSIGNMENT).read_text(encoding="utf-8"))
        return SearchOutcome(
            result, levels["assignment"], details["reason"], details["is_uniform"],
            details["held_out"], SearchResult.from_dict(details["search"]), details,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            HISTORY, f"this folder was not written by laconic search ({error})"
        ) from error


def published(
    searching: Searching,
    folder: Path,
    *,
    goal: Goal,
    latency: bool,
    baselines: bool,
    force: bool,
    keep: TemporaryFolder | None,
) -> SearchOutcome:
    """Build the final artefact, measure it, and publish it with its pages in one step."""
    run = _run_of(searching)
    problem, final = searching.problem, searching.final
    size = searching.builder.save(problem, final.choice, "built")
    built = searching.work.model_path("built")
    run.model = artifact.load(
        built, model=frozen(searching.model, run.device), device=run.device, kernels="exact"
    )
    attach(run)
    run.budget_bytes = problem.bytes_limit
    run.steps = _steps(searching, size)
    run.notes += _notes(searching)
    deployed = compacted(run, built)
    loaded = artifact.load(built, model=frozen(searching.model, run.device), device=run.device)
    report = build_report(
        run, built, loaded, budget=goal.text, latency=latency, baselines=False, deployed=deployed
    )
    report["name"], report["recipe"] = searching.name, dict(searching.recipe)
    report["commands"] = [f"laconic {verb} {folder.name}" for verb in ("verify", "inspect")]
    report["provenance"] = {
        **searching.provenance, "budget": goal.text, "job": searching.job["job"],
    }  # fmt: skip
    if baselines and searching.task is not None and problem.kind != "depth":
        report["trade_off"] = _trade_off(searching, report)
    details = json.loads(_json(_details(searching, final, report)))  # as the file has it
    write_atomic(deployed / ASSIGNMENT, _json(_assignment(searching, final)))
    write_atomic(deployed / HISTORY, _json(details))
    write_atomic(deployed / PAGE, render_search(details, curves(searching.points)))
    if deployed != built:
        loaded = artifact.load(deployed, device=run.device)
    result = Result.publish(deployed, folder, report, model=loaded, force=force, keep=keep)
    return SearchOutcome(
        result, problem.table.named(final), details["reason"], details["is_uniform"],
        details["held_out"], searching.found, details,
    )  # fmt: skip


def _run_of(searching: Searching) -> Run:
    """Return the run that the report is made of; its recipe only names the search."""
    run = Run(
        original=searching.model,
        model=frozen(searching.model, searching.job["device"]),
        recipe=Recipe(
            steps=(RoundToNearest(),), name=searching.name, coding=_coding(searching.job["coding"])
        ),
        task=searching.task,
        work=searching.work,
        device=searching.job["device"],
        seed=searching.job["seed"],
        progress=searching.progress,
        architecture=searching.builder.architecture,
        provenance=dict(searching.provenance),
        extra_files=searching.extra_files,
    )
    attach(run)
    return run


def _coding(effort: str) -> Any:
    return "smallest" if effort == "smallest" else "fast"


def _steps(searching: Searching, size: int) -> list[dict[str, Any]]:
    found, quality = searching.found, None
    if searching.task is not None:
        model = searching.builder.build(searching.problem.units, searching.final.choice)
        quality = measure.evaluate(model, searching.task, device=searching.job["device"])
    return [
        {"step": "levels", "seconds": round(searching.seconds["levels"], 3)},
        {
            "step": f"search: {found.method}",
            "seconds": round(found.seconds, 3),
            "bytes_after": size,
            "metrics_after": quality,
            "evaluations": found.evaluations,
            "tokens": found.tokens,
        },
    ]


def _notes(searching: Searching) -> list[str]:
    return [*searching.notes, *searching.found.notes, searching.judged.reason]


def _assignment(searching: Searching, final: Assignment) -> dict[str, Any]:
    problem = searching.problem
    return {
        "levels": problem.kind,
        "budget": searching.job["budget"],
        "cost": final.cost,
        "unit": problem.table.unit,
        "assignment": problem.table.named(final),
    }


def _details(searching: Searching, final: Assignment, report: dict[str, Any]) -> dict[str, Any]:
    problem, judged = searching.problem, searching.judged
    table = problem.table
    return {
        "name": searching.name,
        "job": {k: v for k, v in searching.job.items() if k not in ("job", "levels")},
        "levels": list(table.levels),
        "families": list(problem.levels.families) if problem.levels else [],
        "budget": {"asked": searching.job["budget"], "limit": as_json(problem.budget),
                   "words": budget_text(problem)},
        "unit": table.unit,
        "cost": final.cost,
        "bytes": report["compressed"]["bytes"],
        "bytes_original": report["original"]["bytes"],
        "reason": judged.reason,
        "is_uniform": judged.is_uniform,
        "held_out": judged.fitness,
        "units": [
            {
                "name": name,
                "level": table.levels[level],
                "cost": int(table.costs[row, level]),
                "error": float(table.errors[row, level]) if table.has_errors else None,
                "has": [bool(isfinite(e)) for e in table.errors[row]],
            }
            for row, (name, level) in enumerate(zip(table.sites, final.choice, strict=True))
        ],
        "points": [{**vars(point), "choice": list(point.choice)} for point in searching.points],
        "seconds": {key: round(value, 3) for key, value in searching.seconds.items()},
        "search": searching.found.to_dict(),
    }  # fmt: skip


def _trade_off(searching: Searching, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the points of the plot: the original, uniform levels, and what was found."""
    task, problem = searching.task, searching.problem
    if task is None:
        return []
    points = [
        {"name": "original", "kind": "original", "bytes": report["original"]["bytes"],
         "metrics": report["original"]["metrics"]},
    ]  # fmt: skip
    for given in uniform_assignments(problem.table, problem.table.attainable()[1]):
        size = searching.builder.save(problem, given.choice, "trial")
        model = searching.builder.build(problem.units, given.choice)
        with torch.no_grad():
            metrics = measure.evaluate(model, task, device=searching.job["device"])
        name = problem.table.levels[given.choice[0]]
        points.append({"name": name, "kind": "uniform", "bytes": size, "metrics": metrics})
    points.append(
        {"name": "search", "kind": "compressed", "bytes": report["compressed"]["bytes"],
         "metrics": report["compressed"]["metrics"]}
    )  # fmt: skip
    return points


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1) + "\n"
