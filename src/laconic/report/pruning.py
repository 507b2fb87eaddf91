"""The plot of iterative pruning: density against the PQ Index and against the score.

Two panels share one axis of density, dense at the left. The drawing brings its own style, so that
it stands in a page as well as in a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laconic.report import words
from laconic.report.model import Report
from laconic.report.svg import Axis, element, padded, text, tooltip

_LEFT, _RIGHT, _TOP, _GAP, _FOOT = 62, 16, 34, 44, 74
_COLOURS = ("#2f6fdb", "#c2571a", "#2b8a4b", "#8a4fbf", "#a8862a", "#b03a5b")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:currentColor}"
    ".tick{font-size:11px;opacity:.75}.grid{stroke:currentColor;opacity:.15}"
    ".curve{fill:none;stroke-width:1.8}.pruned{stroke-dasharray:4 3;opacity:.7}"
)


@dataclass(frozen=True)
class Curve:
    """One run to draw.

    Args:
        label: For the legend.
        rows: Of each iteration ``density``, ``pqi``, ``score``, and where they are known ``test``,
            ``score_pruned`` and ``phase``.
        best: Iteration that was chosen; None marks none.
    """

    label: str
    rows: Sequence[Mapping[str, Any]]
    best: int | None = None

    def values(self, key: str) -> list[tuple[float, float]]:
        """Return (density, value) where the value is known and the density above 0."""
        return [
            (float(row["density"]), float(row[key]))
            for row in self.rows
            if row.get(key) is not None and row["density"] > 0
        ]


def curves_of(report: Report) -> list[Curve]:
    """Return a curve for each step of a report that tells of its pruning history."""
    found = []
    for number, step in enumerate(report.steps, 1):
        details = (step.model_extra or {}).get("details")
        details = details if isinstance(details, Mapping) else {}
        history = details.get("history")
        if isinstance(history, list) and history:
            label = f"{number}. {step.step}"
            found.append(Curve(label, history, details.get("best")))
    return found


def draw(
    curves: Sequence[Curve], *, width: int = 880, name: str = "pruning", score: str = "score"
) -> str:
    """Draw curves as one SVG element; empty where no curve has a row.

    Args:
        curves: Runs, in the order of the legend.
        width: Width in CSS pixels; the height follows.
        name: Prefix of ids, unique in the page.
        score: What the upper panel is called. It shows the score after retraining, and dashed
            the score of the pruned net before it.
    """
    shown = [curve for curve in curves if curve.values("pqi")]
    if not shown:
        return ""
    panel = max(150, round(width * 0.24))
    legend, rows = _legend(shown, width)
    foot = _FOOT + 18 * (rows - 1)
    height = _TOP + 2 * panel + _GAP + foot
    lows = [density for curve in shown for density, _ in curve.values("pqi")]
    x = Axis(min(lows) / 1.15, 1.1, width - _RIGHT, _LEFT, log=True)
    ends = [v for c in shown for key in ("score", "score_pruned") for _, v in c.values(key)]
    low, high = padded(ends)
    upper = Axis(low, high, _TOP + panel, _TOP)
    top = 1.08 * max(value for curve in shown for _, value in curve.values("pqi"))
    lower = Axis(0.0, top or 1.0, height - foot, height - foot - panel)
    body = [
        _grid(x, upper, f"{score}: retrained, and dashed: pruned"),
        _grid(x, lower, "PQ Index of what is kept"),
        *(_densities(x, lower.start)),
    ]
    for place, curve in enumerate(shown):
        colour = _COLOURS[place % len(_COLOURS)]
        body += [
            _line(curve.values("score"), x, upper, colour),
            _line(curve.values("score_pruned"), x, upper, colour, extra=" pruned"),
            _line(curve.values("pqi"), x, lower, colour),
            *_dots(curve, x, upper, lower, colour),
        ]
    place_down = f"translate(0 {height - foot + 62})"
    body.append(element("g", *legend, transform=place_down))
    heading = "Density against score and PQ Index"
    return element(
        "svg", element("title", heading, id=f"{name}-title"), element("style", _STYLE), *body,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=width,
        height=height, role="img", aria_labelledby=f"{name}-title",
    )  # fmt: skip


def _grid(x: Axis, y: Axis, caption: str) -> str:
    left, right = sorted((x.start, x.end))
    parts = [text(caption, left, y.end - 10)]
    for tick in y.ticks(4):
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=y(tick), y2=y(tick)))
        label = f"{tick:.4g}"
        parts.append(text(label, left - 8, y(tick) + 4, class_="tick", text_anchor="end"))
    return element("g", *parts)


def _densities(x: Axis, foot: float) -> list[str]:
    left, right = sorted((x.start, x.end))
    parts = [
        text(f"{100 * tick:.3g} %", x(tick), foot + 16, class_="tick", text_anchor="middle")
        for tick in x.ticks(6)
    ]
    caption = text("weights kept (log)", (left + right) / 2, foot + 34, text_anchor="middle")
    return [*parts, caption]


def _line(
    points: Sequence[tuple[float, float]], x: Axis, y: Axis, colour: str, *, extra: str = ""
) -> str:
    joined = " ".join(f"{x(density):.1f},{y(value):.1f}" for density, value in points)
    return element("polyline", class_=f"curve{extra}", points=joined, stroke=colour)


def _dots(curve: Curve, x: Axis, upper: Axis, lower: Axis, colour: str) -> list[str]:
    found = []
    for number, row in enumerate(curve.rows):
        if row["density"] <= 0:
            continue
        radius = 6.0 if number == curve.best else 2.6
        for axis, value in ((upper, row["score"]), (lower, row["pqi"])):
            told = tooltip(_told(curve.label, number, row))
            at = {"cx": x(row["density"]), "cy": axis(value), "r": radius}
            found.append(element("circle", told, fill=colour, **at))
    return found


def _told(label: str, number: int, row: Mapping[str, Any]) -> str:
    parts = [f"{label}, iteration {number}: {words.percent(row['density'])} kept"]
    parts += [f"{key} {row[key]:.4g}" for key in ("pqi", "score", "test") if _is_number(row, key)]
    return ", ".join([*parts, *([str(row["phase"])] if row.get("phase") else [])])


def _is_number(row: Mapping[str, Any], key: str) -> bool:
    value = row.get(key)
    return isinstance(value, int | float) and math.isfinite(value)


def _legend(curves: Sequence[Curve], width: int) -> tuple[list[str], int]:
    """Return the legend, its first line at height 0, and how many lines it takes."""
    parts: list[str] = []
    left, line = float(_LEFT), 0
    for place, curve in enumerate(curves):
        length = 34 + 6.8 * len(curve.label)
        if left > _LEFT and left + length > width:
            left, line = float(_LEFT), line + 1
        base = 18.0 * line
        colour = _COLOURS[place % len(_COLOURS)]
        parts.append(element("circle", cx=left + 5, cy=base - 4, r=5.0, fill=colour))
        parts.append(text(curve.label, left + 15, base))
        left += length
    return parts, line + 1
