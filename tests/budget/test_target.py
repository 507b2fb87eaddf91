"""Budgets as text."""

from __future__ import annotations

import pytest

from laconic.budget import Budget, parse_budget
from laconic.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "budget", "limit"),
    [
        ("1.5MB", Budget("bytes", 1_500_000), 1_500_000),
        ("64KiB", Budget("bytes", 65_536), 65_536),
        ("4000", Budget("bytes", 4000), 4000),
        ("8x", Budget("ratio", 8), 1250),
        ("3.0bits", Budget("bits", 3), 937),
        ("3 bit", Budget("bits", 3), 937),
    ],
)
def test_parse(text: str, budget: Budget, limit: int) -> None:
    assert parse_budget(text) == budget
    assert budget.bytes_for(original_bytes=10_000, weights=2500) == limit
    assert parse_budget(str(budget)).kind == budget.kind


@pytest.mark.parametrize("text", ["", "MB", "8 parsecs", "0.5x", "0bits", "0B", "-3MB"])
def test_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_budget(text)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="'megabytes'"):
        Budget("megabytes", 1.0)  # type: ignore[arg-type]
