"""Budgets as people write them: a size, a ratio or stored bits per weight."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from laconic.errors import ConfigError
from laconic.units import format_bytes, parse_bytes, split_unit


@dataclass(frozen=True)
class Budget:
    """A limit on the size of what is on disk.

    Args:
        kind: ``bytes``, ``ratio`` (original bytes / compressed bytes) or ``bits`` (stored bits
            per weight, scales and indices included).
        value: The limit; above 0, and at least 1 for a ratio.

    Raises:
        ConfigError: The value is out of its range.
    """

    kind: Literal["bytes", "ratio", "bits"]
    value: float

    def __post_init__(self) -> None:
        if self.kind not in ("bytes", "ratio", "bits"):
            raise ConfigError(f"budget: kind={self.kind!r} must be 'bytes', 'ratio' or 'bits'.")
        least = 1 if self.kind == "ratio" else 0
        if not isfinite(self.value) or self.value <= 0 or self.value < least:
            allowed = "at least 1" if self.kind == "ratio" else "above 0"
            raise ConfigError(f"budget: {self.kind}={self.value} must be {allowed}.")

    def bytes_for(self, original_bytes: int, weights: int) -> int:
        """Return the largest whole number of bytes that keeps the budget.

        Args:
            original_bytes: Bytes on disk of the original model.
            weights: Number of weights that ``bits`` is spread over.
        """
        if self.kind == "ratio":
            return int(original_bytes / self.value)
        return int(weights * self.value / 8) if self.kind == "bits" else int(self.value)

    def __str__(self) -> str:
        if self.kind == "bytes":
            return format_bytes(self.value)
        return f"{self.value:g}x" if self.kind == "ratio" else f"{self.value:g}bits"


def parse_budget(text: str) -> Budget:
    """Read a budget: ``"1.5MB"`` is a size, ``"8x"`` a ratio, ``"3.0bits"`` bits per weight.

    Raises:
        ConfigError: Neither of these, or out of range.
    """
    number, unit = split_unit(text)
    if unit == "x":
        return Budget("ratio", number)
    if unit in ("bit", "bits"):
        return Budget("bits", number)
    try:
        return Budget("bytes", float(parse_bytes(text)))
    except ConfigError as error:
        raise ConfigError(
            f"budget {text!r} must be a size (1.5MB), a ratio (8x) or bits per weight (3bits)."
        ) from error
