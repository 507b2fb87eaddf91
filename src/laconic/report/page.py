"""One self-contained HTML page from a report: works offline, in light and dark, and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from laconic.report import pruning, tradeoff, view, words
from laconic.report.compare import comparison
from laconic.report.model import Report, parse

WIDE, NARROW = 880, 340  # CSS pixels; the page shows one of the two drawings


def render_html(report: Mapping[str, Any] | Report) -> str:
    """Return the page of one report.

    Raises:
        ConfigError: The report does not fit its definition.
    """
    checked = parse(report)
    metric = words.primary(checked)
    bars, bars_note = view.bars(checked)
    marks = tradeoff.marks_of(checked, metric) if metric else []
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=checked,
            words=words,
            metric=metric,
            metrics=words.shown_metrics(checked),
            tiles=view.tiles(checked),
            plots=_plots(marks, metric, "trade-off"),
            marks=marks,
            bars=bars,
            bars_note=bars_note,
            columns=view.SITE_COLUMNS,
            site_rows=view.site_rows(checked),
            step_rows=view.step_rows(checked),
            class_rows=view.class_rows(checked),
            pruned=_pruned(checked),
            recipe=view.as_yaml(checked.recipe),
            environment=view.flat(checked.environment),
            provenance=view.origin(checked),
            kernels=view.kernel_counts(checked),
            **_inlined(),
        )
    )


def compare_html(reports: Mapping[str, Mapping[str, Any] | Report]) -> str:
    """Return a page that sets several reports beside each other, and whether bytes are equal.

    Args:
        reports: Reports by the name that the table shall show; at least two.

    Raises:
        ConfigError: Fewer than two, or one does not fit the definition.
    """
    found = comparison(reports)
    plots = _plots(found.marks, found.metric, "compare")
    return (
        _environment()
        .get_template("compare.html.j2")
        .render(found=found, words=words, plots=plots, **_inlined())
    )


def _plots(marks: Sequence[tradeoff.Mark], metric: str | None, name: str) -> list[Markup]:
    if metric is None or not marks:
        return []
    return [
        Markup(tradeoff.draw(marks, metric, width=width, name=f"{name}-{width}"))
        for width in (WIDE, NARROW)
    ]


def _pruned(report: Report) -> list[Markup]:
    """Return the drawings of how steps pruned, iteration by iteration."""
    curves = pruning.curves_of(report)
    if not curves:
        return []
    return [
        Markup(pruning.draw(curves, width=width, name=f"pruned-{width}"))
        for width in (WIDE, NARROW)
    ]


def _file(name: str) -> str:
    return (resources.files("laconic.report") / name).read_text(encoding="utf-8")


def _inlined() -> dict[str, Markup]:
    return {"style": Markup(_file("style.css")), "script": Markup(_file("script.js"))}


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
