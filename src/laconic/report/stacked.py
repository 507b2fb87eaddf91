"""Horizontal stacked bars as one SVG, in light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from laconic.report.svg import Axis, element, text, tooltip

_ROW, _BAR, _HEAD, _LABEL, _WIDTH = 24, 16, 44, 150, 720
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1a1a1a }
.panel { font-weight: 600 } .tick { fill: #666; font-size: 11px } .grid { stroke: #ddd }
.part0 { fill: #9aa5b1 } .part1 { fill: #e0a030 } .part2 { fill: #3a7bd5 } .whole { fill: #c3c9d0 }
@media (prefers-color-scheme: dark) {
  text { fill: #eee } .tick { fill: #aaa } .grid { stroke: #444 } .whole { fill: #59616b }
}
"""


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: Written before it.
        parts: Lengths of its parts, from the left.
        split: Whether the parts are known; one grey bar of their sum where not.
    """

    label: str
    parts: tuple[float, ...]
    split: bool = True

    @property
    def total(self) -> float:
        """Length of the whole bar."""
        return sum(self.parts)


def stacked_bars(panels: Mapping[str, Sequence[Bar]], names: Sequence[str], *, unit: str) -> str:
    """Return an SVG document: a panel of bars for each title, each with an axis of its own.

    Args:
        panels: Bars by the title of their panel.
        names: What the parts are, for the legend.
        unit: Unit of the lengths.
    """
    drawn: list[str] = [element("style", _STYLE), _legend(names)]
    top = 30.0
    for title, bars in panels.items():
        drawn.append(_panel(title, bars, names, unit, top))
        top += _HEAD + _ROW * len(bars) + 24
    size = {"viewBox": f"0 0 {_WIDTH} {top:g}", "role": "img"}
    return element("svg", *drawn, xmlns="http://www.w3.org/2000/svg", **size)


def _legend(names: Sequence[str]) -> str:
    pieces = []
    for index, name in enumerate(names):
        left = _LABEL + 110 * index
        pieces.append(element("rect", x=left, y=8, width=12, height=12, class_=f"part{index}"))
        pieces.append(text(name, left + 18, 19))
    return "".join(pieces)


def _panel(title: str, bars: Sequence[Bar], names: Sequence[str], unit: str, top: float) -> str:
    longest = max(bar.total for bar in bars) or 1.0
    axis = Axis(0.0, longest * 1.02, _LABEL, _WIDTH - 70)
    first = top + _HEAD
    bottom = first + _ROW * len(bars)
    pieces = [text(title, 8, top + 18, class_="panel")]
    for tick in axis.ticks():
        x = axis(tick)
        pieces.append(element("line", x1=x, x2=x, y1=first - 4, y2=bottom, class_="grid"))
        label = f"{tick:g} {unit}"
        pieces.append(text(label, x, first - 9, class_="tick", text_anchor="middle"))
    for index, bar in enumerate(bars):
        pieces.append(_bar(bar, names, unit, axis, first + _ROW * index))
    return "".join(pieces)


def _bar(bar: Bar, names: Sequence[str], unit: str, axis: Axis, top: float) -> str:
    pieces = [text(bar.label, _LABEL - 8, top + 13, text_anchor="end")]
    parts = bar.parts if bar.split else (bar.total,)
    left = 0.0
    for index, part in enumerate(parts):
        name, look = (names[index], f"part{index}") if bar.split else ("step", "whole")
        x, width = axis(left), axis(left + part) - axis(left)
        told = tooltip(f"{bar.label}, {name}: {part:.1f} {unit}")
        pieces.append(element("rect", told, x=x, y=top, width=width, height=_BAR, class_=look))
        left += part
    pieces.append(text(f"{bar.total:.1f}", axis(left) + 6, top + 13))
    return "".join(pieces)
