"""Several reports beside each other, with a plain word on whether their bytes are equal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from laconic.errors import ConfigError
from laconic.report import words
from laconic.report.model import Figures, Report, parse
from laconic.report.tradeoff import Mark

EQUAL_WITHIN = 0.02  # sizes this close count as equal bytes
STYLES = 6


@dataclass(frozen=True)
class Run:
    """One row of a comparison."""

    name: str
    recipe: str
    figures: Figures
    ratio: float | None
    style: str


@dataclass(frozen=True)
class Comparison:
    """What a comparison shows.

    Attributes:
        runs: One row a report, best quality first where sizes are equal, else smallest first.
        original: The common original; None where the reports have different ones.
        metric: The metric compared; None where no report has one.
        equal_bytes: Whether all sizes lie within ``EQUAL_WITHIN`` of each other.
        sentence: What the table may be read as.
        marks: Points of the plot.
    """

    runs: tuple[Run, ...]
    original: Figures | None
    metric: str | None
    equal_bytes: bool
    sentence: str
    marks: tuple[Mark, ...]


def comparison(reports: Mapping[str, Mapping[str, Any] | Report]) -> Comparison:
    """Set reports beside each other.

    Raises:
        ConfigError: Fewer than two reports, or one does not fit the definition.
    """
    if len(reports) < 2:
        raise ConfigError(f"compare: got {len(reports)} report(s); give at least two folders.")
    checked = {name: parse(report) for name, report in reports.items()}
    metric = next((m for r in checked.values() if (m := words.primary(r))), None)
    runs = [
        Run(name, _recipe_name(r), r.compressed, words.ratio_of(r), f"run-{i % STYLES}")
        for i, (name, r) in enumerate(checked.items())
    ]
    originals = [r.original for r in checked.values()]
    same = all(o.bytes == originals[0].bytes for o in originals)
    equal, sentence = _equal_bytes(runs)
    if not same:
        sentence += " The originals differ: these are not runs of one model."
    ordered = tuple(sorted(runs, key=lambda run: _order(run, metric, equal)))
    original = originals[0] if same else None
    return Comparison(ordered, original, metric, equal, sentence, _marks(ordered, original, metric))


def _recipe_name(report: Report) -> str:
    return str((report.recipe or {}).get("name", "recipe"))


def _equal_bytes(runs: list[Run]) -> tuple[bool, str]:
    sizes = [run.figures.bytes for run in runs if run.figures.bytes]
    if len(sizes) < len(runs):
        return (
            False,
            "The size of some was not measured, so quality is not compared at equal bytes.",
        )
    apart = max(sizes) / min(sizes) - 1
    if apart <= EQUAL_WITHIN:
        return True, f"At equal bytes: the sizes lie within {words.percent(apart)} of each other."
    return False, (
        f"Not at equal bytes: the largest is {words.percent(apart)} above the smallest. Read the "
        "plot, not one column; give every run the same --budget to compare at equal bytes."
    )


def _order(run: Run, metric: str | None, equal: bool) -> tuple[float, float]:
    held = float(run.figures.bytes or math.inf)
    value = run.figures.metric(metric) if metric else None
    if not equal or metric is None:
        return (held, 0.0)
    if value is None:
        return (math.inf, held)
    return (-value.value if words.higher_is_better(metric) else value.value, held)


def _marks(runs: tuple[Run, ...], original: Figures | None, metric: str | None) -> tuple[Mark, ...]:
    rows = [("original", "original", original)] if original else []
    rows += [(run.name, run.style, run.figures) for run in runs]
    marks = []
    for name, style, figures in rows:
        value = figures.metric(metric) if metric else None
        if value is not None and figures.bytes and math.isfinite(value.value):
            marks.append(Mark(name, style, figures.bytes, value))
    return tuple(marks)
