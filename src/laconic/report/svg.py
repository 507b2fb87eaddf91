"""A few drawing words for inline SVG: elements, axes and ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape


def element(tag: str, *children: str, **attributes: str | float) -> str:
    """Write one element; ``_`` in attribute names becomes ``-`` and ``class_`` is ``class``.

    Children are markup already; attribute values are escaped here.
    """
    words = [
        f'{name.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for name, value in attributes.items()
    ]
    head = " ".join([tag, *words])
    return f"<{head}>{''.join(children)}</{tag}>" if children else f"<{head}/>"


def text(content: str, x: float, y: float, **attributes: str | float) -> str:
    """Write a text element with escaped content."""
    return element("text", escape(content), x=x, y=y, **attributes)


def tooltip(content: str) -> str:
    """Write a title element: what browsers show when the pointer rests on its parent."""
    return element("title", escape(content))


def _plain(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, linearly or by their logarithm.

    Args:
        low: Smallest value shown.
        high: Greatest value shown; above ``low``.
        start: Pixel of ``low``.
        end: Pixel of ``high``.
        log: Whether equal ratios are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value; values beyond the ends stick to them."""
        clamped = min(max(value, self.low), self.high)
        scale: Callable[[float], float] = math.log if self.log else float
        low, high = scale(self.low), scale(self.high)
        return self.start + (scale(clamped) - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Return round values inside the axis; a short log axis has those of a linear one."""
        if self.log and self.high > 4 * self.low:
            return _log_ticks(self.low, self.high, count)
        step = _round_step((self.high - self.low) / max(count, 1))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= rough * (1 - 1e-9))


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1,), (1, 3), (1, 2, 5)):
        found = [m * 10.0**p for p in powers for m in mantissas if low <= m * 10.0**p <= high]
        if len(found) >= min(count, 4):
            break
    stride = math.ceil(len(found) / (count + 2)) if found else 1
    return found[::stride]


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """Return the ends of a linear axis that leaves room around all values."""
    low, high = min(values), max(values)
    room = (high - low) * share or abs(high) * share or 1.0
    return low - room, high + room
