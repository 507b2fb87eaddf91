"""Move an assignment to a limit by the table: the least that keeps it, and what then fits."""

from __future__ import annotations

from collections.abc import Sequence

from laconic.budget import Assignment, LevelTable
from laconic.budget.table import too_small


def adjusted(table: LevelTable, choice: Sequence[int], limit: int) -> Assignment:
    """Return an assignment near ``choice`` that costs at most ``limit``.

    Sites go down where a unit of cost spoils least by the table until the limit holds; where
    it holds from the start, sites go up where a unit of cost mends most, as far as it lasts.

    Raises:
        BudgetError: Even the cheapest levels cost more.
    """
    held = list(choice)
    cost = table.assignment(held).cost
    least = table.attainable()[0]
    if limit < least:
        raise too_small(limit, least, table.fixed_bytes)
    down = cost > limit
    while True:
        moves = [m for site in range(len(held)) for m in _moves(table, held, site, down=down)]
        if not down:
            moves = [move for move in moves if cost + move[1] <= limit]
        if not moves or (down and cost <= limit):
            return table.assignment(held)
        _, price, site, level = min(moves)
        held[site], cost = level, cost + price


def _moves(
    table: LevelTable, held: Sequence[int], site: int, *, down: bool
) -> list[tuple[float, int, int, int]]:
    """Return rank, price, site and level of what is cheaper, or of what is dearer and better."""
    now = held[site]
    found = []
    for level in table.available(site):
        price = int(table.costs[site, level] - table.costs[site, now])
        gain = float(table.errors[site, now] - table.errors[site, level])
        if (down and price < 0) or (not down and price > 0 and gain > 0):
            found.append((-gain / abs(price), price, site, int(level)))
    return found
