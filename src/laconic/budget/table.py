"""Level tables: what each setting costs and spoils at each site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from laconic.errors import BudgetError, ConfigError
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
        costs: Whole bytes, (sites, levels), 0 or more.
        errors: What the level spoils, (sites, levels), 0 or more; added up over sites. Infinity
            marks a level that the site does not have.
        fixed_bytes: Bytes of the artefact that no level changes: norms, biases, manifest.

    Raises:
        ConfigError: Shapes, names or values that do not belong in a table; names the site.
    """

    def __init__(
        self,
        sites: Sequence[str],
        levels: Sequence[str],
        costs: ArrayLike,
        errors: ArrayLike,
        *,
        fixed_bytes: int = 0,
    ) -> None:
        self.sites, self.levels, self.fixed_bytes = tuple(sites), tuple(levels), int(fixed_bytes)
        self.costs = _whole(np.asarray(costs))
        self.errors: NDArray[np.float64] = np.array(errors, dtype=np.float64)
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
        for site, row, cost in zip(self.sites, self.errors, self.costs, strict=True):
            if np.isnan(row).any() or (row < 0).any() or (cost < 0).any():
                raise ConfigError(
                    f"level table: {site} has errors {row.tolist()} and costs {cost.tolist()}; "
                    "all must be 0 or more, and none NaN."
                )
            if np.isinf(row).all():
                raise ConfigError(f"level table: {site} has no level with a finite error.")

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
