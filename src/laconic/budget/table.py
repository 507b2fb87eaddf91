"""Level tables: what each setting costs and spoils at each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from laconic.budget.groups import GroupRule, group_labels
from laconic.errors import BudgetError, ConfigError, nearest
from laconic.units import format_bytes


@dataclass(frozen=True)
class Assignment:
    """One level for every site.

    Attributes:
        choice: Index of the level, a site each, in the table's order.
        cost: Bytes by the table, those that are fixed included.
        error: Sum of the sites' errors by the table.
        slack_bytes: 0 where the solver is exact; else no assignment that fits a budget smaller
            by this much has a lower error.
    """

    choice: tuple[int, ...]
    cost: int
    error: float
    slack_bytes: int = 0


class LevelTable:
    """Sites by levels, with the bytes and the error of each pair.

    Args:
        sites: Names, each once.
        levels: Names of the levels, the same list for every site.
        costs: Whole bytes (or whatever ``unit`` says), (sites, levels), 0 or more.
        errors: What the level spoils, (sites, levels), 0 or more; added up over sites. Infinity
            marks a level that the site does not have. None: nothing is known, every level is
            there, and only solvers that judge whole assignments can work on the table.
        fixed_bytes: Bytes of the artefact that no level changes: norms, biases, manifest.
        groups: A label for each site: searches keep the cost of every group, as they switch
            levels only between sites of one group. None: they keep the total below the budget.
        unit: What costs count, for messages: ``"bytes"``, ``"weights"``, ``"MACs"``.

    Raises:
        ConfigError: Shapes, names or values that do not belong in a table; names the site.
    """

    def __init__(
        self,
        sites: Sequence[str],
        levels: Sequence[str],
        costs: ArrayLike,
        errors: ArrayLike | None = None,
        *,
        fixed_bytes: int = 0,
        groups: Sequence[str] | None = None,
        unit: str = "bytes",
    ) -> None:
        self.sites, self.levels, self.fixed_bytes = tuple(sites), tuple(levels), int(fixed_bytes)
        self.costs = _whole(np.asarray(costs))
        self.has_errors, self.unit = errors is not None, unit
        known = np.zeros(self.costs.shape) if errors is None else errors
        self.errors: NDArray[np.float64] = np.array(known, dtype=np.float64)
        self.groups = None if groups is None else tuple(groups)
        self._check()
        for array in (self.costs, self.errors):
            array.setflags(write=False)

    def _check(self) -> None:
        shape = (len(self.sites), len(self.levels))
        for name, array in (("costs", self.costs), ("errors", self.errors)):
            if array.shape != shape or not all(shape):
                raise ConfigError(
                    f"level table: {name} has shape {array.shape}; it must be (sites, levels) "
                    f"= {shape}, with at least one of each."
                )
        if len(set(self.sites)) != len(self.sites) or len(set(self.levels)) != len(self.levels):
            raise ConfigError("level table: a site or a level is named twice.")
        if self.fixed_bytes < 0:
            raise ConfigError(f"level table: fixed_bytes={self.fixed_bytes} must be at least 0.")
        if self.groups is not None and len(self.groups) != len(self.sites):
            raise ConfigError(
                f"level table: {len(self.groups)} groups for {len(self.sites)} sites; give one "
                "label a site."
            )
        for site, row, cost in zip(self.sites, self.errors, self.costs, strict=True):
            if np.isnan(row).any() or (row < 0).any() or (cost < 0).any():
                raise ConfigError(
                    f"level table: {site} has errors {row.tolist()} and costs {cost.tolist()}; "
                    "all must be 0 or more, and none NaN."
                )
            if np.isinf(row).all():
                raise ConfigError(f"level table: {site} has no level with a finite error.")

    def grouped(self, rule: GroupRule) -> LevelTable:
        """Return the table with its sites grouped, so that switches within a group are exact.

        Args:
            rule: ``"size"`` groups sites whose levels are the same numbers of ``unit`` apart,
                ``"name"`` those that also have the same path but for its numbers, ``"none"``
                takes groups away.
        """
        return self._copy(groups=group_labels(self.sites, self._ladders(), rule))

    def only(self, levels: Sequence[str]) -> LevelTable:
        """Return the table with some of its levels: a family of a mixed table.

        Raises:
            ConfigError: Unknown level, or a site has none of them.
        """
        kept = np.array([self.level_index(name) for name in levels], dtype=np.int64)
        errors = self.errors[:, kept]
        bare = np.flatnonzero(np.isinf(errors).all(axis=1))
        if len(bare):
            raise ConfigError(
                f"level table: {self.sites[bare[0]]} has none of the levels {list(levels)}."
            )
        return self._copy(levels=tuple(levels), costs=self.costs[:, kept], errors=errors)

    def without_errors(self) -> LevelTable:
        """Return the table with its errors forgotten; levels that are missing stay so."""
        copy = self._copy(errors=np.where(np.isinf(self.errors), np.inf, 0.0))
        copy.has_errors = False
        return copy

    def take(self, sites: Sequence[int]) -> LevelTable:
        """Return the table of some sites, by their rows, without fixed bytes."""
        rows = np.asarray(sites, dtype=np.int64)
        return self._copy(
            sites=[self.sites[site] for site in sites],
            costs=self.costs[rows],
            errors=self.errors[rows],
            fixed_bytes=0,
            groups=None if self.groups is None else [self.groups[site] for site in sites],
        )

    def _copy(self, **changes: Any) -> LevelTable:
        """Return a table with some arguments changed; illegal levels stay illegal."""
        given = {
            "sites": self.sites, "levels": self.levels, "costs": self.costs,
            "errors": self.errors, "fixed_bytes": self.fixed_bytes, "groups": self.groups,
            "unit": self.unit, **changes,
        }  # fmt: skip
        copy = LevelTable(**given)
        copy.has_errors = self.has_errors
        return copy

    def _ladders(self) -> list[NDArray[np.int64]]:
        return [self.costs[site, self.available(site)] for site in range(len(self.sites))]

    def site_index(self, name: str) -> int:
        """Return the row of a site; ConfigError with the nearest name where there is none."""
        return _index(name, self.sites, "site")

    def level_index(self, name: str) -> int:
        """Return the column of a level; ConfigError with the nearest name where there is none."""
        return _index(name, self.levels, "level")

    def members(self, group: str) -> list[int]:
        """Return the rows of the sites of a group."""
        return [site for site, label in enumerate(self.groups or ()) if label == group]

    def available(self, site: int) -> NDArray[np.int64]:
        """Return the indices of a site's levels by rising cost, then rising error."""
        found = np.flatnonzero(np.isfinite(self.errors[site]))
        order = np.lexsort((self.errors[site, found], self.costs[site, found]))
        return found[order].astype(np.int64)

    def front(self, site: int) -> list[int]:
        """Return a site's levels that no other beats: rising cost, strictly falling error."""
        kept: list[int] = []
        for level in self.available(site):
            if not kept or self.errors[site, level] < self.errors[site, kept[-1]]:
                kept.append(int(level))
        return kept

    def neighbours(self, site: int, level: int) -> tuple[int | None, int | None]:
        """Return the levels one step down and one step up in cost; None where there is none."""
        ladder = [int(index) for index in self.available(site)]
        if level not in ladder:
            raise ConfigError(
                f"level table: {self.sites[site]} has no level {self.levels[level]!r}."
            )
        place = ladder.index(level)
        down = ladder[place - 1] if place else None
        return down, ladder[place + 1] if place + 1 < len(ladder) else None

    def attainable(self) -> tuple[int, int]:
        """Return the least and the greatest cost of any assignment, fixed bytes included."""
        ladders = self._ladders()
        low, high = (sum(int(ladder[end]) for ladder in ladders) for end in (0, -1))
        return self.fixed_bytes + low, self.fixed_bytes + high

    def is_legal(self, choice: Sequence[int]) -> bool:
        """Return whether every site has the level chosen for it."""
        return len(choice) == len(self.sites) and all(
            0 <= level < len(self.levels) and np.isfinite(self.errors[site, level])
            for site, level in enumerate(choice)
        )

    def assignment(self, choice: Sequence[int], *, slack_bytes: int = 0) -> Assignment:
        """Return a choice of levels with its cost and error."""
        if len(choice) != len(self.sites):
            raise ConfigError(f"level table: {len(choice)} levels for {len(self.sites)} sites.")
        rows = np.arange(len(self.sites))
        picked = np.asarray(choice, dtype=np.int64)
        cost = self.fixed_bytes + int(self.costs[rows, picked].sum())
        error = float(self.errors[rows, picked].sum())
        return Assignment(tuple(int(c) for c in choice), cost, error, slack_bytes)

    def named(self, assignment: Assignment) -> dict[str, str]:
        """Return the level's name for each site's name."""
        names = (self.levels[index] for index in assignment.choice)
        return dict(zip(self.sites, names, strict=True))

    def from_names(self, names: Mapping[str, str]) -> Assignment:
        """Return the assignment of level names by site names, as :meth:`named` gives it.

        Raises:
            ConfigError: Unknown site or level (with the nearest name), a site is missing, or it
                does not have the level.
        """
        for name in names:
            self.site_index(name)
        missing = [name for name in self.sites if name not in names]
        if missing:
            raise ConfigError(f"level table: no level is given for {missing[0]}.")
        choice = [self.level_index(names[name]) for name in self.sites]
        for site, level in enumerate(choice):
            self.neighbours(site, level)  # refuses a level that the site does not have
        return self.assignment(choice)

    def tell(self, cost: float) -> str:
        """Return a cost in words, with its unit."""
        return format_bytes(cost) if self.unit == "bytes" else f"{cost:g} {self.unit}"


def _index(name: str, known: tuple[str, ...], noun: str) -> int:
    if name not in known:
        raise ConfigError(f"level table: no {noun} {name!r}.{nearest(name, known)}")
    return known.index(name)


def _whole(costs: NDArray[Any]) -> NDArray[np.int64]:
    if costs.dtype.kind not in "iu":
        raise ConfigError(f"level table: costs must be whole bytes, got {costs.dtype}.")
    return np.array(costs, dtype=np.int64)


def too_small(budget_bytes: int, smallest_bytes: int, fixed_bytes: int) -> BudgetError:
    """Return the error for a budget below the smallest size that can be reached."""
    return BudgetError(
        f"budget {format_bytes(budget_bytes)} ({budget_bytes} B) is below the smallest size that "
        f"can be reached here, {format_bytes(smallest_bytes)} ({smallest_bytes} B), of which "
        f"{format_bytes(fixed_bytes)} (norms, biases and whatever no step selects) are not "
        "compressible. Raise the budget, widen the scope of the steps or add smaller levels."
    )
