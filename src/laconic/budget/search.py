"""What every search shares: how candidates are judged, and what a search found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from laconic.budget.sampler import Minibatch
from laconic.budget.table import Assignment, LevelTable
from laconic.errors import BudgetError, ConfigError
from laconic.files import write_atomic

Budget = int | Mapping[str, int]  # of the whole table, or of each group without fixed bytes
Choice = tuple[int, ...]
Stage = tuple[int, int]  # survivors, tokens


@runtime_checkable
class Fitness(Protocol):
    """Judges assignments: one number each, lower is better.

    The number of an assignment must not depend on what else is in the list, nor on what was
    judged before, so that work can be shared among processes and resumed.
    """

    def __call__(self, assignments: list[Assignment], minibatch: Minibatch, /) -> list[float]:
        """Return the fitness of each assignment on the documents of a minibatch."""
        ...


@dataclass(frozen=True)
class StageRecord:
    """One stage of one generation.

    Attributes:
        candidates: How many were judged.
        survivors: How many were kept.
        tokens: Tokens of the minibatch.
        spread: Largest less smallest fitness of those kept, or of those judged where one is kept.
        noise: Standard error of the difference between two candidates; None where not measured.
    """

    candidates: int
    survivors: int
    tokens: int
    spread: float
    noise: float | None = None


@dataclass(frozen=True)
class Generation:
    """The state after one generation.

    Attributes:
        number: 0 for the start, then 1, 2, ...
        choice: Levels of the parent.
        cost: Exact cost of it.
        fitness: Its fitness on the last minibatch it was judged on; NaN where it never was.
        changed: A new parent took over.
        evaluations: Assignments judged since the search began, over all stages.
        tokens: Tokens judged since the search began, over all assignments.
        stages: What each stage did.
    """

    number: int
    choice: Choice
    cost: int
    fitness: float
    changed: bool
    evaluations: int
    tokens: int
    stages: tuple[StageRecord, ...] = ()


@dataclass(frozen=True)
class SearchResult:
    """What a search found, and how it got there.

    Attributes:
        method: Name of the solver.
        assignment: The best levels; its ``cost`` is exact and keeps the budget.
        fitness: Its fitness when last judged; NaN where the solver judges nothing.
        history: A record for each generation, the start first.
        evaluations: Assignments judged.
        tokens: Tokens judged, over all assignments.
        seconds: Wall time, that before an interruption included.
        settings: What the search was run with.
        notes: What a reader must know, such as why the search ended early.
    """

    method: str
    assignment: Assignment
    fitness: float
    history: tuple[Generation, ...] = ()
    evaluations: int = 0
    tokens: int = 0
    seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def cost(self) -> int:
        """Exact cost of the assignment."""
        return self.assignment.cost

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON; numbers that are not finite become None."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchResult:
        """Return a result from :meth:`to_dict`'s plain values."""
        chosen = data["assignment"]
        return cls(
            **{
                **data,
                "assignment": Assignment(**{**chosen, "choice": tuple(chosen["choice"])}),
                "fitness": _number(data["fitness"]),
                "history": tuple(read_record(row) for row in data["history"]),
                "notes": tuple(data["notes"]),
            }
        )

    def save(self, path: Path) -> None:
        """Write the result as JSON."""
        write_atomic(path, json.dumps(self.to_dict(), indent=1) + "\n")


def to_plain(record: Any) -> dict[str, Any]:
    """Return a record's fields as plain values; numbers that are not finite become None."""
    plain: dict[str, Any] = _finite(asdict(record))
    return plain


def read_record(data: Mapping[str, Any]) -> Generation:
    """Return a generation from the plain values that :func:`to_plain` makes of it."""
    stages = tuple(
        StageRecord(**{**stage, "spread": _number(stage["spread"])}) for stage in data["stages"]
    )
    fitness, choice = _number(data["fitness"]), tuple(int(c) for c in data["choice"])
    return Generation(**{**data, "choice": choice, "fitness": fitness, "stages": stages})


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _number(value: float | None) -> float:
    return nan if value is None else float(value)


def limits_of(table: LevelTable, budget: Budget) -> dict[str | None, tuple[list[int], int]]:
    """Return the sites that share a budget and what they may cost, by group; None is the table.

    Raises:
        BudgetError: The budget is outside what the table can attain; both ends are told.
        ConfigError: A budget by group names other groups than the table has.
    """
    if not isinstance(budget, Mapping):
        everyone = list(range(len(table.sites)))
        return {None: (everyone, _attainable(table, everyone, int(budget), table.fixed_bytes))}
    groups = sorted(set(table.groups or ()))
    if sorted(budget) != groups or not groups:
        raise ConfigError(
            f"budget by group: got {sorted(budget)}, the table has the groups {groups}. Name each "
            "of them, or give one budget for all."
        )
    limits: dict[str | None, tuple[list[int], int]] = {}
    for group in groups:
        members = table.members(group)
        limits[group] = members, _attainable(table, members, int(budget[group]), 0, group)
    return limits


def _attainable(
    table: LevelTable, sites: Sequence[int], budget: int, fixed: int, group: str = ""
) -> int:
    """Return what is left of a budget for sites, or raise where it cannot be reached."""
    ladders = [table.costs[site, table.available(site)] for site in sites]
    low, high = (fixed + sum(int(ladder[end]) for ladder in ladders) for end in (0, -1))
    if not low <= budget <= high:
        where = f" of group {group!r}" if group else ""
        raise BudgetError(
            f"budget{where} {table.tell(budget)} is outside what the levels can attain, "
            f"{table.tell(low)} to {table.tell(high)} ({low} to {high}). Choose one within, or "
            "add smaller or larger levels."
        )
    return budget - fixed
