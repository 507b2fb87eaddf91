"""The page of a search: how the fitness fell, and which level each unit took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from laconic.report.page import NARROW, WIDE, _environment, _inlined
from laconic.report.svg import Axis, element, padded, text, tooltip
from laconic.report.view import flat
from laconic.units import format_bytes

Curve = tuple[str, Sequence[tuple[float, float]]]  # name, (bytes, fitness) by rising bytes
_CELL, _ROW = 16, 14


def render_search(held: Mapping[str, Any], curves: Sequence[Curve] = ()) -> str:
    """Return the page of a search.

    Args:
        held: Content of ``search.json``.
        curves: Held-out fitness over bytes, a line for each family of levels.
    """
    points = _points(held["search"])
    return (
        _environment()
        .get_template("search.html.j2")
        .render(
            held=held,
            size=format_bytes,
            history=[Markup(draw_history(points, width=w)) for w in (WIDE, NARROW) if points],
            curves=[Markup(draw_curves(curves, width=w)) for w in (WIDE, NARROW) if curves],
            curve_keys=list(zip([name for name, _ in curves], _styles(curves), strict=True)),
            grid=Markup(draw_grid(held["units"], held["levels"])),
            facts=_facts(held),
            **_inlined(),
        )
    )


def _facts(held: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = held["search"]
    told = {
        "budget": held["budget"]["words"],
        "cost": f"{held['cost']} {held['unit']}",
        "evaluations": found["evaluations"],
        "tokens or examples judged": found["tokens"],
        "seconds": held["seconds"],
        "held-out fitness": held["held_out"],
        "settings": {k: v for k, v in found["settings"].items() if k != "start"},
        "job": held["job"],
    }
    return [(name, str(value)) for name, value in flat(_rounded(told))]


def _rounded(value: Any) -> Any:
    """Return plain values with numbers as people read them."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _points(found: Mapping[str, Any]) -> list[tuple[float, float, bool]]:
    return [
        (float(row["evaluations"]), float(row["fitness"]), bool(row["changed"]))
        for row in found["history"]
        if row["fitness"] is not None and math.isfinite(row["fitness"])
    ]


def draw_history(points: Sequence[tuple[float, float, bool]], *, width: int) -> str:
    """Draw fitness over assignments judged; points of new parents are filled."""
    height = round(max(220, min(340, width * 0.42)))
    low, high = padded([y for _, y, _ in points])
    right = max(max(x for x, _, _ in points), 1.0)
    x = Axis(0.0, right, 64, width - 16)
    y = Axis(low, high, height - 46, 26)
    body = [_frame(x, y, "assignments judged", "fitness, lower is better", height)]
    line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b, _ in points)
    body.append(element("polyline", class_="path", points=line))
    for number, (a, b, changed) in enumerate(points):
        style = "compressed" if changed else "step"
        told = tooltip(f"generation {number}: {b:.5g} after {a:.0f} judged")
        dot = element("circle", told, class_="dot", cx=x(a), cy=y(b), r=3.5 if changed else 2.5)
        body.append(element("g", dot, class_=f"mark {style}"))
    return _svg(f"history-{width}", "Fitness over assignments judged", width, height, body)


def draw_curves(curves: Sequence[Curve], *, width: int) -> str:
    """Draw held-out fitness over bytes, both on logarithmic axes, a line for each family."""
    height = round(max(260, min(400, width * 0.5)))
    sizes = [a for _, points in curves for a, _ in points]
    values = [max(b, 1e-9) for _, points in curves for _, b in points]
    x = Axis(min(sizes) / 1.05, max(sizes) * 1.05, 64, width - 16, log=True)
    y = Axis(min(values) / 1.2, max(values) * 1.2, height - 46, 26, log=True)
    body = [_frame(x, y, "bytes on disk", "held-out fitness, lower is better", height, sizes=True)]
    styled = list(zip(curves, _styles(curves), strict=True))
    for (name, points), style in styled[::-1]:  # what comes first lies on top
        line = " ".join(f"{x(a):.1f},{y(max(b, 1e-9)):.1f}" for a, b in points)
        dots = [
            element("circle", tooltip(f"{name}: {format_bytes(a)}, {b:.4g}"), class_="dot",
                    fill="currentColor", cx=x(a), cy=y(max(b, 1e-9)), r=4)
            for a, b in points
        ]  # fmt: skip
        path = element("polyline", points=line, fill="none", stroke="currentColor", stroke_width=2)
        body.append(element("g", path, *dots, class_=style))
    return _svg(f"curves-{width}", "Held-out fitness over bytes", width, height, body)


def _styles(curves: Sequence[Curve]) -> list[str]:
    """Return a class for each curve: the first in the accent, the others in colours of runs."""
    if not curves:
        return []
    return ["mark", *(f"run-{number % 5 + 1}" for number in range(len(curves) - 1))]


def draw_grid(units: Sequence[Mapping[str, Any]], levels: Sequence[str]) -> str:
    """Draw units by levels: what each could take, and what it took."""
    left = 12 + 6.2 * max((len(_short(unit["name"])) for unit in units), default=0)
    top = 12 + 6.2 * max(map(len, levels))
    width, height = left + _CELL * len(levels) + 12, top + _ROW * len(units) + 8
    body = []
    for column, name in enumerate(levels):
        px = left + _CELL * (column + 0.5) + 4
        turn = f"rotate(-90 {px:.1f} {top - 6:.1f})"
        body.append(text(name, px, top - 6, class_="tick", transform=turn))
    for row, unit in enumerate(units):
        py = top + _ROW * row
        body.append(text(_short(unit["name"]), left - 6, py + 10, class_="tick", text_anchor="end"))
        for column, name in enumerate(levels):
            if not unit["has"][column]:
                continue
            chosen = name == unit["level"]
            cell = element(
                "rect", tooltip(f"{unit['name']}: {name}"), x=left + _CELL * column, y=py,
                width=_CELL - 2, height=_ROW - 2, rx=2,
                fill="var(--accent)" if chosen else "var(--line)",
            )  # fmt: skip
            body.append(cell)
    return _svg("grid", "Level of each unit", round(width), round(height), body)


def _short(name: str) -> str:
    return name.removesuffix(".weight")


def _frame(x: Axis, y: Axis, below: str, above: str, height: int, *, sizes: bool = False) -> str:
    lines = []
    for tick in y.ticks(5):
        lines.append(element("line", class_="grid", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick)))
        lines.append(
            text(f"{tick:.3g}", x.start - 8, y(tick) + 4, class_="tick", text_anchor="end")
        )
    for tick in x.ticks(max(3, round((x.end - x.start) / 110))):
        label = format_bytes(tick) if sizes else f"{tick:,.0f}"
        lines.append(text(label, x(tick), y.start + 18, class_="tick", text_anchor="middle"))
    middle = (x.start + x.end) / 2
    lines.append(text(below, middle, height - 8, class_="axis", text_anchor="middle"))
    lines.append(text(above, 4, 14, class_="axis"))
    return element("g", *lines)


def _svg(name: str, heading: str, width: int, height: int, body: Sequence[str]) -> str:
    return element(
        "svg", element("title", heading, id=f"{name}-title"), *body,
        class_="plot", viewBox=f"0 0 {width} {height}", role="img", width=width, height=height,
        aria_labelledby=f"{name}-title",
    )  # fmt: skip
