"""Meet a budget in bytes of the real artefact, not of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from laconic.budget.solve import dynamic_programme, smallest
from laconic.budget.table import Assignment, LevelTable, too_small
from laconic.errors import ConfigError
from laconic.units import format_bytes

Measure = Callable[[Assignment], int]
Solver = Callable[[LevelTable, int], Assignment]


@dataclass(frozen=True)
class Met:
    """An assignment whose real size keeps the budget.

    Attributes:
        assignment: The levels.
        real_bytes: Measured size; at most the budget.
        trials: Number of sizes that were measured.
        reason: Why the size is more than the tolerance below the budget; None where it is not.
    """

    assignment: Assignment
    real_bytes: int
    trials: int
    reason: str | None = None


def meet(
    budget_bytes: int,
    measure: Measure,
    table: LevelTable,
    *,
    solve: Solver = dynamic_programme,
    tolerance: float = 0.01,
    max_trials: int = 16,
) -> Met:
    """Find levels whose measured size is at most the budget and close below it.

    The table's costs are a prediction; entropy coding, alignment and manifests move the real
    size. The solver is given a corrected limit until the measured size fits, between the
    largest limit that fitted and the smallest that did not; what is left of the gap is spent on
    single sites.

    Args:
        budget_bytes: Limit of the measured size.
        measure: Measured size of an assignment, in bytes; called once for each assignment.
        table: Predicted costs and errors.
        solve: Picks an assignment for a limit of predicted bytes.
        tolerance: Gap below the budget, as a share of it, that counts as met.
        max_trials: Sizes to measure at most; one more where only the smallest assignment fits.

    Raises:
        BudgetError: Even the smallest assignment measures more than the budget.
        ConfigError: ``tolerance`` or ``max_trials`` is out of its range.
    """
    if not 0 <= tolerance < 1 or max_trials < 2:
        raise ConfigError(
            f"meet: tolerance={tolerance} must be in [0, 1), max_trials={max_trials} at least 2."
        )
    search = _Search(budget_bytes, measure, table, solve, tolerance, max_trials)
    search.bisect()
    search.fill()
    return search.result()


@dataclass
class _Search:
    budget_bytes: int
    measure: Measure
    table: LevelTable
    solve: Solver
    tolerance: float
    max_trials: int
    sizes: dict[tuple[int, ...], int] = field(default_factory=dict)
    best: Assignment | None = None

    def try_(self, assignment: Assignment) -> int:
        """Measure an assignment once and keep it where it is the best that fits."""
        size = self.sizes.get(assignment.choice)
        if size is None:
            size = self.sizes[assignment.choice] = int(self.measure(assignment))
        fits = size <= self.budget_bytes
        if fits and (self.best is None or _rank(assignment) < _rank(self.best)):
            self.best = assignment
        return size

    @property
    def exhausted(self) -> bool:
        return len(self.sizes) >= self.max_trials

    @property
    def close(self) -> bool:
        if self.best is None:
            return False
        gap = self.budget_bytes - self.sizes[self.best.choice]
        return gap <= self.tolerance * self.budget_bytes

    def bisect(self) -> None:
        """Narrow the solver's limit from both sides until the size is close."""
        least = smallest(self.table)
        largest = self.largest()
        low, high = least.cost, largest.cost + 1  # high: first limit known or taken not to fit
        limit = min(max(self.budget_bytes, low), largest.cost)
        for _ in range(4 * self.max_trials):
            assignment = self.solve(self.table, limit)
            size = self.try_(assignment)
            if size <= self.budget_bytes:
                low = limit
            else:
                high = min(limit, assignment.cost)
            if self.close or self.exhausted or high - low <= 1:
                break
            limit += self.budget_bytes - size
            if not low < limit < high:
                limit = (low + high) // 2
        if self.best is None and self.try_(least) > self.budget_bytes:
            fixed = self.sizes[least.choice] - (least.cost - self.table.fixed_bytes)
            raise too_small(self.budget_bytes, self.sizes[least.choice], max(fixed, 0))

    def fill(self) -> None:
        """Spend what is left on single sites, most error per byte first."""
        refused: set[tuple[int, ...]] = set()
        while self.best is not None and not self.close and not self.exhausted:
            upgrades = [a for a in self.upgrades(self.best) if a.choice not in refused]
            if not upgrades:
                break
            if self.try_(upgrades[0]) > self.budget_bytes:
                refused.add(upgrades[0].choice)

    def upgrades(self, base: Assignment) -> list[Assignment]:
        """Return what one better site makes of an assignment, if predicted to fit the gap."""
        gap = self.budget_bytes - self.sizes[base.choice]
        found: list[tuple[float, Assignment]] = []
        for site, level in enumerate(base.choice):
            for other in self.table.front(site):
                price = int(self.table.costs[site, other] - self.table.costs[site, level])
                gain = float(self.table.errors[site, level] - self.table.errors[site, other])
                if gain > 0 and price <= gap:
                    choice = (*base.choice[:site], other, *base.choice[site + 1 :])
                    found.append((-gain / max(price, 1), self.table.assignment(choice)))
        return [assignment for _, assignment in sorted(found, key=lambda pair: pair[0])]

    def largest(self) -> Assignment:
        """Return the assignment of least error whatever it costs."""
        return self.table.assignment(
            [self.table.front(site)[-1] for site in range(len(self.table.sites))]
        )

    def result(self) -> Met:
        if self.best is None:
            raise too_small(self.budget_bytes, min(self.sizes.values()), self.table.fixed_bytes)
        size = self.sizes[self.best.choice]
        return Met(self.best, size, len(self.sizes), None if self.close else self.reason(size))

    def reason(self, size: int) -> str:
        """Say why the size stays further below the budget than the tolerance."""
        gap = f"{format_bytes(size)} of {format_bytes(self.budget_bytes)} are used"
        if self.best is not None and self.best.error <= self.largest().error:
            return f"{gap}: every site is at its best level; there is nothing left to spend on."
        above = [s for s in self.sizes.values() if s > self.budget_bytes]
        if self.exhausted:
            return f"{gap}: stopped after measuring {len(self.sizes)} assignments."
        over = f" (measured: {format_bytes(min(above))})" if above else ""
        return f"{gap}: the next better assignment does not fit{over}."


def _rank(assignment: Assignment) -> tuple[float, int]:
    return assignment.error, assignment.cost
