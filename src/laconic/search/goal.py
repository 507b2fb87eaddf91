"""Budgets of a search as people write them: a size, a ratio, bits, a share, or a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from laconic.budget import parse_budget
from laconic.errors import ConfigError
from laconic.units import parse_seconds, split_unit

Cost = Literal["bytes", "macs", "latency"]


@dataclass(frozen=True)
class Goal:
    """What a search must keep to.

    Attributes:
        text: As it was asked for.
        kind: ``bytes`` (a size, a ratio or bits a weight on disk), ``share`` or ``time``.
        value: The share from 0 to 1, or microseconds; 0 for bytes.
    """

    text: str
    kind: Literal["bytes", "share", "time"]
    value: float = 0.0

    def bytes_for(self, original_bytes: int, weights: int) -> int:
        """Return the most bytes on disk."""
        return parse_budget(self.text).bytes_for(original_bytes, weights)


def parse_goal(text: str) -> Goal:
    """Read a budget: ``8x``, ``1.5MB``, ``3.0bits``, ``70%`` or ``40ms``.

    >>> parse_goal("70%").value, parse_goal("40ms").value, parse_goal("8x").kind
    (0.7, 40000.0, 'bytes')

    Raises:
        ConfigError: None of these, or out of range.
    """
    number, unit = split_unit(text)
    if unit == "%":
        if not 0 < number < 100:
            raise ConfigError(f"budget {text!r} must lie between 0 and 100 %, ends excluded.")
        return Goal(text, "share", number / 100)
    if unit in ("ms", "s", "us"):
        seconds = number / 1e6 if unit == "us" else parse_seconds(text)
        if seconds <= 0:
            raise ConfigError(f"budget {text!r} must be above 0.")
        return Goal(text, "time", seconds * 1e6)
    try:
        parse_budget(text)
    except ConfigError as error:
        raise ConfigError(
            f"budget {text!r} must be a size (1.5MB), a ratio (8x), bits per weight (3bits), a "
            "share (70%) or a time (40ms)."
        ) from error
    return Goal(text, "bytes")
