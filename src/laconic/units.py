"""Sizes, ratios, times and shares as people write them, and back.

MB is 10**6 bytes, MiB is 2**20; both are accepted.
"""

from __future__ import annotations

import re

from laconic.errors import ConfigError

_SIZES = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_TIMES = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z%]*)\s*$", re.IGNORECASE)


def split_unit(text: str) -> tuple[float, str]:
    """Split ``"1.5MB"`` into ``(1.5, "mb")``; the unit is lower case and may be empty.

    Raises:
        ConfigError: The text is not a number with an optional unit.
    """
    match = _NUMBER.match(text)
    if not match:
        raise ConfigError(f"{text!r} is not a number with a unit, such as 1.5MB, 8x, 60s or 30%.")
    return float(match.group(1)), match.group(2).lower()


def parse_bytes(text: str) -> int:
    """Read a size: ``"1.5MB"`` is 1500000, ``"1MiB"`` is 1048576, a bare number is bytes."""
    number, unit = split_unit(text)
    if (unit or "b") not in _SIZES:
        raise ConfigError(f"size {text!r}: unit {unit!r} is not one of {', '.join(_SIZES)}.")
    return int(number * _SIZES[unit or "b"])


def parse_seconds(text: str) -> float:
    """Read a time: ``"60s"`` is 60.0, ``"2m"`` is 120.0; the unit must be given."""
    number, unit = split_unit(text)
    if unit not in _TIMES:
        raise ConfigError(f"time {text!r}: unit {unit!r} is not one of {', '.join(_TIMES)}.")
    return number * _TIMES[unit]


def parse_share(text: str) -> float:
    """Read a share: ``"30%"`` and ``"0.3"`` are 0.3; it must lie in [0, 1]."""
    number, unit = split_unit(text)
    share = number / 100 if unit == "%" else number
    if unit not in ("", "%") or not 0 <= share <= 1:
        raise ConfigError(f"share {text!r} must be a percentage or a number between 0 and 1.")
    return share


def format_bytes(count: float) -> str:
    """Write a byte count for people: ``1234567`` becomes ``"1.23 MB"``."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"
