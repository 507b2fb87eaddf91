"""Families of a mixed table beside each other, and all of them mixed, at the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from laconic.budget import LevelTable, SearchResult
from laconic.budget.table import Assignment
from laconic.errors import BudgetError
from laconic.search.builder import Builder
from laconic.search.problem import Problem

_FALLBACK = "bits"  # what a site takes that has no level of a family, such as an embedding
MIXED = "mixed"
Solve = Callable[[Problem, Sequence[Assignment]], SearchResult]
Judge = Callable[[Assignment], float]
Report = Callable[[Assignment], "dict[str, float] | None"]


@dataclass(frozen=True)
class Point:
    """What one family comes to at one budget.

    Attributes:
        family: Name of the family, or ``mixed``.
        limit: Most bytes on disk.
        bytes: Measured bytes of the artefact.
        held_out: Held-out fitness; lower is better.
        choice: Levels.
        test_kl: KL divergence from the original on the test split, with its interval.
    """

    family: str
    limit: int
    bytes: int
    held_out: float
    choice: tuple[int, ...]
    test_kl: dict[str, float] | None = None


def families_of(problem: Problem) -> list[str]:
    """Return the families of a table that can stand alone: not the one of a single level."""
    told = problem.levels.families if problem.levels else ()
    counts = {name: told.count(name) for name in dict.fromkeys(told)}
    return [name for name, count in counts.items() if count > 1]


def restricted(problem: Problem, family: str) -> LevelTable:
    """Return the table with the levels of one family; sites that have none keep their bits."""
    table = problem.table
    if problem.levels is None or family == MIXED:
        return table
    own = np.array([name == family for name in problem.levels.families])
    spare = np.array([name == _FALLBACK for name in problem.levels.families])
    errors = table.errors.copy()
    for row in errors:
        kept = own if np.isfinite(row[own]).any() else spare
        row[~kept] = np.inf
    return LevelTable(
        table.sites, table.levels, table.costs, errors, fixed_bytes=table.fixed_bytes,
        groups=table.groups, unit=table.unit,
    )  # fmt: skip


def compared(
    problem: Problem,
    limits: Sequence[int],
    builder: Builder,
    solve: Solve,
    judge: Judge,
    report: Report,
) -> list[Point]:
    """Search each family and the whole table at each budget, with the same effort.

    The whole table begins with what the families found, too. A family that cannot reach a
    budget has no point there.

    Args:
        problem: A table of bytes.
        limits: Budgets in bytes on disk.
        builder: Measures what is on disk.
        solve: Searches a problem; its second argument are assignments to begin with.
        judge: Held-out fitness of an assignment.
        report: Test KL of an assignment.
    """
    points: list[Point] = []
    for limit in limits:
        found: list[Assignment] = []
        for family in (*families_of(problem), MIXED):
            part = replace(problem, table=restricted(problem, family), bytes_limit=limit)
            low, high = part.table.attainable()
            part.budget = min(limit, high)
            if limit < low:
                continue
            try:
                winner = solve(part, found if family == MIXED else ()).assignment
                settled, _ = builder.settle(part, winner)
            except BudgetError:  # entropy coding or the manifest take it above the limit
                continue
            size = builder.measure(problem)(settled.choice)
            points.append(
                Point(family, limit, size, judge(settled), settled.choice, report(settled))
            )
            if winner.cost <= min(limit, problem.table.attainable()[1]):
                found.append(winner)
    return points


def curves(points: Sequence[Point]) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return held-out fitness over bytes for each family, by rising bytes; mixed first."""
    names = sorted({point.family for point in points}, key=lambda name: (name != MIXED, name))
    return [
        (
            name,
            sorted((float(p.bytes), p.held_out) for p in points if p.family == name),
        )
        for name in names
    ]
