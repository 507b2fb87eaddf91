from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from laconic.report import comparison
from laconic.report.terminal import compare_table, final_table, steps_table


def show(table: Table) -> str:
    stream = io.StringIO()
    Console(file=stream, width=140, color_system=None).print(table)
    return stream.getvalue()


def test_final_table_sets_original_beside_compressed(sample: dict[str, Any]) -> None:
    lines = show(final_table(sample)).splitlines()
    size = next(line for line in lines if "bytes on disk" in line)
    assert size.index("1.05 MB") < size.index("131.04 kB")
    assert any("8.01x" in line for line in lines)
    assert any("Slower: a call takes 1.41x" in line for line in lines)
    assert any("Worst class" in line and "91.00 %" in line for line in lines)


def test_missing_values_say_so() -> None:
    shown = show(final_table({"original": {}, "compressed": {}, "name": "[bold]x[/bold]"}))
    assert shown.count("not measured") >= 5
    assert "[bold]x[/bold]" in shown


def test_steps_and_comparison(sample: dict[str, Any]) -> None:
    assert "4. gptq" in show(steps_table(sample))
    shown = show(compare_table(comparison({"a": sample, "b": sample})))
    assert "97.11 % (95.41 to 98.41 %)" in shown
