"""What the page shows, worked out before the template: texts, bar widths, rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from laconic.report import words
from laconic.report.model import Report, SiteRow, StepRow

MOST_BARS = 40


@dataclass(frozen=True)
class Tile:
    """One tile of the headline."""

    title: str
    before: str
    after: str
    note: str
    before_interval: str = ""
    after_interval: str = ""
    figure: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Bar:
    """One row of the per-layer chart; shares are percent of the widest bar."""

    name: str
    original: str
    stored: str
    original_share: float
    stored_share: float
    error: str
    error_share: float


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is shown and what sorting compares."""

    text: str
    sort: str | float | int = ""
    missing: bool = False


def tiles(report: Report) -> list[Tile]:
    """Return the tiles of the headline: size, quality, worst class, latency."""
    found = [_size_tile(report)]
    metric = words.primary(report)
    if metric is None:
        found.append(
            Tile("Quality", words.NOT_MEASURED, words.NOT_MEASURED, "Give --data to measure it.")
        )
    else:
        found.append(_metric_tile(report, metric))
    worst = "worst_class"
    if metric != worst and (report.original.metric(worst) or report.compressed.metric(worst)):
        found.append(_metric_tile(report, worst))
    one, two = report.original.call, report.compressed.call
    slower = words.is_slower(report.original, report.compressed)
    found.append(
        Tile(
            "Latency of a call",
            words.milliseconds(one),
            words.milliseconds(two),
            words.latency_sentence(one, two),
            bad=slower,
        )
    )
    return found


def _size_tile(report: Report) -> Tile:
    before, after = report.original.bytes, report.compressed.bytes
    return Tile(
        "Bytes on disk",
        words.size(before),
        words.size(after),
        words.size_sentence(report),
        figure=words.times(words.ratio_of(report)),
        bad=bool(before and after and after > before),
    )


def _metric_tile(report: Report, metric: str) -> Tile:
    before, after = report.original.metric(metric), report.compressed.metric(metric)
    names = [m.name for m in (before, after) if m and m.name]
    suffix = f" ({' then '.join(dict.fromkeys(names))})" if names else ""
    apart = words.metric_sentence(metric, before, after)
    return Tile(
        words.title(metric) + suffix,
        words.metric_value(metric, before),
        words.metric_value(metric, after),
        apart,
        words.interval(metric, before),
        words.interval(metric, after),
        bad="worse" in apart and "do not overlap" in apart,
    )


def bars(report: Report) -> tuple[list[Bar], str]:
    """Return the per-layer bars, largest weights first, and a sentence on what is left out."""
    rows = sorted(report.sites, key=lambda site: -site.bytes_original)
    shown = rows[:MOST_BARS]
    widest = max((max(s.bytes_original, s.bytes_stored or 0) for s in shown), default=1) or 1
    worst = max((s.error for s in shown if s.error is not None), default=0.0) or 1.0
    found = [
        Bar(
            site.name,
            words.size(site.bytes_original),
            words.size(site.bytes_stored),
            100 * site.bytes_original / widest,
            100 * (site.bytes_stored or 0) / widest,
            words.percent(site.error),
            100 * (site.error or 0.0) / worst,
        )
        for site in shown
    ]
    left = len(rows) - len(shown)
    note = f"The {MOST_BARS} largest of {len(rows)} weights; all are in the table." if left else ""
    return found, note


SITE_COLUMNS = (
    ("Weight", "text"),
    ("Kind", "text"),
    ("Form", "text"),
    ("Shape", "number"),
    ("Original", "number"),
    ("Stored", "number"),
    ("Ratio", "number"),
    ("Bits per weight", "number"),
    ("Entropy (bits)", "number"),
    ("Error", "number"),
    ("Runs as", "text"),
)


def site_rows(report: Report) -> list[list[Cell]]:
    """Return the cells of the per-weight table, columns as in ``SITE_COLUMNS``."""
    return [_site_row(site, report.kernels) for site in report.sites]


def _site_row(site: SiteRow, kernels: Mapping[str, str]) -> list[Cell]:
    ratio = site.bytes_original / site.bytes_stored if site.bytes_stored else None
    return [
        Cell(site.name, site.name),
        Cell(site.kind, site.kind),
        Cell(site.form, site.form),
        Cell(" x ".join(map(str, site.shape)) or "scalar", site.weights),
        Cell(words.size(site.bytes_original), site.bytes_original),
        _cell(words.size(site.bytes_stored), site.bytes_stored),
        _cell(words.times(ratio), ratio),
        _cell(words.number(site.bits), site.bits),
        _cell(words.number(site.entropy_bits), site.entropy_bits),
        _cell(words.percent(site.error), site.error),
        _cell(kernels.get(site.name, words.NOT_MEASURED), kernels.get(site.name)),
    ]


def _cell(shown: str, value: float | int | str | None) -> Cell:
    return Cell(shown, "" if value is None else value, missing=value is None)


def step_rows(report: Report) -> list[dict[str, Any]]:
    """Return what each step cost: seconds, bytes and the headline metric after it."""
    metric = words.primary(report)
    return [_step_row(number, step, metric) for number, step in enumerate(report.steps, 1)]


def _step_row(number: int, step: StepRow, metric: str | None) -> dict[str, Any]:
    after = step.figures.metric(metric) if metric else None
    return {
        "number": number,
        "name": step.step,
        "seconds": words.seconds(step.seconds),
        "bytes": words.size(step.bytes_after),
        "metric": words.metric_value(metric or "", after),
        "interval": words.interval(metric or "", after),
    }


def class_rows(report: Report) -> list[list[Cell]]:
    """Return quality by class before and after, worst change first."""
    before, after = report.original.per_class, report.compressed.per_class
    rows = []
    for name in dict.fromkeys([*before, *after]):
        one, two = before.get(name), after.get(name)
        change = two.value - one.value if one and two else None
        moved = words.NOT_MEASURED if change is None else f"{100 * change:+.2f} points"
        rows.append(
            [
                Cell(name, name),
                _cell(words.metric_value("top1", one), one.value if one else None),
                _cell(words.metric_value("top1", two), two.value if two else None),
                _cell(moved, change),
            ]
        )
    return sorted(rows, key=lambda row: row[3].sort if isinstance(row[3].sort, float) else 0.0)


def as_yaml(values: Mapping[str, Any] | None) -> str:
    """Write plain values as YAML; empty where there are none."""
    if not values:
        return ""
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=88)


def origin(report: Report) -> list[tuple[str, str]]:
    """Return where data and model came from; the recipe stands elsewhere on the page."""
    own = {key: value for key, value in report.provenance.items() if key not in ("recipe", "task")}
    task = {**report.task, **_mapping(report.provenance.get("task"))}
    budget = {"budget": report.budget} if report.budget and "budget" not in own else {}
    return flat({"task": task, **own, **budget})


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as rows of dotted name and text."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            rows.append((name, ", ".join(map(str, value))))
        else:
            rows.append((name, words.NOT_MEASURED if value is None else str(value)))
    return rows


def kernel_counts(report: Report) -> list[tuple[str, int]]:
    """Return how many layers run by each kernel, most first."""
    counts: dict[str, int] = {}
    for kernel in report.kernels.values():
        counts[kernel] = counts.get(kernel, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])
