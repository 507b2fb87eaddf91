"""The table of how sparse weights are, for inspect and doctor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from laconic.measure import Sparsity


def sparsity_table(measured: Sequence[tuple[str, Sparsity]]) -> Table:
    """Return a table with a row a weight; its title says what makes the figures comparable."""
    from laconic.measure import retain_bound
    from laconic.report import words
    from laconic.report.terminal import plain_table

    rows = []
    for name, found in measured:
        bound = int(retain_bound(found.pqi, found.survivors, found.p, found.q))
        free = 1 - bound / found.survivors if found.survivors else 0.0
        rows.append(
            [
                name,
                f"{found.survivors:,}",
                f"{found.zeros:,}",
                words.number(found.pqi),
                words.percent(free),
                words.number(found.gini),
                words.number(found.hoyer),
            ]
        )
    p, q = (measured[0][1].p, measured[0][1].q) if measured else (0.5, 1.0)
    title = f"Sparsity of what is kept, layer by layer (p = {p:g}, q = {q:g}; zeros are counted)"
    headings = ["weight", "survivors", "of them zero", "PQ Index", "free by it", "Gini", "Hoyer"]
    return plain_table(title, headings, rows, text_columns=1)
