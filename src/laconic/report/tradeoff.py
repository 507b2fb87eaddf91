"""The trade-off plot: bytes on a logarithmic axis against a metric with its intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from laconic.report import words
from laconic.report.model import Metric, Report, TradeOffPoint
from laconic.report.svg import Axis, element, padded, text, tooltip

_LETTER = 6.6  # width of a letter at 12 px, for laying out labels


@dataclass(frozen=True)
class Mark:
    """One point of the plot.

    Attributes:
        label: What stands beside the point.
        style: CSS class: original, step, uniform, compressed, or run-0 and so on.
        bytes: Size on disk.
        metric: Quality with its interval.
        line: Points with the same line are joined in their order; None stands alone.
    """

    label: str
    style: str
    bytes: int
    metric: Metric
    line: str | None = None


def marks_of(report: Report, metric: str) -> list[Mark]:
    """Return the points of one report that have a finite value of the metric."""
    found = []
    for point in report.trade_off or _from_steps(report):
        value = point.metric(metric)
        if value is not None and math.isfinite(value.value):
            line = "uniform" if point.kind == "uniform" else "recipe"
            found.append(Mark(point.name, point.kind, point.bytes, value, line))
    return sorted(found, key=lambda mark: mark.line == "recipe")


def _from_steps(report: Report) -> list[TradeOffPoint]:
    """Build the points from the figures before, after each step, and at the end."""
    rows = [("original", "original", report.original)]
    rows += [(step.step, "step", step.figures) for step in report.steps]
    rows += [("compressed", "compressed", report.compressed)]
    return [
        TradeOffPoint.model_validate(
            {"name": name, "kind": kind, "bytes": held.bytes, "metrics": held.metrics}
        )
        for name, kind, held in rows
        if held.bytes
    ]


def draw(marks: Sequence[Mark], metric: str, *, width: int, name: str) -> str:
    """Draw the plot as an SVG element.

    Args:
        marks: At least one point.
        metric: Name of the metric, for the axis.
        width: Width in CSS pixels; the height follows.
        name: Prefix of the ids, unique in the page.
    """
    height = round(max(280, min(400, width * 0.56)))
    x, y = _axes(marks, width, height)
    body = [_grid(x, y, metric, height)]
    body += [_path(line, marks, x, y) for line in dict.fromkeys(m.line for m in marks) if line]
    labels = _place_labels(marks, x, y, width)
    body += [_point(mark, metric, x, y, labels[i]) for i, mark in enumerate(marks)]
    heading = f"Bytes on disk against {words.title(metric)}"
    return element(
        "svg", element("title", heading, id=f"{name}-title"), *body,
        class_="plot", viewBox=f"0 0 {width} {height}", role="img", width=width, height=height,
        aria_labelledby=f"{name}-title",
    )  # fmt: skip


def _axes(marks: Sequence[Mark], width: int, height: int) -> tuple[Axis, Axis]:
    sizes = [mark.bytes for mark in marks]
    room = max((max(sizes) / min(sizes)) ** 0.08, 1.15)
    values = [
        end
        for mark in marks
        for end in (mark.metric.low, mark.metric.value, mark.metric.high)
        if end is not None and math.isfinite(end)
    ]
    low, high = padded(values)
    x = Axis(min(sizes) / room, max(sizes) * room, 62, width - 16, log=True)
    return x, Axis(low, high, height - 52, 30)


def _grid(x: Axis, y: Axis, metric: str, height: int) -> str:
    share = words.is_share(metric)
    rows = y.ticks(5)
    places = max(0, -math.floor(math.log10((rows[1] - rows[0]) * (100 if share else 1)) + 1e-9))
    lines = []
    for tick in rows:
        label = f"{100 * tick:.{places}f} %" if share else f"{tick:,.{places}f}"
        lines.append(element("line", class_="grid", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick)))
        lines.append(text(label, x.start - 8, y(tick) + 4, class_="tick", text_anchor="end"))
    for tick in x.ticks(max(3, round((x.end - x.start) / 110))):
        lines.append(element("line", class_="grid", x1=x(tick), x2=x(tick), y1=y.start, y2=y.end))
        lines.append(
            text(_short_size(tick), x(tick), y.start + 18, class_="tick", text_anchor="middle")
        )
    middle = (x.start + x.end) / 2
    caption = f"{words.title(metric)}, {words.direction(metric)}"
    lines.append(
        text("bytes on disk (log)", middle, height - 12, class_="axis", text_anchor="middle")
    )
    lines.append(text(caption, 4, 16, class_="axis"))
    return element("g", *lines)


def _short_size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale * 0.999:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.3g} B"


def _path(line: str, marks: Sequence[Mark], x: Axis, y: Axis) -> str:
    points = [(x(m.bytes), y(m.metric.value)) for m in marks if m.line == line]
    joined = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    return element("polyline", class_=f"path {line}", points=joined)


def _point(mark: Mark, metric: str, x: Axis, y: Axis, label: str) -> str:
    px, py = x(mark.bytes), y(mark.metric.value)
    inside = [tooltip(_describe(mark, metric))]
    low, high = mark.metric.low, mark.metric.high
    if low is not None and high is not None:
        inside.append(element("line", class_="whisker", x1=px, x2=px, y1=y(low), y2=y(high)))
        for end in (low, high):
            inside.append(
                element("line", class_="whisker", x1=px - 4, x2=px + 4, y1=y(end), y2=y(end))
            )
    inside.append(_symbol(mark.style, px, py))
    return element("g", *inside, label, class_=f"mark {mark.style}")


def _symbol(style: str, px: float, py: float) -> str:
    if style == "uniform":
        return element("rect", class_="dot", x=px - 4.5, y=py - 4.5, width=9, height=9)
    if style == "compressed":
        return element("path", class_="dot", d=f"M{px:.1f} {py - 8:.1f}l8 8l-8 8l-8 -8z")
    return element("circle", class_="dot", cx=px, cy=py, r=5.5)


def _describe(mark: Mark, metric: str) -> str:
    span = words.interval(metric, mark.metric)
    value = words.metric_value(metric, mark.metric)
    return f"{mark.label}: {words.size(mark.bytes)}, {words.title(metric)} {value}" + (
        f" (95 %: {span})" if span else ""
    )


def _place_labels(marks: Sequence[Mark], x: Axis, y: Axis, width: int) -> list[str]:
    """Place each label where it hides nothing; one that fits nowhere is left to the tooltip."""
    dots = [(x(mark.bytes), y(mark.metric.value)) for mark in marks]
    taken = [(px - 8, py - 8, px + 8, py + 8) for px, py in dots]
    placed = [""] * len(marks)
    order = sorted(
        range(len(marks)), key=lambda i: marks[i].style not in ("compressed", "original")
    )
    for index in order:
        px, py = dots[index]
        length = len(marks[index].label) * _LETTER
        options = (
            (px + 11, py - 8, "start"), (px - 11, py - 8, "end"),
            (px + 11, py + 17, "start"), (px - 11, py + 17, "end"),
            (px + 11, py - 24, "start"), (px - 11, py - 24, "end"),
            (px + 11, py + 33, "start"), (px - 11, py + 33, "end"),
        )  # fmt: skip
        for left, base, anchor in options:
            start = left if anchor == "start" else left - length
            box = (start, base - 11, start + length, base + 3)
            inside = start >= x.start and box[2] <= width - 2 and box[1] >= 20 and box[3] <= y.start
            if inside and not any(_meet(box, other) for other in taken):
                taken.append(box)
                placed[index] = text(
                    marks[index].label, left, base, class_="label", text_anchor=anchor
                )
                break
    return placed


def _meet(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
