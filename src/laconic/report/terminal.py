"""The same figures as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from laconic.report import words
from laconic.report.compare import Comparison
from laconic.report.model import Figures, Report, parse


def _cell(shown: str, style: str = "") -> Text:
    return Text(shown, style="dim italic" if shown == words.NOT_MEASURED else style)


def _with_interval(name: str, shown: str, figures: Figures) -> Text:
    span = words.interval(name, figures.metric(name))
    return Text.assemble(_cell(shown), (f"\n{span}" if span else "", "dim"))


def final_table(report: Mapping[str, Any] | Report) -> Table:
    """Return the last table of a run: original beside compressed, and what that means."""
    checked = parse(report)
    one, two = checked.original, checked.compressed
    table = Table(title=Text(checked.name), title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("original", justify="right")
    table.add_column("compressed", justify="right")
    table.add_column("in words")
    grown = bool(one.bytes and two.bytes and two.bytes > one.bytes)
    table.add_row(
        "bytes on disk",
        _cell(words.size(one.bytes)),
        _cell(words.size(two.bytes), "bold"),
        Text(words.size_sentence(checked), style="yellow" if grown else ""),
    )
    table.add_row("ratio", "1x", _cell(words.times(words.ratio_of(checked)), "bold"), "")
    for name in words.shown_metrics(checked):
        before, after = one.metric(name), two.metric(name)
        table.add_row(
            Text(words.title(name)),
            _with_interval(name, words.reference_value(name, before), one),
            _with_interval(name, words.metric_value(name, after), two),
            words.metric_sentence(name, before, after),
        )
    for size in words.batch_sizes(checked):
        before_ms, after_ms = one.latency_ms.get(size), two.latency_ms.get(size)
        slower = bool(before_ms and after_ms and after_ms.median > before_ms.median)
        table.add_row(
            f"latency, {words.examples(size)}",
            _cell(words.milliseconds(before_ms)),
            _cell(words.milliseconds(after_ms)),
            Text(words.latency_sentence(before_ms, after_ms), style="yellow" if slower else ""),
        )
    return table


def steps_table(report: Mapping[str, Any] | Report) -> Table:
    """Return what each step cost."""
    checked = parse(report)
    metric = words.primary(checked)
    headings = ["step", "time", "bytes after"]
    headings += [f"{words.title(metric)} after"] if metric else []
    rows = []
    for number, step in enumerate(checked.steps, 1):
        row = [f"{number}. {step.step}", words.seconds(step.seconds), words.size(step.bytes_after)]
        if metric:
            row.append(words.metric_value(metric, step.figures.metric(metric)))
        rows.append(row)
    return plain_table("Steps", headings, rows, text_columns=1)


def compare_table(found: Comparison) -> Table:
    """Return the runs of a comparison beside each other."""
    headings = ["run", "recipe", "bytes on disk", "ratio"]
    headings += [words.title(found.metric)] if found.metric else []
    headings += ["worst class", "latency"]
    rows = []
    if found.original:
        rows.append(_compare_row("original", "none", found.original, 1.0, found.metric))
    for run in found.runs:
        rows.append(_compare_row(run.name, run.recipe, run.figures, run.ratio, found.metric))
    caption = "Best quality first" if found.equal_bytes else "Smallest first"
    return plain_table(caption, headings, rows, text_columns=2)


def _compare_row(
    name: str, recipe: str, figures: Figures, ratio: float | None, metric: str | None
) -> list[str]:
    row = [name, recipe, words.size(figures.bytes), words.times(ratio)]
    if metric:
        span = words.interval(metric, figures.metric(metric))
        value = words.metric_value(metric, figures.metric(metric))
        row.append(f"{value} ({span})" if span else value)
    row.append(words.metric_value("worst_class", figures.metric("worst_class")))
    return [*row, words.milliseconds(figures.call)]


def plain_table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int
) -> Table:
    """Return a table of texts; columns after the first ``text_columns`` are numbers."""
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(
            heading, justify="left" if index < text_columns else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table
